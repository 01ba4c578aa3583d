//! The status: counters, conditions, memory, weights, groups. Says nothing that was not seen.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::{
    AutoscalingMode, Condition, ConditionStatus, ConditionType, DeploymentStatus, ExpertsStatus, GroupStatus, MemoryStatus, PerGpu,
    PredictedStatus, Reason, Traffic, WeightsStatus,
};

use super::conditions::Conditions;
use super::node_drain::Opened;
use super::rollout::{Blocked, Rolling};
use super::trouble::Trouble;
use super::{Refusal, condition, restarts, since, trouble};
use crate::render::{Scene, endpoint, leader_selector};
use crate::{GroupSeen, Observed, PodSeen, Revision, WorkerPhase};

/// After this, pods that hold their weights and do not serve are not believed to come up by themselves.
const STALLED: Duration = Duration::from_secs(600);
/// What `Degraded=False` says.
const ALL_THERE: &str = "nothing that served is lost";

/// What conditions are made of.
struct Picture<'a> {
    scene: &'a Scene<'a>,
    revision: &'a Revision,
    observed: &'a Observed,
    rolling: &'a Rolling,
    opened: &'a Opened<'a>,
    groups: Vec<GroupStatus>,
    /// The first trouble of a group of the present revision; those that need help first.
    trouble: Option<Trouble>,
}

/// The status of a deployment whose spec is accepted.
pub fn of(scene: &Scene<'_>, revision: &Revision, observed: &Observed, rolling: &Rolling, opened: &Opened<'_>) -> DeploymentStatus {
    let groups = observed.groups.iter().filter(|group| !group.deleting).map(|group| one(group, observed)).collect();
    let mut troubles: Vec<Trouble> = current(observed, revision).filter_map(trouble::of).collect();
    let missing = observed.certificates.as_ref().filter(|certificates| certificates.missing);
    troubles.extend(missing.map(|certificates| Trouble::help(Reason::CertificatesUnavailable, certificates.message.clone())));
    // Without certificates pods wait for a volume: the cause goes before what it causes.
    troubles.sort_by_key(|trouble| (!trouble.needs_help, trouble.reason != Reason::CertificatesUnavailable));
    let trouble = troubles.into_iter().next();
    let picture = Picture { scene, revision, observed, rolling, opened, groups, trouble };
    let conditions = conditions(&picture);
    let mut status = counters(observed, Some(revision));
    status.observed_generation = Some(observed.generation);
    status.selector = Some(leader_selector(scene));
    status.conditions = conditions;
    status.endpoint = Some(endpoint(scene));
    status.memory = memory(scene);
    status.survives_pod_loss = Some(scene.plan.survives_pod_loss.words.clone());
    status.predicted =
        scene.plan.predicted.as_ref().map(|p| PredictedStatus { ms_per_token: p.ms_per_token, from: p.from.clone() });
    status.weights = weights(observed, revision);
    status.experts = experts(observed);
    status.groups = picture.groups;
    status.autoscaling = observed.status.autoscaling.clone();
    // What the spec names is there already; what a default named is kept, so that another default changes nothing.
    let spec = scene.checked.spec();
    status.worker_image = spec.worker.image.is_none().then(|| scene.images.worker.clone());
    status.router_image = spec.router.image.is_none().then(|| scene.images.router.clone());
    status.restarted_at = observed.restarted_at.clone();
    status
}

