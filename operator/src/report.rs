//! What the operator says: the status, written when something changed and at most every ten seconds for mere progress, and events for
//! what it did and for conditions that turned.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use m1_operator_api::{ConditionStatus, ConditionType, DeploymentStatus, MiniMaxM1Deployment, labels};
use m1_operator_plan::condition;
use serde_json::json;

use crate::apply::Deed;
use crate::cache::Key;
use crate::error::Error;

/// Between two statuses that differ only in how far the weights are.
pub const PROGRESS: Duration = Duration::from_secs(10);

/// Whether a status is worth writing, and whether it can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It says what the last one said.
    Nothing,
    /// Only the progress of the weights differs.
    Progress,
    /// Something changed.
    Change,
}

/// Compares two statuses.
pub fn worth(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> Worth {
    let Some(before) = before else { return Worth::Change };
    if before == now {
        return Worth::Nothing;
    }
    let still = DeploymentStatus { weights: before.weights.clone(), ..now.clone() };
    let began = before.weights.is_some() == now.weights.is_some();
    let ended = now.weights.as_ref().is_some_and(|weights| weights.bytes_loaded == weights.bytes_total);
    if still == *before && began && !ended { Worth::Progress } else { Worth::Change }
}

/// Writes the status.
///
/// # Errors
/// The API server's. A deployment that is gone is none.
pub async fn write(client: &Client, key: &Key, status: &DeploymentStatus) -> Result<(), Error> {
    let api: Api<MiniMaxM1Deployment> = Api::namespaced(client.clone(), &key.namespace);
    let object = json!({
        "apiVersion": MiniMaxM1Deployment::api_version(&()),
        "kind": MiniMaxM1Deployment::kind(&()),
        "status": status,
    });
    let params = PatchParams::apply(labels::MANAGER).force();
    match api.patch_status(&key.name, &params, &Patch::Apply(&object)).await {
        Ok(_) => Ok(()),
        Err(error) if crate::error::code(&error) == Some(404) => Ok(()),
        Err(error) => Err(Error::api("write the status of", format!("MiniMaxM1Deployment {}", key.name))(error)),
    }
}

/// Tells what was done, and which conditions turned.
pub async fn tell(recorder: &Recorder, deployment: &MiniMaxM1Deployment, deeds: &[Deed], status: &DeploymentStatus) {
    let done = deeds.iter().map(|deed| event(deed.reason, &deed.message, deed.warning, "Apply"));
    for event in done.chain(turned(deployment.status.as_ref(), status)) {
        if let Err(error) = recorder.publish(&event, &deployment.object_ref(&())).await {
            tracing::debug!(%error, "an event was not written");
        }
    }
}

/// Tells that something could not be done. Repetitions are counted, not repeated.
pub async fn tell_failure(recorder: &Recorder, deployment: &MiniMaxM1Deployment, error: &Error) {
    if error.is_conflict() {
        return;
    }
    let event = event(error.reason(), &error.to_string(), true, "Apply");
    if let Err(error) = recorder.publish(&event, &deployment.object_ref(&())).await {
        tracing::debug!(%error, "an event was not written");
    }
}

/// Conditions whose status or reason is another than before.
fn turned(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> Vec<Event> {
    let turned = now.conditions.iter().filter(|condition_now| {
        let known = before.and_then(|before| condition(before, condition_now.kind));
        known.is_none_or(|known| (known.status, known.reason) != (condition_now.status, condition_now.reason))
    });
    let worth_telling = turned.filter(|condition| match condition.kind {
        ConditionType::Degraded => condition.status == ConditionStatus::True || before.is_some(),
        _ => true,
    });
    worth_telling
        .map(|condition| {
            let good = condition.status == ConditionStatus::True;
            let warning = match condition.kind {
                ConditionType::Degraded => good,
                ConditionType::Accepted => !good,
                _ => false,
            };
            let note = format!("{}={}: {}", condition.kind, condition.status, condition.message);
            event(condition.reason.as_str(), &note, warning, condition.kind.as_str())
        })
        .collect()
}

fn event(reason: &str, note: &str, warning: bool, action: &str) -> Event {
    // The API takes 1 kB of a note.
    let note: String = note.chars().take(1000).collect();
    Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    }
}
