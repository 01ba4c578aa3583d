//! Who leads: a Lease that one process holds and renews. A leader that is stopped gives it back, so that the next one needs not wait;
//! one that cannot renew stops acting before another may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta};
use kube::{Client, Resource, ResourceExt};
use m1_operator_api::labels;

use crate::cluster::post_params;
use crate::config::LeaseConfig;
use crate::error::{Error, code};

/// What of the lease's duration passes between two renewals, and between two looks of those who wait.
const RENEWALS: u32 = 5;
/// A leader that has not renewed for this part of the duration stops acting; the rest is for clocks that differ.
const GIVE_UP: f64 = 2.0 / 3.0;

/// The lease of this operator.
#[derive(Clone)]
pub struct Leadership {
    api: Api<Lease>,
    deployments: Api<Deployment>,
    config: LeaseConfig,
    identity: String,
}

/// The holder as somebody else last saw it change, by this process' own clock: other clocks are not trusted.
struct Watched {
    version: Option<String>,
    since: Instant,
}

impl Leadership {
    /// Nothing is asked for yet. The identity gets a random part: a pod that comes back under its old name is another process.
    pub fn new(client: Client, namespace: &str, identity: &str, config: LeaseConfig) -> Self {
        let identity = format!("{identity}_{:x}", Timestamp::now().as_nanosecond());
        Self { api: Api::namespaced(client.clone(), namespace), deployments: Api::namespaced(client, namespace), config, identity }
    }

    /// Waits until this process leads. Returns how often leadership had changed before.
    pub async fn acquire(&self) -> u64 {
        let mut watched = Watched { version: None, since: Instant::now() };
        loop {
            match self.try_acquire(&mut watched).await {
                Ok(Some(transitions)) => return transitions,
                Ok(None) => {}
                Err(error) => tracing::warn!(error = %error, reason = error.reason(), "the lease cannot be asked for"),
            }
            tokio::time::sleep(self.config.duration / RENEWALS).await;
        }
    }

    /// Renews until that fails for too long. Returns then: whoever acts must stop.
    pub async fn keep(&self) {
        let mut renewed = Instant::now();
        let limit = self.config.duration.mul_f64(GIVE_UP);
        loop {
            tokio::time::sleep((self.config.duration / RENEWALS).min(limit.saturating_sub(renewed.elapsed()))).await;
            let left = limit.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left.max(Duration::from_millis(1)), self.renew()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::error!("another process holds the lease");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(error = %error, "the lease was not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= limit {
                tracing::error!(seconds = renewed.elapsed().as_secs(), "the lease could not be renewed in time");
                return;
            }
        }
    }

    /// Gives the lease back.
    pub async fn release(&self) {
        let released = async {
            let mut lease = self.api.get(&self.config.name).await?;
            if holder(&lease) == Some(self.identity.as_str()) {
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = Some(String::new());
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.api.replace(&self.config.name, &post_params(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match released.await {
            Ok(()) => tracing::info!("the lease is given back"),
            Err(error) => tracing::warn!(%error, "the lease was not given back; it runs out"),
        }
    }

    async fn try_acquire(&self, watched: &mut Watched) -> Result<Option<u64>, Error> {
        let failed = |verb| Error::api(verb, format!("Lease {}", self.config.name));
        let Some(mut lease) = self.api.get_opt(&self.config.name).await.map_err(failed("get"))? else {
            let lease = Lease { metadata: self.metadata(self.owners().await), spec: Some(self.spec(0)) };
            return match self.api.create(&post_params(), &lease).await {
                Ok(_) => Ok(Some(0)),
                Err(error) if code(&error) == Some(409) => Ok(None),
                Err(error) => Err(failed("create")(error)),
            };
        };
        if watched.version != lease.resource_version() {
            *watched = Watched { version: lease.resource_version(), since: Instant::now() };
        }
        let free = holder(&lease).is_none_or(str::is_empty);
        let promised = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        let promised = Duration::from_secs(promised.unsigned_abs().into()).max(self.config.duration);
        if !free && watched.since.elapsed() < promised {
            return Ok(None);
        }
        lease.metadata.owner_references = self.owners().await;
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0) + 1;
        lease.spec = Some(self.spec(transitions));
        // On top of the version that was read: of two who take it, one succeeds.
        match self.api.replace(&self.config.name, &post_params(), &lease).await {
            Ok(_) => Ok(Some(u64::from(transitions.unsigned_abs()))),
            Err(error) if code(&error) == Some(409) => Ok(None),
            Err(error) => Err(failed("replace")(error)),
        }
    }

    async fn renew(&self) -> Result<bool, Error> {
        let failed = |verb| Error::api(verb, format!("Lease {}", self.config.name));
        let mut lease = self.api.get(&self.config.name).await.map_err(failed("get"))?;
        if holder(&lease) != Some(self.identity.as_str()) {
            return Ok(false);
        }
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        self.api.replace(&self.config.name, &post_params(), &lease).await.map_err(failed("replace"))?;
        Ok(true)
    }

    /// The operator's own Deployment: the lease goes with it. Without it, it stays: no reason not to lead.
    async fn owners(&self) -> Option<Vec<OwnerReference>> {
        let owner = self.deployments.get_opt(self.config.owner.as_deref()?).await;
        let owner = owner.inspect_err(|error| tracing::warn!(%error, "the lease gets no owner")).ok()??;
        Some(vec![owner.owner_ref(&())?])
    }

    fn metadata(&self, owners: Option<Vec<OwnerReference>>) -> ObjectMeta {
        let labels = [(labels::APP_NAME, labels::MANAGER), (labels::APP_MANAGED_BY, labels::MANAGER)];
        let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let name = Some(self.config.name.clone());
        ObjectMeta { name, labels: Some(labels), owner_references: owners, ..ObjectMeta::default() }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.config.duration.as_secs() as i32),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}
