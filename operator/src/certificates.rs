//! The certificate that routers, workers and the operator of one deployment show each other. With `tls.mode: Managed` it is made and
//! renewed here, from an authority that signs for this deployment only; with `CertManager` it is read. Nothing watches Secrets: the
//! right to do so would be the right to read all of a namespace. They are read when there is a reason to, and every ten minutes.
//!
//! An authority is exchanged without a gap: first everybody is told to believe the new one too, then it signs.

mod sign;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions};
use kube::{Client, Resource, ResourceExt};
use m1_operator_api::{MiniMaxM1Deployment, ResourceName, TlsMode, labels};
use m1_operator_plan::render::{RENEW_HOURS, members_name};
use m1_operator_plan::{CertificateTrouble, Kind, seconds};
use m1_runtime::tls::{Identity, Tls, accepts};

use crate::apply::Deed;
use crate::cache::{Family, Key};
use crate::cluster::placement_spec;
use crate::error::{Error, code};

/// Secrets are read again after this.
const LOOK: Duration = Duration::from_secs(600);
/// After something went wrong.
const RETRY: Duration = Duration::from_secs(15);
/// How long a new authority is only believed before it signs: the kubelet takes up to two minutes to bring a Secret to its pods, and they
/// look every few seconds.
const SPREAD: Duration = Duration::from_secs(300);

/// The keys of a Secret with a certificate.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";

/// What is known of every deployment's certificate.
#[derive(Default)]
pub struct Certificates {
    known: Mutex<HashMap<Key, Known>>,
}

struct Known {
    tls: Tls,
    looked: Instant,
    again: Duration,
    renew: Option<String>,
    mode: TlsMode,
}

/// What a look at the certificate found.
#[derive(Default)]
pub struct Held {
    /// The operator's identity towards the members; none where nothing is encrypted, or there is no certificate yet.
    pub tls: Option<Tls>,
    /// What is wrong.
    pub trouble: Option<CertificateTrouble>,
    /// When to look again.
    pub look_again: Option<Duration>,
    /// What was done.
    pub deed: Option<Deed>,
}

/// Why there is no certificate, or no new one.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("{0}")]
    Api(#[from] Error),
    #[error(
        "the operator may not read and write Secrets in this namespace: name it in tls.namespaces of the chart, or bind the ClusterRole whose name ends in -tls to it: {0}"
    )]
    Forbidden(Error),
    #[error("Secret {0} exists and belongs to somebody else; it is not taken over: delete or rename it")]
    Foreign(String),
    #[error("Secret {0}: {1}; delete it, and a new one is made")]
    Broken(String, String),
    #[error("cert-manager has not made Secret {0} yet: kubectl describe certificate {0}")]
    Awaited(String),
    #[error("the certificate cannot be made: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A deployment, as far as its certificate is concerned.
struct Members<'a> {
    deployment: &'a MiniMaxM1Deployment,
    secrets: Api<Secret>,
    name: ResourceName,
    /// What the certificate is for.
    subject: String,
    /// The last request for a new one.
    renew: Option<&'a str>,
}

impl Certificates {
    /// Brings the certificate of a deployment to what it should be, if it is time to look, or `missed` by pods that wait for it.
    pub async fn keep(&self, client: &Client, deployment: &MiniMaxM1Deployment, family: &Family, missed: bool) -> Held {
        let (mode, key) = (deployment.spec.tls.mode, Key::of(deployment));
        let encrypted = |spec: m1_operator_api::ExpertPlacementSpec| spec.encrypted;
        let still = family.of_kind(Kind::ExpertPlacement).any(|(_, object)| placement_spec(object).is_some_and(encrypted));
        let Ok(name) = ResourceName::new(&key.name) else { return Held::default() };
        let renew = deployment.annotations().get(labels::RENEW_CERTIFICATES_AT).map(String::as_str);
        if let Some(held) = self.recent(&key, mode, renew).filter(|_| !missed && (still || mode != TlsMode::Off)) {
            return held;
        }
        let secrets = Api::namespaced(client.clone(), &key.namespace);
        let members = Members { deployment, secrets, name, subject: members_name(&key.name, &key.namespace), renew };
        if mode == TlsMode::Off && !still {
            let was_encrypted = self.lock().remove(&key).is_some();
            let deed = if was_encrypted { members.remove().await } else { None };
            return Held { deed, ..Held::default() };
        }
        // A certificate that was made here stays of use to groups that still speak encrypted.
        let found = if mode == TlsMode::Managed { members.manage().await } else { members.read().await };
        self.note(&key, &members, mode, found)
    }