/// The status of a deployment whose spec is refused: what runs runs on, and is counted; what was planned is not touched.
pub fn refused(refusal: &Refusal, observed: &Observed, opened: &Opened<'_>) -> DeploymentStatus {
    let before = &observed.status;
    let mut conditions = Conditions::new(&before.conditions, observed.generation, observed.now);
    conditions.set(ConditionType::Accepted, false, refusal.reason, &refusal.message);
    conditions.keep(ConditionType::WeightsReady);
    let serving = serving_groups(observed);
    let words = format!("{serving} {} by an earlier spec", if serving == 1 { "group serves" } else { "groups serve" });
    if observed.router.available == 0 && serving > 0 {
        let why = observed.router.why("its pods are starting");
        conditions.set(ConditionType::Available, false, Reason::RouterUnavailable, format!("no router answers: {why}"));
    } else if serving > 0 {
        conditions.set(ConditionType::Available, true, Reason::Serving, words);
    } else {
        conditions.set(ConditionType::Available, false, Reason::NoGroupReady, "no group serves, and the spec is refused");
    }
    conditions.set(ConditionType::Progressing, false, refusal.reason, "nothing changes until the spec is accepted");
    conditions.set(ConditionType::Ready, false, refusal.reason, &refusal.message);
    let lost = observed.groups.iter().filter(|group| was_ready(group, observed)).find_map(trouble::of);
    if let Some(trouble) = lost {
        conditions.set(ConditionType::Degraded, true, trouble.reason, trouble.message);
    } else if let Some(message) = opened.stuck_words("mend the spec, and add a group (replicas: 2)") {
        conditions.set(ConditionType::Degraded, true, Reason::NoHandoverTarget, message);
    } else {
        conditions.set(ConditionType::Degraded, false, Reason::AllThere, ALL_THERE);
    }
    let counted = counters(observed, None);
    let groups = observed.groups.iter().filter(|group| !group.deleting).map(|group| one(group, observed)).collect();
    DeploymentStatus {
        observed_generation: Some(observed.generation),
        replicas: counted.replicas,
        ready_replicas: counted.ready_replicas,
        available_replicas: counted.available_replicas,
        conditions: conditions.done(),
        groups,
        ..before.clone()
    }
}

/// The status of a deployment whose objects the API server would not take: it neither progresses nor is ready. `before` is what was
/// said last: being refused again is no change.
pub fn write_refused(status: &DeploymentStatus, before: &[Condition], words: &str, now: Timestamp) -> DeploymentStatus {
    let mut conditions = Conditions::new(before, status.observed_generation.unwrap_or_default(), now);
    for condition in &status.conditions {
        match condition.kind {
            kind @ (ConditionType::Progressing | ConditionType::Ready) => conditions.set(kind, false, Reason::WriteRefused, words),
            _ => conditions.take(condition.clone()),
        }
    }
    DeploymentStatus { conditions: conditions.done(), ..status.clone() }
}

fn current<'a>(observed: &'a Observed, revision: &'a Revision) -> impl Iterator<Item = &'a GroupSeen> {
    observed.groups.iter().filter(move |group| !group.deleting && group.revision == *revision)
}

/// Whether a group has served: what it lacks is lost.
fn was_ready(group: &GroupSeen, observed: &Observed) -> bool {
    !group.deleting && observed.known(group).is_some_and(|known| known.served)
}

fn serving_groups(observed: &Observed) -> usize {
    observed.groups.iter().filter(|group| group.is_available()).count()
}

fn counters(observed: &Observed, revision: Option<&Revision>) -> DeploymentStatus {
    let count =
        |of: &dyn Fn(&GroupSeen) -> bool| observed.groups.iter().filter(|group| !group.deleting && of(group)).count() as u32;
    DeploymentStatus {
        replicas: count(&|_| true),
        ready_replicas: count(&GroupSeen::is_ready),
        updated_replicas: count(&|group| revision == Some(&group.revision)),
        available_replicas: count(&GroupSeen::is_available),
        ..DeploymentStatus::default()
    }
}

fn one(group: &GroupSeen, observed: &Observed) -> GroupStatus {
    let known = observed.known(group);
    let epochs = group.pods.iter().map(|pod| pod.worker.as_ref().map_or(0, |worker| worker.epoch));
    GroupStatus {
        index: group.index,
        ready_pods: group.ready_pods(),
        pods: group.size,
        revision: Some(group.revision.to_string()),
        // A worker that is away does not undo what was applied; the next revision begins anew.
        epoch: epochs.min().unwrap_or(0).max(known.map_or(0, |known| known.epoch)),
        served: group.is_available() || known.is_some_and(|known| known.served),
        traffic: Some(if group.is_open() { Traffic::Open } else { Traffic::Closed }),
        message: trouble::of(group).map(|trouble| trouble.message),
        restarts: restarts::history(group, known.map_or(&[], |known| &known.restarts)),
    }
}

fn conditions(picture: &Picture<'_>) -> Vec<Condition> {
    let observed = picture.observed;
    let mut conditions = Conditions::new(&observed.status.conditions, observed.generation, observed.now);
    conditions.set(ConditionType::Accepted, true, Reason::SpecAccepted, "the spec is understood and its plan fits");
    weights_ready(picture, &mut conditions);
    available(picture, &mut conditions);
    progressing(picture, &mut conditions);
    ready(picture, &mut conditions);
    degraded(picture, &mut conditions);
    if picture.scene.checked.spec().autoscaling.mode != AutoscalingMode::Off {
        conditions.keep(ConditionType::ScalingReady);
    }
    conditions.done()
}

