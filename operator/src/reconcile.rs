//! One look at one deployment, from observation to status. Reads top to bottom as the pipeline is; each step has its file.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use m1_arch::Bytes;
use m1_operator_api::{MiniMaxM1Deployment, Reason, labels};
use m1_operator_plan::render::{GroupRef, Scene, placement_object};
use m1_operator_plan::{
    Checked, Decision, GroupSeen, Kind, Object, Observed, PlacementWrite, Refusal, Revision, decide, refuse, write_refused,
};

use crate::apply::{Deed, Hand};
use crate::cache::{Cache, Key};
use crate::certificates::Certificates;
use crate::cluster;
use crate::config::Config;
use crate::error::{Error, Verdict};
use crate::metrics::Metrics;
use crate::notes::Notes;
use crate::observe::{self, Look};
use crate::report::{self, Teller};
use crate::settle::{Settled, settle};
use crate::workers::Workers;

/// Everything is looked at again after this, though every change is watched.
const IDLE: Duration = Duration::from_secs(600);
/// A spec that the API server refuses is tried again after this: what refuses it may be somebody's rule, and may go.
const REFUSED: Duration = Duration::from_secs(60);
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
    /// What is remembered between two looks.
    pub notes: Notes,
}

impl Context {
    /// Forgets a deployment that is gone.
    pub fn forget(&self, key: &Key) {
        self.workers.forget(key);
        self.certificates.forget(key);
        self.notes.forget(key);
    }
}

