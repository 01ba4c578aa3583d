//! What to do about a deployment: observed state and plan -> objects, placements, deletions, status. Pure: whoever carries a
//! [`Decision`] out has nothing left to decide, and deciding again about the result changes nothing.

mod conditions;
mod lost;
mod node_drain;
mod restarts;
mod rollout;
mod status;
mod trouble;

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::{
    AppliedPod, Condition, DeploymentStatus, ExpertPlacementSpec, ExpertPlacementStatus, Reason, TlsMode, Traffic,
};

use crate::render::{GroupRef, Scene, first_placement as placement_spec};
use crate::{GroupSeen, Kind, Object, Observed, PlacementSeen, Revision, WorkerSeen};

pub use conditions::seconds;
use rollout::Rolling;
pub use status::write_refused;
pub use trouble::of_containers as container_trouble;

/// Why a spec leads to no plan: what stands in `Accepted=False`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The fields, with numbers.
    pub message: String,
}

/// Everything that is to be done, and what is to be said.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// Objects that should be so.
    pub apply: Vec<Object>,
    /// Objects that stay as they are, beside those in `apply`. All others of the deployment's go.
    pub keep: BTreeSet<(Kind, String)>,
    /// Placements to write.
    pub placements: Vec<PlacementWrite>,
    /// What placements' pods have applied, by the placement's name; only what differs from what stands there.
    pub applied: Vec<(String, ExpertPlacementStatus)>,
    /// Pods to delete.
    pub pods: Vec<PodDeletion>,
    /// Disruption budgets of groups, by name, and how many pods each lets go: after a refused spec, when nothing else is rendered.
    pub budgets: Vec<(String, u32)>,
    /// The status.
    pub status: DeploymentStatus,
    /// When to decide again though nothing happens.
    pub look_again: Option<Duration>,
    /// Whether objects that are not named here are to be deleted. Not after a refused spec.
    pub prune: bool,
}

/// A placement to write.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacementWrite {
    /// Name of the object.
    pub name: String,
    /// Group and revision.
    pub group: GroupRef,
    /// What it should say.
    pub spec: ExpertPlacementSpec,
    /// Since when the group takes no requests.
    pub closed_since: Option<Timestamp>,
    /// The version it replaces; none where it is new.
    pub resource_version: Option<String>,
}

/// A pod to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDeletion {
    /// Name of the pod.
    pub name: String,
    /// Why, for the event.
    pub why: String,
    /// Without its kubelet's word: that is gone.
    pub force: bool,
}

/// Decides about an accepted spec. `restarted_at` is part of `revision` already.
pub fn decide(scene: &Scene<'_>, revision: &Revision, observed: &Observed, lease_transitions: u64) -> Decision {
    let spec = scene.checked.spec();
    let size = scene.checked.pods;
    let rolling = rollout::roll(&rollout::Wish {
        target: revision,
        replicas: scene.checked.replicas,
        rollout: &spec.rollout,
        drain: Duration::from_secs(spec.worker.drain_seconds.into()),
        groups: &observed.groups,
        routers: &observed.router,
        // No router knows a group without a placement, and nobody can make that of an old one again.
        broken: &|group| lost::is_broken(group, observed) || (group.placement.is_none() && group.revision != *revision),
        now: observed.now,
        startless: spec.tls.mode != TlsMode::Off && observed.certificates.as_ref().is_some_and(|certificates| certificates.missing),
    });
    let mut decision = Decision { apply: scene.shared(), prune: true, look_again: rolling.look_again, ..Decision::default() };
    let least = if spec.rollout.allow_downtime { 0 } else { rollout::least(scene.checked.replicas, &spec.rollout).max(1) };
    let opened = node_drain::opened((&observed.groups, &observed.router), &rolling, least, observed.now);
    for group in observed.groups.iter().filter(|group| !group.deleting && !rolling.is_deleted(group)) {
        existing_group(scene, revision, (group, &observed.groups), &mut decision, opened.group == Some(group.name.as_str()));
        let traffic = if rolling.is_closed(group) || lost::is_leaving(group) { Traffic::Closed } else { Traffic::Open };
        decision.placements.extend(placement(scene, revision, group, traffic, lease_transitions, observed.now));
        decision.applied.extend(applied(group));
    }
    for index in &rolling.create {
        let group = GroupRef { index: *index, revision: revision.clone(), size };
        new_group(scene, &group, &mut decision, lease_transitions);
    }
    let deletions = lost::pods(observed, spec.worker.unreachable_seconds);
    decision.pods = deletions.pods;
    sooner(&mut decision.look_again, deletions.look_again);
    decision.status = status::of(scene, revision, observed, &rolling, &opened);
    sooner(&mut decision.look_again, restarts::next_expiry(spec, observed));
    sooner(&mut decision.look_again, status::stalls_in(observed).filter(|left| !left.is_zero()));
    decision
}

/// Decides about a spec that was refused: nothing that runs changes, and the status says why. Healing goes on: groups that were
/// closed for a pod that left, or for a rollout that is off now, take requests again, pods on dead nodes are let go, and nodes can be
/// drained as long as another group serves.
pub fn refuse(refusal: &Refusal, observed: &Observed, unreachable_seconds: u32) -> Decision {
    let opened = node_drain::opened((&observed.groups, &observed.router), &Rolling::default(), 1, observed.now);
    let mut decision = Decision { status: status::refused(refusal, observed, &opened), ..Decision::default() };
    for group in observed.groups.iter().filter(|group| !group.deleting) {
        let evictable = if opened.group == Some(group.name.as_str()) { group.size } else { 0 };
        decision.budgets.push((group.name.clone(), evictable));
        let Some(seen) = &group.placement else { continue };
        let traffic = if lost::is_leaving(group) { Traffic::Closed } else { Traffic::Open };
        let wanted = ExpertPlacementSpec { traffic, ..seen.spec.clone() };
        decision.placements.extend(rewrite(group, seen, wanted, observed.now));
    }
    let deletions = lost::pods(observed, unreachable_seconds);
    decision.pods = deletions.pods;
    decision.look_again = deletions.look_again;
    decision
}

