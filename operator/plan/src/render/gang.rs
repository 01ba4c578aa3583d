//! A group as a gang, for the schedulers that know gangs: always the full group, because less of it serves nobody.

use m1_operator_api::Gang;
use serde_json::{Value, json};

use super::{GroupRef, Scene};
use crate::{Kind, Object};

/// Seconds that placed pods wait for the rest before they let go of their nodes.
const SCHEDULE_TIMEOUT: u32 = 60;

/// The PodGroup of a group, where its scheduler wants one. KAI makes its own from the StatefulSet and its annotation `min-member`.
pub fn pod_group(scene: &Scene<'_>, group: &GroupRef) -> Option<Object> {
    let body: Value = match scene.checked.spec().scheduling.gang {
        Gang::Off | Gang::Kai => return None,
        Gang::Coscheduling => json!({"spec": {"minMember": group.size, "scheduleTimeoutSeconds": SCHEDULE_TIMEOUT}}),
        Gang::Volcano => json!({"spec": {"minMember": group.size}}),
    };
    let kind = match scene.checked.spec().scheduling.gang {
        Gang::Volcano => Kind::VolcanoPodGroup,
        _ => Kind::PodGroup,
    };
    Some(scene.group_object(kind, group, body))
}
