//! Disruption budgets. A group is one unit: none of its pods may be evicted until the operator has moved its work and opens it.

use serde_json::json;

use super::{GroupRef, ROUTER, Scene};
use crate::{Kind, Object};

/// Of a group: closed, or open for all its pods at once.
pub fn group(scene: &Scene<'_>, group: &GroupRef, open: bool) -> Object {
    let evictable = if open { group.size } else { 0 };
    let body = json!({"spec": {
        "maxUnavailable": evictable,
        "selector": {"matchLabels": scene.group_selector(group)},
        // A pod that never got ready holds nothing that an eviction could lose.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }});
    scene.group_object(Kind::PodDisruptionBudget, group, body)
}

/// Of several routers: one at a time.
pub fn router(scene: &Scene<'_>) -> Option<Object> {
    let body = json!({"spec": {
        "maxUnavailable": 1,
        "selector": {"matchLabels": scene.component_selector(ROUTER)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }});
    let name = scene.checked.name.router();
    (scene.plan.router.replicas > 1).then(|| scene.object(Kind::PodDisruptionBudget, &name, ROUTER, body))
}
