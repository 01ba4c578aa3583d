//! Why a group does not serve yet: the one cause that must be mended first, in one word and one sentence with names and numbers.

use m1_operator_api::Reason;

use super::restarts;
use crate::{ContainerSeen, EndSeen, GroupSeen, Observed, PodSeen, WorkerPhase};

/// What a group waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The word.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
    /// Whether somebody has to do something; else it passes by itself.
    pub needs_help: bool,
}

impl Trouble {
    pub(super) fn help(reason: Reason, message: String) -> Self {
        Self { reason, message, needs_help: true }
    }

    fn passing(reason: Reason, message: String) -> Self {
        Self { reason, message, needs_help: false }
    }
}

/// A pod that should be gone and is not, in words.
pub fn late(observed: &Observed) -> Option<String> {
    let pods = observed.groups.iter().flat_map(|group| &group.pods);
    let (pod, since) = pods.filter_map(|pod| Some((pod, pod.overdue?))).min_by_key(|(_, since)| *since)?;
    let gone_by = super::seconds(since);
    Some(format!("pod {} should have been gone by {gone_by}: a finalizer or its node holds it", pod.name))
}

/// What keeps a group from serving; none when it serves.
pub fn of(group: &GroupSeen) -> Option<Trouble> {
    if group.is_ready() {
        return None;
    }
    let name = format!("group {}", group.index);
    if group.replicas == 0 {
        let message = format!("{name}: gave its nodes back to an older group, which waits for some too");
        return Some(Trouble::help(Reason::Unschedulable, message));
    }
    if let Some(refusal) = &group.refusal {
        let missing = group.size.saturating_sub(group.pods.len() as u32);
        let message = format!("{name}: {missing} of {} pods are refused by the cluster: {refusal}", group.size);
        return Some(Trouble::help(Reason::PodsRefused, message));
    }
    let found = pods_in_trouble(group).or_else(|| unscheduled(group)).or_else(|| failed(group)).or_else(|| ending(group));
    let found = found.or_else(|| refusing(group)).or_else(|| mistaken(group));
    Some(found.unwrap_or_else(|| passing(group, &name)))
}

/// Images, containers and volumes.
fn pods_in_trouble(group: &GroupSeen) -> Option<Trouble> {
    group.pods.iter().filter(|pod| !pod.deleting).find_map(|pod| {
        if let Some(message) = &pod.volumes {
            return Some(Trouble::help(of_volume(message), format!("pod {}: its volumes are not there: {message}", pod.name)));
        }
        not_started(pod)
    })
}

/// What is missing where a volume is, in the kubelet's words: a claim is called by its volume's name in the cluster, which nobody here knows.
fn of_volume(message: &str) -> Reason {
    let name = message.split_once("volume \"").and_then(|(_, rest)| rest.split_once('"')).map(|(name, _)| name);
    let files = || ["configmap \"", "secret \""].iter().any(|word| message.contains(word));
    match name {
        Some("tls") => Reason::CertificatesUnavailable,
        Some("model" | "model-cache" | "hub-token") | None => Reason::WeightsUnavailable,
        Some(_) if files() => Reason::ContainerNotCreated,
        Some(_) => Reason::WeightsUnavailable,
    }
}

/// A container of a pod that cannot be started: its own, or one beside it.
fn not_started(pod: &PodSeen) -> Option<Trouble> {
    let waits = |reason: &str, message: &str, whose: &str| {
        let says = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
        let word = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
                Reason::ImageUnavailable
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Reason::ContainerNotCreated,
            _ => return None,
        };
        Some(Trouble::help(word, format!("pod {}: {whose}{says}", pod.name)))
    };
    if let ContainerSeen::Waiting { reason, message } = &pod.container
        && let Some(trouble) = waits(reason, message, "")
    {
        return Some(trouble);
    }
    let beside = pod.beside.as_ref()?;
    let whose = format!("container {}: ", beside.container);
    let ended = || {
        let end = beside.last_end.as_ref()?;
        Some(Trouble::help(Reason::CrashLooping, format!("pod {}: {whose}{}", pod.name, ended_with(end))))
    };
    waits(&beside.reason, &beside.message, &whose).or_else(ended)
}

/// Why a pod's containers do not run; none where they do, or will by themselves.
pub fn of_containers(pod: &PodSeen) -> Option<Trouble> {
    not_started(pod).or_else(|| keeps_ending(pod))
}

/// What scheduler-plugins says of a pod of a gang that had a node and lost it for a sibling's sake.
const FOR_A_SIBLING: [&str; 3] = ["optimistic rejection", "rejection in Unreserve", "rejected due to timeout"];