/// Looks at a deployment and brings it closer to what it should be.
///
/// # Errors
/// Something that is worth another try.
pub async fn reconcile(deployment: Arc<MiniMaxM1Deployment>, context: Arc<Context>) -> Result<Action, Error> {
    let began = Instant::now();
    let deployment = context.notes.latest(deployment);
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
    let handled = Mutex::new(None);
    let (client, cache, family) = (&context.client, &context.cache, &look.family);
    let hand = Hand { client, cache, key: &key, uid: &uid, family, notes: &context.notes, look_again: &handled };
    let settled = settle(deployment, &context.config.images, &|checked, revision| memory(checked, revision, &look, cache));
    let mut unasked = None;
    let settled = match settled.and_then(|settled| known_kinds(&settled, context).map(|()| settled)) {
        Ok(settled) => {
            let scene = scene(&settled, context, &key, &uid);
            match taken(&scene, &settled.revision, &look.observed, context, &key).await {
                Ok(answer) => answer.map(|()| settled),
                // What runs is looked after all the same.
                Err(error) => {
                    let message = format!("the API server could not be asked about a group of this spec: {error}");
                    unasked = Some(error);
                    Err(Refusal { reason: Reason::WriteRefused, message })
                }
            }
        }
        Err(refusal) => Err(refusal),
    };
    let held = context.certificates.keep(client, deployment, family, misses_certificate(&look.observed)).await;
    look.observed.certificates = held.trouble;
    let (decision, (mut deeds, carried)) = match &settled {
        Ok(settled) => accepted(&scene(settled, context, &key, &uid), &settled.revision, &look.observed, &hand, context).await,
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
    // What was written here is no news when the watch brings it, and is in no status yet.
    let handled = *handled.lock().unwrap_or_else(PoisonError::into_inner);
    // Pods that came and went, and what was just written for them.
    match handled == Some(Duration::ZERO) {
        true => context.workers.follow(&key, &cache.family(&key), held.tls.as_ref()),
        false => context.workers.follow(&key, family, held.tls.as_ref()),
    }
    let saying = say(deployment, context, &key, &decision, (&deeds, &carried)).await?;
    carried?;
    unasked.map_or(Ok(()), Err)?;
    context.notes.succeeded(&key);
    let refused = matches!(&settled, Err(refusal) if refusal.reason == Reason::WriteRefused).then_some(REFUSED);
    let again = [handled, decision.look_again, saying, held.look_again, look.look_again, refused, Some(IDLE)];
    let again = again.into_iter().flatten().min();
    Ok(Action::requeue(again.unwrap_or(IDLE)))
}

/// Whether pods wait for the certificate of the members: somebody deleted it.
fn misses_certificate(observed: &Observed) -> bool {
    let mut waiting = observed.groups.iter().flat_map(|group| &group.pods).filter_map(|pod| pod.volumes.as_deref());
    waiting.any(|words| words.contains("-members-tls"))
}

/// Memory of a GPU that a deployment is planned for, where its spec does not say: what groups of the revision were planned for, or its
/// pods would differ; else what nodes say now; else, where nodes have gone, what older groups were planned for. 0 stands for CPUs.
fn memory(checked: &Checked, revision: &Revision, look: &Look, cache: &Cache) -> Option<Bytes> {
    let planned = |of: &dyn Fn(&GroupSeen) -> bool| {
        let mut groups = look.observed.groups.iter().filter(|group| of(group));
        groups.find_map(|group| {
            let set = look.family.object(Kind::StatefulSet, &group.name)?;
            set.annotations().get(labels::GPU_MEMORY)?.parse().ok().map(Bytes)
        })
    };
    let now = || cache.gpu_memory(&checked.spec().worker.node_selector, checked.tensor);
    planned(&|group| group.revision == *revision).or_else(now).or_else(|| planned(&|_| true))
}

fn scene<'a>(settled: &'a Settled, context: &'a Context, key: &'a Key, uid: &'a str) -> Scene<'a> {
    Scene {
        checked: &settled.checked,
        plan: &settled.plan,
        namespace: &key.namespace,
        uid,
        images: &settled.images,
        operator_namespace: &context.config.namespace,
        version: env!("CARGO_PKG_VERSION"),
    }
}

async fn accepted(
    scene: &Scene<'_>,
    revision: &Revision,
    observed: &Observed,
    hand: &Hand<'_>,
    context: &Context,
) -> (Decision, (Vec<Deed>, Result<(), Error>)) {
    let decision = decide(scene, revision, observed, context.lease_transitions);
    let object = |write: &PlacementWrite| -> Option<Object> { Some(placement_object(scene, &write.group)) };
    let carried = hand.carry_out(&decision, object).await;
    (decision, carried)
}

/// Refuses an edit whose groups the API server would not take, before any group that serves makes room for one of them.
async fn taken(
    scene: &Scene<'_>,
    revision: &Revision,
    observed: &Observed,
    context: &Context,
    key: &Key,
) -> Result<Result<(), Refusal>, Error> {
    let groups = || observed.groups.iter().filter(|group| !group.deleting);
    if groups().next().is_none() || groups().any(|group| group.revision == *revision) || context.notes.was_tried(key, revision) {
        return Ok(Ok(()));
    }
    let group = GroupRef { index: 0, revision: revision.clone(), size: scene.checked.pods };
    for object in scene.group(&group, group.size) {
        let Err(error) = cluster::try_apply(&context.client, &key.namespace, &object).await else { continue };
        match error.verdict() {
            Verdict::Refused => {
                let message = format!("the API server would not take a group of this spec: {error}");
                return Ok(Err(Refusal { reason: Reason::WriteRefused, message }));
            }
            Verdict::Untried => {}
            Verdict::None => return Err(error),
        }
    }
    context.notes.tried(key, revision);
    Ok(Ok(()))
}

/// Refuses what needs a kind that the cluster does not have: somebody else's CRD that is not installed.
fn known_kinds(settled: &Settled, context: &Context) -> Result<(), Refusal> {
    use m1_operator_api::{Gang, TlsMode};
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
    report::tell_deeds(&context.teller, deployment, deeds);
    if let Some(error) = failed {
        report::tell_failure(&context.teller, deployment, error);
    }
    let Some(pause) = report::pause(deployment.status.as_ref(), status) else { return Ok(None) };
    let left = context.notes.silent_for(key).map_or(Duration::ZERO, |silent| pause.saturating_sub(silent));
    if !left.is_zero() {
        return Ok(Some(left));
    }
    report::write(&context.client, key, status).await?;
    report::tell_turns(&context.teller, deployment, status);
    context.notes.said(deployment, status);
    Ok(None)
}

/// When a failed reconcile is tried again.
pub fn retry(deployment: Arc<MiniMaxM1Deployment>, error: &Error, context: Arc<Context>) -> Action {
    let key = Key::of(deployment.as_ref());
    let failures = context.notes.failed(&key);
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
