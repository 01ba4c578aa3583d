//! Pods and groups that are lost or in the way: pods on nodes that are gone, groups on their way, groups that give their place to
//! an older one.

use std::time::Duration;

use m1_operator_api::{ConditionStatus, ConditionType};

use super::{PodDeletion, since, sooner, trouble};
use crate::{GroupSeen, Observed};

/// How long a restart of a process, the reading of small weights and a new connection may take.
const BLIP: Duration = Duration::from_secs(60);

/// While most nodes are silent, it is looked again after this: a node that stays silent when others come back tells nobody.
const OUTAGE: Duration = Duration::from_secs(30);

/// What to delete, and when to look again.
#[derive(Debug, Default)]
pub struct Deletions {
    /// The pods.
    pub pods: Vec<PodDeletion>,
    /// When the next node's time is over.
    pub look_again: Option<Duration>,
}

/// Pods whose node has given no sign of life for longer than the spec allows. Nobody else would end them: their kubelet is gone,
/// and their StatefulSet makes no other pod of the same name while they exist. While most nodes seem gone, none is believed to be:
/// their pods may well serve. And pods whose StatefulSet somebody deleted without them: they hold their nodes and nobody's name.
pub fn pods(observed: &Observed, unreachable_seconds: u32) -> Deletions {
    let limit = Duration::from_secs(unreachable_seconds.into());
    let mut deletions = Deletions::default();
    let orphans = observed.groups.iter().filter(|group| group.orphaned).flat_map(|group| &group.pods).filter(|pod| !pod.deleting);
    deletions.pods.extend(orphans.map(|pod| PodDeletion {
        name: pod.name.clone(),
        why: "its StatefulSet is gone".to_owned(),
        force: false,
    }));
    if observed.outage {
        deletions.look_again = Some(OUTAGE);
        return deletions;
    }
    for pod in observed.groups.iter().flat_map(|group| &group.pods).chain(&observed.router.pods) {
        let Some((node, gone)) = pod.node.as_ref().and_then(|node| Some((node, node.gone_since?))) else { continue };
        let age = since(gone, observed.now);
        if age < limit {
            sooner(&mut deletions.look_again, Some(limit - age));
            continue;
        }
        let why = format!("node {} has given no sign of life for {unreachable_seconds} s", node.name);
        deletions.pods.push(PodDeletion { name: pod.name.clone(), why, force: true });
    }
    deletions
}

/// Whether a pod of the group is on its way out: its experts go with it, so the group takes nothing new until it is whole.
pub fn is_leaving(group: &GroupSeen) -> bool {
    group.pods.iter().any(|pod| pod.deleting)
}

/// Whether a group serves nobody and will not by itself: it never did, something has to be mended, or nobody has been served for a
/// while. A pod that is away for a moment makes all pods of its group unready, so that alone says nothing.
pub fn is_broken(group: &GroupSeen, observed: &Observed) -> bool {
    if group.ready_pods() > 0 || !group.is_idle() {
        return false;
    }
    let never_served = observed.known(group).is_none_or(|known| known.epoch == 0);
    let helpless = trouble::of(group).is_some_and(|trouble| trouble.needs_help);
    let unavailable = super::condition(&observed.status, ConditionType::Available).filter(|c| c.status == ConditionStatus::False);
    let since_when = unavailable.and_then(|condition| condition.last_transition_time.parse().ok());
    never_served || helpless || since_when.is_some_and(|time| since(time, observed.now) >= BLIP)
}

/// Whether a group that waits for nodes gives back those it has, because an older group waits too. Less than a whole group
/// serves nobody, so two halves are worth less than one whole.
pub fn gives_way(group: &GroupSeen, all: &[GroupSeen]) -> bool {
    let older = |other: &&GroupSeen| (other.created, other.index) < (group.created, group.index);
    // What serves, or only lost a pod that is being made anew, keeps its nodes.
    let waits = group.replicas == 0 || (waits_for_nodes(group) && group.ready_pods() == 0);
    waits && all.iter().filter(|other| !other.deleting && other.name != group.name).filter(older).any(waits_for_nodes)
}

/// Whether pods of a group find no node.
fn waits_for_nodes(group: &GroupSeen) -> bool {
    group.pods.iter().any(|pod| pod.unschedulable.is_some() && !pod.deleting)
}
