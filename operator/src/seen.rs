//! From Kubernetes' objects to what the planner sees of them. Says nothing that the object does not.

use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use m1_operator_api::labels;
use m1_operator_plan::{ContainerSeen, EndSeen, NodeSeen, PodSeen};

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

/// The scheduler of a pod that none has looked at yet: it has neither a node nor a word why not.
pub fn unclaimed(pod: &Pod) -> Option<String> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let told = pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|it| it.type_ == "PodScheduled");
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.clone());
    (node.is_none() && !told).then(|| scheduler.unwrap_or_else(|| "default-scheduler".to_owned()))
}

/// Drops what nobody here asks of a pod: with ten thousand of them it is most of the memory.
pub fn strip(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        let (node_name, scheduler_name) = (spec.node_name.take(), spec.scheduler_name.take());
        // Asked for until a node is there.
        let scheduler_name = scheduler_name.filter(|_| node_name.is_none());
        *spec = k8s_openapi::api::core::v1::PodSpec { node_name, scheduler_name, ..Default::default() };
    }
    if let Some(status) = &mut pod.status {
        status.host_ips = None;
        status.pod_ips = None;
        status.init_container_statuses = None;
        for container in status.container_statuses.iter_mut().flatten() {
            container.image_id = String::new();
            container.volume_mounts = None;
            container.resources = None;
            container.allocated_resources = None;
        }
    }
}

/// A pod whose work is done by the container of a name. What its worker says, and more than its node's name, comes from elsewhere.
pub fn pod(pod: &Pod, container: &str) -> PodSeen {
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True");
    let container = status.and_then(|status| status.container_statuses.as_ref()?.iter().find(|status| status.name == container));
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    PodSeen {
        name: pod.name_any(),
        index: pod.labels().get(labels::POD_INDEX).and_then(|index| index.parse().ok()).unwrap_or(0),
        created: pod.creation_timestamp().map(|time| time.0),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        ready: ready.is_some(),
        ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0),
        node: node.map(|name| NodeSeen { name: name.clone(), ..NodeSeen::default() }),
        unschedulable: status.and_then(unschedulable),
        container: container.map(container_state).unwrap_or_default(),
        last_end: container.and_then(last_end),
        ..PodSeen::default()
    }
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
