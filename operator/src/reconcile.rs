//! One look at one deployment, from observation to status. Reads top to bottom as the pipeline is; each step has its file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::render::{Scene, placement_object};
use m1_operator_plan::{Decision, Kind, Object, PlacementWrite, Refusal, decide, refuse, write_refused};

use crate::apply::{Deed, Hand};
use crate::cache::{Cache, Key};
use crate::certificates::Certificates;
use crate::cluster;
use crate::config::Config;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::observe;
use crate::report::{self, Teller, Worth};
use crate::settle::{Settled, settle};
use crate::workers::Workers;

/// Where pods wait for volumes or are refused, they are looked at again after this: an event says of which pod it is, not of which
/// deployment.
const EVENTS: Duration = Duration::from_secs(5);
/// Everything is looked at again after this, though every change is watched.
const IDLE: Duration = Duration::from_secs(600);
/// Pauses after failures in a row.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// What every reconcile shares.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// As checked at the start.
    pub config: Config,
    /// What is known.
    pub cache: Arc<Cache>,
    /// The workers.
    pub workers: Arc<Workers>,
    /// The certificates of members.
    pub certificates: Certificates,
    /// Events.
    pub teller: Teller,
    /// The handles.
    pub metrics: Metrics,
    /// How often leadership had changed when this process began to lead.
    pub lease_transitions: u64,
    /// Failures in a row and the last progress written, by deployment.
    pub notes: std::sync::Mutex<std::collections::HashMap<Key, Note>>,
}

/// What is remembered of a deployment between two looks.
#[derive(Clone, Debug, Default)]
pub struct Note {
    failures: u32,
    written: Option<Instant>,
}

impl Context {
    /// Forgets a deployment that is gone.
    pub fn forget(&self, key: &Key) {
        self.workers.forget(key);
        self.certificates.forget(key);
        self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }

    fn note<T>(&self, key: &Key, with: impl FnOnce(&mut Note) -> T) -> T {
        let mut notes = self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        with(notes.entry(key.clone()).or_default())
    }
}

/// Looks at a deployment and brings it closer to what it should be.
///
/// # Errors
/// Something that is worth another try.
pub async fn reconcile(deployment: Arc<MiniMaxM1Deployment>, context: Arc<Context>) -> Result<Action, Error> {
    let began = Instant::now();
    let result = step(&deployment, &context).await;
    context.metrics.reconciled(began, result.as_ref().err().map(Error::reason));
    result
}

async fn step(deployment: &MiniMaxM1Deployment, context: &Context) -> Result<Action, Error> {
    deployment.namespace().ok_or(Error::Incomplete("metadata.namespace"))?;
    let uid = deployment.uid().ok_or(Error::Incomplete("metadata.uid"))?;
    let key = Key::of(deployment);
    if deployment.metadata.deletion_timestamp.is_some() {
        // Everything has an owner reference: the cluster's garbage collection ends it.
        return Ok(Action::await_change());
    }
    let mut look = observe::look(&context.cache, &context.workers, deployment, &key);
    let wrote = AtomicBool::new(false);
    let (client, cache, family) = (&context.client, &context.cache, &look.family);
    let hand = Hand { client, cache, key: &key, uid: &uid, family, wrote: &wrote };
    let settled = settle(deployment, &context.config.images, context.cache.gpu_memory());
    let settled = match settled {
        Ok(settled) => known_kinds(&settled, context).await.map(|()| settled),
        Err(refusal) => Err(refusal),
    };
    let held = context.certificates.keep(client, deployment, family).await;
    look.observed.certificates = held.trouble;
    let (decision, (mut deeds, carried)) = match &settled {
        Ok(settled) => accepted(settled, &look.observed, &hand, context, &key.namespace, &uid).await,
        Err(refusal) => {
            let decision = refuse(refusal, &look.observed, deployment.spec.worker.unreachable_seconds);
            let carried = hand.carry_out(&decision, |_| None).await;
            (decision, carried)
        }
    };
    deeds.extend(held.deed);
    for deed in &deeds {
        context.metrics.wrote(deed.reason);
        tracing::info!(namespace = key.namespace, name = key.name, reason = deed.reason, "{}", deed.message);
    }
    // Pods that came and went, and what was just written for them.
    let wrote = wrote.load(Ordering::Relaxed);
    match wrote {
        true => context.workers.follow(&key, &cache.family(&key), held.tls.as_ref()),
        false => context.workers.follow(&key, family, held.tls.as_ref()),
    }
    let saying = say(deployment, context, &key, &decision, (&deeds, &carried)).await?;
    carried?;
    context.note(&key, |note| note.failures = 0);
    // What was written here is no news when the watch brings it, and is in no status yet.
    let written = wrote.then_some(Duration::ZERO);
    let again = [written, decision.look_again, saying, held.look_again, look.waits.then_some(EVENTS), Some(IDLE)];
    let again = again.into_iter().flatten().min();
    Ok(Action::requeue(again.unwrap_or(IDLE)))
}

