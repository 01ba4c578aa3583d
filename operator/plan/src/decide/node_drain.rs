//! Draining nodes: which group's budget is open, so that its pods may be evicted. One group at a time, and only where as many others
//! take its requests meanwhile as a rollout would leave.

use k8s_openapi::jiff::Timestamp;

use super::{Rolling, trouble};
use crate::{GroupSeen, RouterSeen};

/// What a node that is being emptied leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The group whose pods may be evicted.
    pub group: Option<&'a str>,
    /// The node that waits and the group that has nowhere to hand its requests.
    pub stuck: Option<(&'a str, u32)>,
}

impl Opened<'_> {
    /// The sentence of a node that waits; `way_out` is what can be done about it.
    pub fn stuck_words(&self, way_out: &str) -> Option<String> {
        let (node, group) = self.stuck?;
        Some(format!("node {node} is being drained, and group {group} is the only one that serves: {way_out}"))
    }
}

/// Chooses the group that is opened: as many others as `least` serve.
pub fn opened<'a>(
    (groups, routers): (&'a [GroupSeen], &RouterSeen),
    rolling: &Rolling,
    least: usize,
    now: Timestamp,
) -> Opened<'a> {
    let staying = || groups.iter().filter(|group| !group.deleting && !rolling.is_deleted(group));
    let wanted: Vec<(&GroupSeen, &str)> = staying().filter_map(|group| cordoned_node(group).map(|node| (group, node))).collect();
    // A group whose pods are already moving goes first; then what serves least.
    let next = wanted.iter().min_by_key(|(group, _)| {
        let moving = group.pods.iter().any(|pod| pod.deleting);
        (!moving, group.is_available(), group.sequences(), group.index)
    });
    let Some((group, node)) = next else { return Opened::default() };
    let others = staying().filter(|other| other.stands_in_for(group, routers, now) && !rolling.is_closed(other)).count();
    // What does not serve loses nothing by moving; a closed group serves until its last sequence has ended.
    let serves = group.is_ready() && (group.is_open() || !group.is_idle());
    if others >= least || !serves {
        return Opened { group: Some(&group.name), stuck: None };
    }
    // Where another is on its way, this one only waits for its turn.
    let comes = |other: &GroupSeen| trouble::of(other).is_none_or(|trouble| !trouble.needs_help);
    let coming = staying().any(|other| other.name != group.name && comes(other));
    Opened { group: None, stuck: (!coming).then_some((node, group.index)) }
}

fn cordoned_node(group: &GroupSeen) -> Option<&str> {
    group.pods.iter().filter_map(|pod| pod.node.as_ref()).find(|node| node.cordoned).map(|node| node.name.as_str())
}