    /// Forgets a deployment.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn recent(&self, key: &Key, mode: TlsMode, renew: Option<&str>) -> Option<Held> {
        let known = self.lock();
        let known = known.get(key).filter(|known| known.mode == mode && known.renew.as_deref() == renew)?;
        let left = known.again.checked_sub(known.looked.elapsed())?;
        Some(Held { tls: Some(known.tls.clone()), look_again: Some(left), ..Held::default() })
    }

    fn note(&self, key: &Key, members: &Members<'_>, mode: TlsMode, found: Result<Found, CertificateError>) -> Held {
        let mut known = self.lock();
        let identity = found.and_then(|found| {
            let broken =
                |error: &dyn std::fmt::Display| CertificateError::Broken(members.name.members_certificate(), error.to_string());
            let files = [&found.certificate[..], &found.key, &found.authorities];
            let tls = match known.get(key) {
                Some(known) => known.tls.clone(),
                None => Tls::new(&members.subject).map_err(|error| broken(&error))?,
            };
            let same = tls.identity().is_some_and(|identity| identity.is_of(files));
            if !same {
                tls.replace(Identity::from_pem(files[0], files[1], files[2]).map_err(|error| broken(&error))?);
            }
            Ok((tls, found))
        });
        match identity {
            Ok((tls, found)) => {
                let again = found.again.unwrap_or(LOOK);
                let renew = members.renew.map(str::to_owned);
                known.insert(key.clone(), Known { tls: tls.clone(), looked: Instant::now(), again, renew, mode });
                Held { tls: Some(tls), trouble: None, look_again: Some(again), deed: found.deed }
            }
            Err(error) => {
                let tls = known.get(key).map(|known| known.tls.clone());
                tracing::warn!(namespace = key.namespace, name = key.name, %error, "no certificate");
                let trouble = CertificateTrouble { message: format!("certificates: {error}"), missing: tls.is_none() };
                Held { tls, trouble: Some(trouble), look_again: Some(RETRY), deed: None }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A certificate as it is now.
#[derive(Clone, Debug, Default)]
struct Found {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
    again: Option<Duration>,
    deed: Option<Deed>,
}

impl Found {
    fn of(secret: &Secret) -> Option<Self> {
        let read = |key: &str| Some(secret.data.as_ref()?.get(key)?.0.clone());
        Some(Self { certificate: read(CERTIFICATE)?, key: read(KEY)?, authorities: read(AUTHORITIES)?, ..Self::default() })
    }
}

/// What is to be done about a certificate.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing, until then.
    Keep(Option<Duration>),
    /// A new authority is believed beside those before.
    Believe,
    /// A new certificate. With `only_newest`, nobody shows a certificate of an older authority any more.
    Issue {
        /// Why.
        why: &'static str,
        only_newest: bool,
    },
}

/// What a decision is made of.
struct Look<'a> {
    found: Option<&'a Found>,
    authority: &'a [u8],
    subject: &'a str,
    since: Option<Timestamp>,
    asked: bool,
    now: SystemTime,
}

impl Look<'_> {
    fn step(&self) -> Step {
        let Some(found) = self.found else { return Step::Issue { why: "there was none", only_newest: true } };
        let later = self.now + Duration::from_secs(RENEW_HOURS * 3600);
        let good = |authorities: &[u8], at| accepts(authorities, &found.certificate, self.subject, at);
        let paired = Identity::from_pem(&found.certificate, &found.key, &found.authorities).is_ok();
        if !paired || !good(&found.authorities, self.now) {
            return Step::Issue { why: "the one that was there is of no use", only_newest: true };
        }
        if good(self.authority, self.now) {
            return match (good(self.authority, later), self.asked) {
                (true, false) => Step::Keep(None),
                (true, true) => Step::Issue { why: "a new one was asked for", only_newest: true },
                (false, _) => Step::Issue { why: "the one before ends soon", only_newest: true },
            };
        }
        let believed = contains(&found.authorities, self.authority);
        let since = self.since.map(SystemTime::from).and_then(|since| self.now.duration_since(since).ok());
        match since.filter(|_| believed) {
            None => Step::Believe,
            Some(age) => match SPREAD.checked_sub(age).filter(|left| !left.is_zero()) {
                Some(left) => Step::Keep(Some(left)),
                None => Step::Issue { why: "there is a new authority", only_newest: false },
            },
        }
    }
}

