//! The ExpertPlacement of a group: who holds what, where it is reached, and whether it takes requests.

use m1_operator_api::{ExpertPlacementSpec, PodHolding, Traffic};

use super::{GroupRef, Scene, pod_address};
use crate::{Kind, Object};

/// The object of a group's placement, its spec left to whoever writes it.
pub fn object(scene: &Scene<'_>, group: &GroupRef) -> Object {
    scene.group_object(Kind::ExpertPlacement, group, serde_json::json!({}))
}

/// The first placement of a group of the present revision, written under the given number of lease transitions.
pub fn first(scene: &Scene<'_>, group: &GroupRef, lease_transitions: u64) -> ExpertPlacementSpec {
    let name = scene.group_name(group);
    let (every, model) = (&scene.plan.every, &scene.plan.model);
    ExpertPlacementSpec {
        deployment: scene.checked.name.to_string(),
        group: group.index,
        lease_transitions,
        epoch: every.epoch,
        layers: model.layers as u32,
        experts: model.experts as u32,
        model: model.shape.clone(),
        revision: group.revision.to_string(),
        traffic: Traffic::Open,
        encrypted: super::members::is_encrypted(scene),
        pods: (0..)
            .zip(&every.pods)
            .map(|(index, pod)| PodHolding {
                pod: format!("{name}-{index}"),
                address: pod_address(&name, index, scene.namespace),
                holds: pod.holds.to_hex(),
            })
            .collect(),
    }
}