fn weights_ready(picture: &Picture<'_>, conditions: &mut Conditions<'_>) {
    let pods = || current(picture.observed, picture.revision).flat_map(|group| &group.pods);
    let asked = picture.scene.checked.replicas * picture.scene.checked.pods;
    if asked == 0 {
        return;
    }
    // Nothing reads before a group of the revision is there.
    if pods().next().is_none() && serving_groups(picture.observed) > 0 {
        return conditions.keep(ConditionType::WeightsReady);
    }
    let loaded = |phase: WorkerPhase| matches!(phase, WorkerPhase::Connecting | WorkerPhase::Ready | WorkerPhase::Draining);
    // A pod that is ready holds them, also before its worker was heard: a new leader hears them one by one.
    let holds = |pod: &PodSeen| pod.ready || pod.worker.as_ref().is_some_and(|worker| loaded(worker.phase));
    let hold = pods().filter(|pod| holds(pod)).count() as u32;
    let message = format!("{hold} of {asked} pods hold their weights");
    match &picture.trouble {
        Some(trouble) if trouble.reason == Reason::WeightsUnavailable => {
            conditions.set(ConditionType::WeightsReady, false, trouble.reason, &trouble.message);
        }
        _ if hold >= asked => conditions.set(ConditionType::WeightsReady, true, Reason::WeightsLoaded, message),
        _ => conditions.set(ConditionType::WeightsReady, false, Reason::LoadingWeights, message),
    }
}

fn available(picture: &Picture<'_>, conditions: &mut Conditions<'_>) {
    let (serving, routers) = (serving_groups(picture.observed), picture.observed.router.available);
    let kind = ConditionType::Available;
    if routers == 0 {
        let why = picture.observed.router.why("its pods are starting");
        conditions.set(kind, false, Reason::RouterUnavailable, format!("no router answers: {why}"));
    } else if !picture.observed.router.has_service {
        conditions.set(kind, false, Reason::RouterUnavailable, "no Service of this deployment leads to its routers");
    } else if picture.scene.checked.replicas == 0 && serving == 0 {
        conditions.set(kind, false, Reason::ScaledToZero, "spec.replicas is 0: the router answers 503 with Retry-After");
    } else if serving == 0 {
        let old = || picture.observed.groups.iter().filter(|group| !group.deleting).find_map(trouble::of);
        let why = picture.trouble.clone().or_else(old).map_or("groups are starting".to_owned(), |trouble| trouble.message);
        conditions.set(kind, false, Reason::NoGroupReady, format!("no group serves: {why}"));
    } else {
        let groups = if serving == 1 { "1 group serves".to_owned() } else { format!("{serving} groups serve") };
        conditions.set(kind, true, Reason::Serving, groups);
    }
}

/// Whether something is on its way, and whether it gets anywhere.
fn progressing(picture: &Picture<'_>, conditions: &mut Conditions<'_>) {
    let (holds, reason, message) = progress(picture);
    conditions.set(ConditionType::Progressing, holds, reason, message);
}