fn contains(all: &[u8], one: &[u8]) -> bool {
    !one.is_empty() && all.windows(one.len()).any(|window| window == one)
}

impl Members<'_> {
    /// Reads what somebody else makes.
    async fn read(&self) -> Result<Found, CertificateError> {
        let name = self.name.members_certificate();
        match self.get(&name).await?.as_ref().and_then(Found::of) {
            Some(found) => Ok(found),
            None => Err(CertificateError::Awaited(name)),
        }
    }

    /// Makes what is missing and renews what ends.
    async fn manage(&self) -> Result<Found, CertificateError> {
        let (authority, authority_key) = self.authority().await?;
        let name = self.name.members_certificate();
        let secret = self.own(&name).await?;
        let found = secret.as_ref().and_then(Found::of);
        let annotation = |key: &str| secret.as_ref().and_then(|secret| secret.annotations().get(key).cloned());
        let since = annotation(labels::AUTHORITY_SINCE);
        let look = Look {
            found: found.as_ref(),
            authority: &authority,
            subject: &self.subject,
            since: since.as_ref().and_then(|time| time.parse().ok()),
            asked: self.renew != annotation(labels::RENEWED_FOR).as_deref() && self.renew.is_some(),
            now: SystemTime::now(),
        };
        let deed = |message: String| Some(Deed { reason: "CertificateIssued", message, warning: false });
        let (step, at) = (look.step(), look.now);
        match (step, found) {
            (Step::Keep(again), Some(found)) => Ok(Found { again, ..found }),
            (Step::Believe, Some(found)) => {
                let authorities = [authority.as_slice(), &found.authorities].concat();
                let deed = Some(Deed {
                    reason: "AuthorityAdded",
                    message: format!("members believe a new authority; in {} minutes it signs", SPREAD.as_secs() / 60),
                    warning: false,
                });
                let found = Found { authorities, again: Some(SPREAD), deed, ..found };
                let obeyed = annotation(labels::RENEWED_FOR);
                self.write(
                    &name,
                    &found,
                    &[(labels::AUTHORITY_SINCE, Some(seconds(Timestamp::now()))), (labels::RENEWED_FOR, obeyed)],
                )
                .await?;
                Ok(found)
            }
            (Step::Issue { why, only_newest }, before) => {
                let (certificate, key) = sign::certificate(&authority_key, &self.subject)?;
                let before = before.filter(|_| !only_newest).map(|found| found.authorities);
                let authorities = before.unwrap_or_else(|| authority.clone());
                let deed = deed(format!("a certificate for {} was made: {why}", self.subject));
                let found = Found { certificate, key, authorities, again: None, deed };
                if !accepts(&authority, &found.certificate, &self.subject, at) {
                    let broken = "its key did not sign its certificate".to_owned();
                    return Err(CertificateError::Broken(self.name.members_authority(), broken));
                }
                let obeyed = self.renew.map(str::to_owned);
                self.write(&name, &found, &[(labels::AUTHORITY_SINCE, since), (labels::RENEWED_FOR, obeyed)]).await?;
                Ok(found)
            }
            (Step::Keep(_) | Step::Believe, None) => Err(CertificateError::Awaited(name)),
        }
    }

    /// The authority's certificate and key, made where there is none.
    async fn authority(&self) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
        let name = self.name.members_authority();
        if let Some(secret) = self.own(&name).await? {
            let read = |key: &str| Some(secret.data.as_ref()?.get(key)?.0.clone());
            let broken = || CertificateError::Broken(name.clone(), format!("{CERTIFICATE} or {KEY} is missing"));
            return read(CERTIFICATE).zip(read(KEY)).ok_or_else(broken);
        }
        let (certificate, key) = sign::authority()?;
        let found = Found { certificate: certificate.clone(), key: key.clone(), ..Found::default() };
        self.write(&name, &found, &[]).await?;
        Ok((certificate, key))
    }

    /// Deletes what was made, once nobody speaks encrypted any more. What cannot be deleted goes with the deployment.
    async fn remove(&self) -> Option<Deed> {
        let mut gone = Vec::new();
        for name in [self.name.members_certificate(), self.name.members_authority()] {
            let Ok(Some(secret)) = self.own(&name).await else { continue };
            let preconditions = Some(Preconditions { uid: secret.uid(), resource_version: None });
            match self.secrets.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
                Ok(_) => gone.push(format!("Secret {name}")),
                Err(error) => tracing::warn!(name, %error, "a Secret that nobody needs any more stays"),
            }
        }
        let message = format!("deleted {}: nothing is encrypted any more", gone.join(" and "));
        (!gone.is_empty()).then_some(Deed { reason: "Deleted", message, warning: false })
    }

    async fn get(&self, name: &str) -> Result<Option<Secret>, CertificateError> {
        self.secrets.get_opt(name).await.map_err(|error| refusal("get", name, error))
    }

    /// A Secret of this deployment; none where there is none.
    async fn own(&self, name: &str) -> Result<Option<Secret>, CertificateError> {
        let found = self.get(name).await?;
        let ours =
            |secret: &Secret| secret.owner_references().iter().any(|owner| Some(&owner.uid) == self.deployment.uid().as_ref());
        match found {
            Some(secret) if !ours(&secret) => Err(CertificateError::Foreign(name.to_owned())),
            found => Ok(found),
        }
    }

    async fn write(&self, name: &str, found: &Found, annotations: &[(&str, Option<String>)]) -> Result<(), CertificateError> {
        let parts = [(CERTIFICATE, &found.certificate), (KEY, &found.key), (AUTHORITIES, &found.authorities)];
        let data = parts.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        let labels = [
            (labels::APP_NAME, labels::APP),
            (labels::APP_INSTANCE, self.name.as_str()),
            (labels::APP_MANAGED_BY, labels::MANAGER),
            (labels::APP_COMPONENT, "tls"),
            (labels::NAME, self.name.as_str()),
        ];
        let annotations = annotations.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?)));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                annotations: Some(annotations.collect()),
                owner_references: self.deployment.controller_owner_ref(&()).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.map(|(key, bytes)| (key.to_owned(), ByteString(bytes.clone()))).collect()),
            ..Secret::default()
        };
        let params = PatchParams::apply(labels::MANAGER).force();
        let patched = self.secrets.patch(name, &params, &Patch::Apply(&secret)).await;
        patched.map(drop).map_err(|error| refusal("apply", name, error))
    }
}

fn refusal(verb: &'static str, name: &str, error: kube::Error) -> CertificateError {
    let forbidden = code(&error) == Some(403);
    let error = Error::api(verb, format!("Secret {name}"))(error);
    if forbidden { CertificateError::Forbidden(error) } else { CertificateError::Api(error) }
}

#[cfg(test)]
mod tests;