async fn accepted(
    settled: &Settled,
    observed: &m1_operator_plan::Observed,
    hand: &Hand<'_>,
    context: &Context,
    namespace: &str,
    uid: &str,
) -> (Decision, (Vec<Deed>, Result<(), Error>)) {
    let scene = Scene {
        checked: &settled.checked,
        plan: &settled.plan,
        namespace,
        uid,
        images: &settled.images,
        operator_namespace: &context.config.namespace,
        version: env!("CARGO_PKG_VERSION"),
    };
    let decision = decide(&scene, &settled.revision, observed, context.lease_transitions);
    let object = |write: &PlacementWrite| -> Option<Object> { Some(placement_object(&scene, &write.group)) };
    let carried = hand.carry_out(&decision, object).await;
    (decision, carried)
}

/// Refuses what needs a kind that the cluster does not have: somebody else's CRD that is not installed.
async fn known_kinds(settled: &Settled, context: &Context) -> Result<(), Refusal> {
    use m1_operator_api::{Gang, Reason, TlsMode};
    let spec = settled.checked.spec();
    let wanted = match spec.scheduling.gang {
        Gang::Coscheduling => Some((Kind::PodGroup, "spec.scheduling.gang: Coscheduling")),
        Gang::Volcano => Some((Kind::VolcanoPodGroup, "spec.scheduling.gang: Volcano")),
        Gang::Off | Gang::Kai => None,
    };
    let certificate = (spec.tls.mode == TlsMode::CertManager).then_some((Kind::Certificate, "spec.tls.mode: CertManager"));
    let monitor = spec.monitoring.pod_monitor.then_some((Kind::PodMonitor, "spec.monitoring.podMonitor: true"));
    for (kind, field) in wanted.into_iter().chain(monitor).chain(certificate) {
        if !context.cache.is_served(kind) {
            let message = format!(
                "{field}: the cluster has no {} ({}); install it and restart the operator",
                kind.as_str(),
                kind.api_version()
            );
            return Err(Refusal { reason: Reason::InvalidSpec, message });
        }
    }
    Ok(())
}

/// Writes status and events. Returns when a status that was put off is due.
async fn say(
    deployment: &MiniMaxM1Deployment,
    context: &Context,
    key: &Key,
    decision: &Decision,
    (deeds, carried): (&[Deed], &Result<(), Error>),
) -> Result<Option<Duration>, Error> {
    let failed = carried.as_ref().err().filter(|error| !error.is_conflict());
    let before = deployment.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let shown = failed.map(|error| write_refused(&decision.status, before, &error.to_string(), Timestamp::now()));
    let status = shown.as_ref().unwrap_or(&decision.status);
    report::tell(&context.teller, deployment, deeds, status);
    if let Some(error) = failed {
        report::tell_failure(&context.teller, deployment, error);
    }
    match report::worth(deployment.status.as_ref(), status) {
        Worth::Nothing => {}
        Worth::Progress => {
            let left = context.note(key, |note| note.written.map(|written| report::PROGRESS.saturating_sub(written.elapsed())));
            if let Some(left) = left.filter(|left| !left.is_zero()) {
                return Ok(Some(left));
            }
            report::write(&context.client, key, status).await?;
        }
        Worth::Change => report::write(&context.client, key, status).await?,
    }
    context.note(key, |note| note.written = Some(Instant::now()));
    Ok(None)
}

/// When a failed reconcile is tried again.
pub fn retry(deployment: Arc<MiniMaxM1Deployment>, error: &Error, context: Arc<Context>) -> Action {
    let key = Key::of(&deployment);
    let failures = context.note(&key, |note| {
        note.failures = note.failures.saturating_add(1);
        note.failures
    });
    let pause = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
    match error.is_conflict() && failures < 5 {
        true => tracing::debug!(namespace = key.namespace, name = key.name, %error, "looked at again"),
        false => {
            tracing::warn!(namespace = key.namespace, name = key.name, reason = error.reason(), %error, ?pause, "reconcile failed");
        }
    }
    Action::requeue(pause)
}

/// The labels that every watch of the operator selects by.
pub fn selector() -> String {
    format!("{}={}", labels::APP_MANAGED_BY, labels::MANAGER)
}

/// The kinds that the cluster has; some are other people's. Asked once, at the start, where this operator may look.
pub async fn served_kinds(client: &Client, namespace: Option<&str>) -> Vec<Kind> {
    let mut served = Vec::new();
    for kind in Kind::ALL {
        let one = kube::api::ListParams::default().limit(1);
        let missing = match kind.is_optional() {
            false => false,
            true => {
                let answer = cluster::api_in(client, kind, namespace).list_metadata(&one).await;
                matches!(answer, Err(error) if crate::error::code(&error) == Some(404))
            }
        };
        if !missing {
            served.push(kind);
        }
    }
    served
}