fn progress(picture: &Picture<'_>) -> (bool, Reason, String) {
    let (observed, replicas) = (picture.observed, picture.scene.checked.replicas);
    let updated = current(observed, picture.revision).count() as u32;
    let old = observed.groups.iter().filter(|group| group.revision != *picture.revision).count();
    match picture.rolling.blocked {
        Some(Blocked::Paused) => {
            let there = updated as usize + old;
            let message = format!("rollout.paused is set: {updated} of {replicas} groups are up to date, {there} are there");
            return (false, Reason::RolloutPaused, message);
        }
        Some(Blocked::NoHandoverTarget) => {
            let message = format!(
                "{old} of the groups is of an old revision and the only one that serves; replacing it would leave none: set \
                 rollout.maxSurge: 1 (needs GPUs for one more group) or rollout.allowDowntime: true"
            );
            return (false, Reason::NoHandoverTarget, message);
        }
        Some(Blocked::Routers) => {
            let why = observed.router.why("pods are being replaced");
            let message = format!("groups that speak encrypted are there; first all routers get their certificate: {why}");
            return (observed.router.trouble.is_none(), Reason::RollingOut, message);
        }
        None => {}
    }
    if let Some(trouble) = picture.trouble.as_ref().filter(|trouble| trouble.needs_help) {
        return (false, trouble.reason, trouble.message.clone());
    }
    let late = trouble::late(observed).map(|words| format!("; {words}")).unwrap_or_default();
    if old > 0 {
        return (true, Reason::RollingOut, format!("{updated} of {replicas} groups are of revision {}{late}", picture.revision));
    }
    let leaving = observed.groups.iter().filter(|group| group.deleting || picture.rolling.is_closed(group)).count();
    if updated != replicas || leaving > 0 {
        return (true, Reason::Scaling, format!("{updated} groups, {replicas} asked for{late}"));
    }
    match &picture.trouble {
        Some(trouble) if waits_in_vain(trouble) && stalls_in(observed).is_some_and(|left| left.is_zero()) => {
            let minutes = STALLED.as_secs() / 60;
            (false, Reason::Stalled, format!("nothing has come of it for {minutes} minutes: {}", trouble.message))
        }
        Some(trouble) => (true, trouble.reason, trouble.message.clone()),
        None if !observed.router.settled => {
            let why = observed.router.why("pods are being replaced");
            (observed.router.trouble.is_none(), Reason::RouterUnavailable, format!("routers: {why}"))
        }
        None => (false, Reason::Serving, "everything that was asked for is there".to_owned()),
    }
}

/// Whether a trouble should be over soon where all weights are read. What reads is ended by its start-up probe; what is lost has times of
/// its own.
fn waits_in_vain(trouble: &Trouble) -> bool {
    matches!(trouble.reason, Reason::Starting | Reason::ExpertsUnavailable)
}

/// When pods that hold their weights and do not serve have done so for too long; zero where they have, none where they do serve.
pub fn stalls_in(observed: &Observed) -> Option<Duration> {
    let since_when = |kind, holds: ConditionStatus| {
        let known = condition(&observed.status, kind).filter(|condition| condition.status == holds)?;
        known.last_transition_time.parse().ok()
    };
    let loaded: Timestamp = since_when(ConditionType::WeightsReady, ConditionStatus::True)?;
    let unready = since_when(ConditionType::Ready, ConditionStatus::False)?;
    Some(STALLED.saturating_sub(since(loaded.max(unready), observed.now)))
}

fn ready(picture: &Picture<'_>, conditions: &mut Conditions<'_>) {
    let (observed, replicas) = (picture.observed, picture.scene.checked.replicas);
    let ready = current(observed, picture.revision).filter(|group| group.is_available()).count() as u32;
    let all = observed.groups.len() as u32;
    let kind = ConditionType::Ready;
    let summary = format!("{ready} of {replicas} groups serve revision {}", picture.revision);
    let helpless = picture.trouble.as_ref().filter(|trouble| trouble.needs_help);
    if let Some(trouble) = helpless {
        conditions.set(kind, false, trouble.reason, format!("{summary}; {}", trouble.message));
    } else if observed.router.available == 0 {
        let why = observed.router.why("its pods are starting");
        conditions.set(kind, false, Reason::RouterUnavailable, format!("no router answers: {why}"));
    } else if !observed.router.settled {
        let why = observed.router.why("pods are being replaced");
        conditions.set(kind, false, Reason::RouterUnavailable, format!("{summary}; routers are not what was asked for: {why}"));
    } else if replicas == 0 && all == 0 {
        conditions.set(kind, true, Reason::ScaledToZero, "spec.replicas is 0, and no group is there");
    } else if ready == replicas && all == replicas {
        conditions.set(kind, true, Reason::Serving, summary);
    } else if let Some(trouble) = &picture.trouble {
        conditions.set(kind, false, trouble.reason, format!("{summary}; {}", trouble.message));
    } else {
        let (_, reason, message) = progress(picture);
        conditions.set(kind, false, reason, format!("{summary}; {message}"));
    }
}