/// A group that is there and stays: everything around it is kept right; its StatefulSet only in the present revision.
fn existing_group(
    scene: &Scene<'_>,
    revision: &Revision,
    (group, all): (&GroupSeen, &[GroupSeen]),
    decision: &mut Decision,
    open: bool,
) {
    let reference = group.reference();
    decision.apply.extend(scene.around(&reference, open));
    if group.revision == *revision {
        let replicas = if lost::gives_way(group, all) { 0 } else { group.size };
        decision.apply.extend(scene.group(&reference, replicas));
    } else {
        for kind in [Kind::StatefulSet, Kind::PodGroup, Kind::VolcanoPodGroup] {
            decision.keep.insert((kind, group.name.clone()));
        }
    }
    decision.keep.insert((Kind::ExpertPlacement, group.name.clone()));
}

fn new_group(scene: &Scene<'_>, group: &GroupRef, decision: &mut Decision, lease_transitions: u64) {
    decision.apply.extend(scene.around(group, false));
    decision.apply.extend(scene.group(group, group.size));
    let name = scene.group_name(group);
    decision.keep.insert((Kind::ExpertPlacement, name.clone()));
    decision.placements.push(PlacementWrite {
        name,
        group: group.clone(),
        spec: placement_spec(scene, group, lease_transitions),
        closed_since: None,
        resource_version: None,
    });
}

/// The write that brings a group's placement to what it should say, if it does not say so already.
fn placement(
    scene: &Scene<'_>,
    revision: &Revision,
    group: &GroupSeen,
    traffic: Traffic,
    lease_transitions: u64,
    now: Timestamp,
) -> Option<PlacementWrite> {
    let Some(seen) = &group.placement else {
        // Without the old spec nobody knows what an old group held; it serves on with what its workers know.
        return (group.revision == *revision).then(|| PlacementWrite {
            name: group.name.clone(),
            spec: ExpertPlacementSpec { traffic, ..placement_spec(scene, &group.reference(), lease_transitions) },
            group: group.reference(),
            closed_since: (traffic == Traffic::Closed).then_some(now),
            resource_version: None,
        });
    };
    let mut wanted = seen.spec.clone();
    if group.revision == *revision {
        // Holdings are the balancer's from the first placement on; addresses and counts are the plan's.
        let fresh = placement_spec(scene, &group.reference(), lease_transitions);
        let same_pods = fresh.pods.iter().map(|pod| &pod.pod).eq(wanted.pods.iter().map(|pod| &pod.pod));
        if !same_pods || (fresh.layers, fresh.experts) != (wanted.layers, wanted.experts) {
            wanted = ExpertPlacementSpec { epoch: wanted.epoch + 1, lease_transitions: wanted.lease_transitions, ..fresh };
        }
    }
    let write = rewrite(group, seen, ExpertPlacementSpec { traffic, ..wanted }, now)?;
    Some(PlacementWrite { spec: ExpertPlacementSpec { lease_transitions, ..write.spec }, ..write })
}

/// What the pods of a group have applied, where that is news. A pod that has not been heard keeps what was known of it: a new leader
/// hears them one by one.
fn applied(group: &GroupSeen) -> Option<(String, ExpertPlacementStatus)> {
    let seen = group.placement.as_ref()?;
    let of = |name: &str| -> Option<AppliedPod> {
        let pod = group.pods.iter().find(|pod| pod.name == name && !pod.deleting)?;
        let known = || seen.status.pods.iter().find(|known| known.pod == name).cloned();
        let said = |worker: &WorkerSeen| AppliedPod { pod: name.to_owned(), epoch: worker.epoch, digest: worker.digest.clone() };
        pod.worker.as_ref().map(said).or_else(known)
    };
    let pods: Option<Vec<AppliedPod>> = seen.spec.pods.iter().map(|holding| of(&holding.pod)).collect();
    let pods = pods?;
    let applied_epoch = pods.iter().map(|pod| pod.epoch).min()?;
    // Pods come one by one; that is no news each.
    let now = ExpertPlacementStatus { applied_epoch, pods, ..seen.status.clone() };
    (applied_epoch > 0 && now != seen.status).then(|| (group.name.clone(), now))
}

/// The write that makes a placement say something else; none where it says so already.
fn rewrite(group: &GroupSeen, seen: &PlacementSeen, wanted: ExpertPlacementSpec, now: Timestamp) -> Option<PlacementWrite> {
    let closed_since = match wanted.traffic {
        Traffic::Open => None,
        Traffic::Closed => seen.closed_since.or(Some(now)),
    };
    (wanted != seen.spec).then(|| PlacementWrite {
        name: group.name.clone(),
        group: group.reference(),
        spec: wanted,
        closed_since,
        resource_version: Some(seen.resource_version.clone()),
    })
}

fn sooner(look_again: &mut Option<Duration>, other: Option<Duration>) {
    *look_again = match (*look_again, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
}

/// Time from `then` to `now`; none where the clock went back.
fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// The condition of a type, in a status.
pub fn condition(status: &DeploymentStatus, kind: m1_operator_api::ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.kind == kind)
}