fn unscheduled(group: &GroupSeen) -> Option<Trouble> {
    if let Some((pod, scheduler)) = group.pods.iter().find_map(|pod| Some((pod, pod.unclaimed.as_ref()?))) {
        let message = format!("pod {}: no scheduler has looked at it; it asks for {scheduler}: is that there?", pod.name);
        return Some(Trouble::help(Reason::Unschedulable, message));
    }
    let waiting: Vec<&str> = group.pods.iter().filter(|pod| !pod.deleting).filter_map(|pod| pod.unschedulable.as_deref()).collect();
    // The pod that names what is missing, wherever it stands in the group.
    let telling = waiting.iter().find(|words| !FOR_A_SIBLING.iter().any(|phrase| words.contains(phrase)));
    let words = telling.or(waiting.first())?;
    let message = format!("group {}: {} of {} pods find no node: {words}", group.index, waiting.len(), group.size);
    Some(Trouble::help(Reason::Unschedulable, message))
}

/// A worker that says it cannot serve.
fn failed(group: &GroupSeen) -> Option<Trouble> {
    group.pods.iter().find_map(|pod| {
        let worker = pod.worker.as_ref().filter(|worker| worker.phase == WorkerPhase::Failed)?;
        let message = format!("pod {}: {}: {}", pod.name, worker.reason, worker.message);
        Some(Trouble::help(Reason::WeightsUnavailable, message))
    })
}

/// A worker whose checkpoint is another model than the plan was made for.
fn refusing(group: &GroupSeen) -> Option<Trouble> {
    group.pods.iter().find_map(|pod| {
        let refusal = pod.worker.as_ref()?.refusal.as_ref()?;
        let message = format!("pod {}: refuses its placement: {refusal}; spec.model.config must describe the checkpoint", pod.name);
        Some(Trouble::help(Reason::ArchitectureMismatch, message))
    })
}

/// An address at which somebody else answers: it has passed to another pod, and nobody here has heard of that yet.
fn mistaken(group: &GroupSeen) -> Option<Trouble> {
    group.pods.iter().filter(|pod| !pod.deleting).find_map(|pod| {
        let stranger = pod.stranger.as_ref()?;
        let message = format!("pod {}: somebody else answers at its address: {stranger}", pod.name);
        Some(Trouble::passing(Reason::PodLost, message))
    })
}

/// A process that keeps ending.
fn ending(group: &GroupSeen) -> Option<Trouble> {
    group.pods.iter().find_map(keeps_ending)
}

fn keeps_ending(pod: &PodSeen) -> Option<Trouble> {
    let ContainerSeen::Waiting { reason, .. } = &pod.container else { return None };
    let end = pod.last_end.as_ref().filter(|_| reason == "CrashLoopBackOff")?;
    Some(Trouble::help(Reason::CrashLooping, format!("pod {}: {}", pod.name, ended_with(end))))
}

fn ended_with(end: &EndSeen) -> String {
    let last = end.message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it left no words").trim();
    format!("ended with {}: {last}", restarts::how(end))
}

/// What passes by itself: pods that leave, start, read or meet.
fn passing(group: &GroupSeen, name: &str) -> Trouble {
    let count = |of: fn(&PodSeen) -> bool| group.pods.iter().filter(|pod| of(pod)).count();
    let phase = |phase: WorkerPhase| move |pod: &&PodSeen| pod.worker.as_ref().is_some_and(|worker| worker.phase == phase);
    let size = group.size;
    if let Some(node) = group.pods.iter().filter_map(|pod| pod.node.as_ref()).find(|node| node.gone_since.is_some()) {
        return Trouble::passing(Reason::PodLost, format!("{name}: node {} gives no sign of life", node.name));
    }
    let leaving = count(|pod| pod.deleting);
    if leaving > 0 {
        return Trouble::passing(Reason::PodLost, format!("{name}: {leaving} of {size} pods are ending"));
    }
    let loading = group.pods.iter().filter(phase(WorkerPhase::Loading)).count();
    if loading > 0 {
        let words = group.pods.iter().filter(phase(WorkerPhase::Loading)).filter_map(|pod| pod.worker.as_ref());
        let fetches = words.into_iter().any(|worker| worker.message.starts_with("fetching"));
        let does = if fetches { "fetch" } else { "read" };
        return Trouble::passing(Reason::LoadingWeights, format!("{name}: {loading} of {size} pods {does} their weights"));
    }
    if let Some(pod) = group.pods.iter().find(phase(WorkerPhase::Connecting)) {
        let says = pod.worker.as_ref().map_or("", |worker| worker.message.as_str());
        return Trouble::passing(Reason::ExpertsUnavailable, format!("pod {}: {says}", pod.name));
    }
    let ready = group.ready_pods();
    Trouble::passing(Reason::Starting, format!("{name}: {ready} of {size} pods are ready"))
}