fn degraded(picture: &Picture<'_>, conditions: &mut Conditions<'_>) {
    let kind = ConditionType::Degraded;
    let budget = &picture.scene.checked.spec().worker.restart_budget;
    let (resumed, now) = (picture.observed.resumed_at, picture.observed.now);
    let worn = picture.groups.iter().find(|group| restarts::exhausted(&group.restarts, budget, resumed, now));
    // What a rollout takes away is not lost.
    let stays = |group: &&GroupSeen| !picture.rolling.is_closed(group) && !picture.rolling.is_deleted(group);
    let served = || picture.observed.groups.iter().filter(|group| was_ready(group, picture.observed)).filter(stays);
    if let Some(group) = worn {
        let (used, last) = (restarts::used(&group.restarts, budget, resumed, now), group.restarts.first());
        let how = last.map(|record| format!("; last: pod {}, {}", record.pod, record.how)).unwrap_or_default();
        let message = format!(
            "group {}: {used} ends within {} s, the budget is {}{how}; its pods stay, and the kubelet tries them with its own pauses; kubectl m1 resume gives it another",
            group.index, budget.window_seconds, budget.restarts
        );
        conditions.set(kind, true, Reason::RestartBudgetExhausted, message);
    } else if let Some(message) = picture.opened.stuck_words("add a group (replicas: 2), or set rollout.allowDowntime: true") {
        conditions.set(kind, true, Reason::NoHandoverTarget, message);
    } else if let Some(trouble) = served().find_map(trouble::of) {
        conditions.set(kind, true, trouble.reason, trouble.message);
    } else if let Some(certificates) = picture.observed.certificates.as_ref().filter(|certificates| !certificates.missing) {
        conditions.set(kind, true, Reason::CertificatesUnavailable, &certificates.message);
    } else {
        conditions.set(kind, false, Reason::AllThere, ALL_THERE);
    }
}

fn memory(scene: &Scene<'_>) -> Option<MemoryStatus> {
    let bytes = scene.plan.template()?.bytes.per_device;
    let per_gpu = PerGpu {
        experts: bytes.experts.0,
        attention: bytes.attention.0,
        kv: bytes.kv.0,
        state: bytes.state.0,
        snapshots: 0,
        free: bytes.free.0,
    };
    Some(MemoryStatus { per_gpu })
}

/// Bytes that workers of the present revision have read; none before one has said what it reads.
fn weights(observed: &Observed, revision: &Revision) -> Option<WeightsStatus> {
    let pods = || current(observed, revision).flat_map(|group| &group.pods);
    if pods().any(|pod| pod.ready && pod.worker.is_none()) {
        return observed.status.weights.clone();
    }
    let workers = || pods().filter_map(|pod| pod.worker.as_ref());
    let total: u64 = workers().map(|worker| worker.bytes_total).sum();
    let loaded: u64 = workers().map(|worker| worker.bytes_loaded.min(worker.bytes_total)).sum();
    let left = total.saturating_sub(loaded);
    let eta = observed.pace.filter(|pace| left > 0 && *pace > 0.0).map(|pace| duration((left as f64 / pace).ceil() as u64));
    (total > 0).then_some(WeightsStatus { bytes_loaded: loaded, bytes_total: total, eta })
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds.div_ceil(60)),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

fn experts(observed: &Observed) -> Option<ExpertsStatus> {
    let epoch = observed.groups.iter().filter_map(|group| group.placement.as_ref()).map(|placement| placement.spec.epoch).max()?;
    // With one copy of everything, a pod that is away takes its experts with it.
    let unavailable = observed.groups.iter().filter(|group| !group.deleting).map(unavailable).max().unwrap_or(0);
    Some(ExpertsStatus { epoch, balancedness: observed.status.experts.as_ref().and_then(|e| e.balancedness.clone()), unavailable })
}

/// (layer, expert) pairs of a group's placement that no ready pod holds.
fn unavailable(group: &GroupSeen) -> u32 {
    let Some(placement) = &group.placement else { return 0 };
    let (layers, experts) = (placement.spec.layers as usize, placement.spec.experts as usize);
    let there = |name: &str| group.pods.iter().any(|pod| pod.name == name && pod.ready && !pod.deleting);
    let held = placement.spec.pods.iter().filter(|pod| there(&pod.pod));
    let sets = held.filter_map(|pod| m1_arch::ExpertSet::from_hex(layers, experts, &pod.holds).ok());
    let covered = sets.fold(m1_arch::ExpertSet::empty(layers, experts), |all, set| all.union(&set));
    (layers * experts - covered.len()) as u32
}
