//! From Kubernetes' objects to what the planner sees of them. Says nothing that the object does not.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use m1_operator_api::labels;
use m1_operator_plan::render::GroupRef;
use m1_operator_plan::{BesideSeen, ContainerSeen, EndSeen, NodeSeen, PodSeen, Revision};

/// A pod of a deployment. Holds what is asked of it and no more: with ten thousand pods the rest would be most of the memory, and reading it
/// at each look most of the time.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownPod {
    /// What the planner sees of it by its own object alone.
    pub seen: PodSeen,
    /// Uid.
    pub uid: String,
    /// Whether it is a worker or a router: the name of its label and of its container.
    pub component: String,
    /// The group that its labels speak of.
    pub group: Option<GroupRef>,
    /// When it is gone at the latest, where it is on its way out.
    pub leaves_by: Option<Timestamp>,
    /// The scheduler that it asks for, where none has looked at it yet.
    pub unclaimed: Option<String>,
    /// Its address, where its container runs.
    pub address: Option<String>,
    /// It was evicted, or has ended otherwise for good, and only lies there.
    pub ended: bool,
}

/// A node.
pub fn node(node: &Node) -> NodeSeen {
    // False is a kubelet that reports trouble; Unknown is one that does not report.
    let mut conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let silent = conditions.find(|condition| condition.type_ == "Ready" && condition.status == "Unknown");
    NodeSeen {
        name: node.name_any(),
        cordoned: is_emptied(node),
        gone_since: silent.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0),
    }
}

/// Taints of those who empty nodes without cordoning them: Karpenter, the cluster autoscaler.
const EMPTIED: [&str; 3] = ["karpenter.sh/disrupted", "karpenter.sh/disruption", "ToBeDeletedByClusterAutoscaler"];

fn is_emptied(node: &Node) -> bool {
    let Some(spec) = &node.spec else { return false };
    let mut taints = spec.taints.iter().flatten();
    spec.unschedulable.unwrap_or(false) || taints.any(|taint| EMPTIED.contains(&taint.key.as_str()))
}

/// Name of a pod's group.
pub fn group_of(pod: &str) -> Option<&str> {
    pod.rsplit_once('-').map(|(group, _)| group)
}

/// The group that labels speak of.
pub fn group(given: &BTreeMap<String, String>) -> Option<GroupRef> {
    let number = |key: &str| given.get(key).and_then(|text| text.parse::<u32>().ok());
    Some(GroupRef {
        index: number(labels::GROUP_INDEX)?,
        revision: Revision::from_label(given.get(labels::REVISION)?),
        size: number(labels::SIZE)?,
    })
}

/// The scheduler of a pod that none has looked at yet: it has neither a node nor a word why not.
fn unclaimed(pod: &Pod) -> Option<String> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let told = pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|it| it.type_ == "PodScheduled");
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.clone());
    (node.is_none() && !told).then(|| scheduler.unwrap_or_else(|| "default-scheduler".to_owned()))
}

/// A pod. What its worker says, and more than its node's name, comes from elsewhere.
pub fn pod(pod: &Pod) -> KnownPod {
    let component = pod.labels().get(labels::APP_COMPONENT).cloned().unwrap_or_default();
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True");
    let (own, others): (Vec<_>, Vec<_>) =
        status.map(containers).unwrap_or_default().into_iter().partition(|it| it.name == component);
    let container = own.first().copied();
    let state = container.map(container_state).unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    KnownPod {
        uid: pod.uid().unwrap_or_default(),
        group: group(pod.labels()),
        leaves_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        unclaimed: unclaimed(pod),
        address: status.and_then(|status| status.pod_ip.clone()).filter(|_| state == ContainerSeen::Running),
        ended: status.and_then(|status| status.phase.as_deref()).is_some_and(|phase| matches!(phase, "Failed" | "Succeeded")),
        seen: PodSeen {
            name: pod.name_any(),
            index: pod.labels().get(labels::POD_INDEX).and_then(|index| index.parse().ok()).unwrap_or(0),
            created: pod.creation_timestamp().map(|time| time.0),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            ready: ready.is_some(),
            ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0),
            node: node.map(|name| NodeSeen { name: name.clone(), ..NodeSeen::default() }),
            unschedulable: status.and_then(unschedulable),
            container: state,
            last_end: container.and_then(last_end),
            beside: others.into_iter().find_map(beside),
            ..PodSeen::default()
        },
        component,
    }
}

/// All containers of a pod; those first that the others wait for.
fn containers(status: &PodStatus) -> Vec<&ContainerStatus> {
    let (before, own) = (&status.init_container_statuses, &status.container_statuses);
    before.iter().chain(own).flatten().collect()
}

/// A container that waits, where it is not its turn that it waits for.
fn beside(status: &ContainerStatus) -> Option<BesideSeen> {
    let last_end = last_end(status);
    let (reason, message) = match container_state(status) {
        ContainerSeen::Waiting { reason, message } if !matches!(reason.as_str(), "PodInitializing" | "ContainerCreating") => {
            (reason, message)
        }
        // Between two tries the kubelet shows how it ended.
        ContainerSeen::Ended if status.restart_count > 0 && last_end.as_ref().is_some_and(|end| end.code != 0) => {
            ("CrashLoopBackOff".to_owned(), String::new())
        }
        _ => return None,
    };
    Some(BesideSeen { container: status.name.clone(), reason, message, last_end })
}

/// Why no node takes a pod, in the scheduler's words.
fn unschedulable(status: &PodStatus) -> Option<String> {
    let conditions = status.conditions.iter().flatten();
    let refused = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(refused.message.clone().unwrap_or_default())
}

fn container_state(status: &ContainerStatus) -> ContainerSeen {
    let Some(state) = &status.state else { return ContainerSeen::Unknown };
    if let Some(waiting) = &state.waiting {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        return ContainerSeen::Waiting { reason: text(&waiting.reason), message: text(&waiting.message) };
    }
    if state.running.is_some() {
        return ContainerSeen::Running;
    }
    if state.terminated.is_some() { ContainerSeen::Ended } else { ContainerSeen::Unknown }
}

/// The newest end of a container: its present one, or its last.
fn last_end(status: &ContainerStatus) -> Option<EndSeen> {
    let states = [&status.state, &status.last_state];
    let end = states.into_iter().flatten().find_map(|state| state.terminated.as_ref())?;
    Some(EndSeen {
        time: end.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        code: end.exit_code,
        reason: end.reason.clone().unwrap_or_default(),
        message: end.message.clone().unwrap_or_default(),
    })
}
