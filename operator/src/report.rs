//! What the operator says: the status, written when something changed and at most every ten seconds for mere progress, and events for
//! what it did and for conditions that turned.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use m1_operator_api::{ConditionStatus, ConditionType, DeploymentStatus, MiniMaxM1Deployment, labels};
use m1_operator_plan::condition;
use serde_json::json;
use tokio::sync::mpsc;

use crate::apply::Deed;
use crate::cache::Key;
use crate::error::Error;

/// Events that wait to be written. One too many is dropped: they are for people to read, and must hold up nothing that is done.
const WAITING: usize = 8192;

/// Events on their way to the API server. Nobody waits for them: a look that writes a dozen would take a dozen calls longer.
#[derive(Clone, Debug)]
pub struct Teller {
    events: mpsc::Sender<(Event, ObjectReference)>,
}

impl Teller {
    /// With what writes its events, one after the other, until the teller is dropped.
    pub fn new(recorder: Recorder) -> (Self, impl Future<Output = ()>) {
        let (events, mut waiting) = mpsc::channel::<(Event, ObjectReference)>(WAITING);
        let write = async move {
            while let Some((event, reference)) = waiting.recv().await {
                if let Err(error) = recorder.publish(&event, &reference).await {
                    tracing::debug!(%error, "an event was not written");
                }
            }
        };
        (Self { events }, write)
    }

    fn publish(&self, event: Event, deployment: &MiniMaxM1Deployment) {
        if self.events.try_send((event, deployment.object_ref(&()))).is_err() {
            tracing::warn!("an event was dropped: too many wait");
        }
    }
}

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
pub fn tell(teller: &Teller, deployment: &MiniMaxM1Deployment, deeds: &[Deed], status: &DeploymentStatus) {
    for event in done(deeds).into_iter().chain(turned(deployment.status.as_ref(), status)) {
        teller.publish(event, deployment);
    }
}

/// Tells that something could not be done. Repetitions are counted, not repeated.
pub fn tell_failure(teller: &Teller, deployment: &MiniMaxM1Deployment, error: &Error) {
    if !error.is_conflict() {
        teller.publish(event(error.reason(), &error.to_string(), true, "Apply"), deployment);
    }
}

/// One event for all deeds of a kind: Kubernetes counts events of the same reason, and keeps the words of the first only.
fn done(deeds: &[Deed]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for deed in deeds {
        match events.iter_mut().find(|event| event.reason == deed.reason) {
            Some(known) => {
                let note = format!("{}; {}", known.note.take().unwrap_or_default(), deed.message);
                *known = event(deed.reason, &note, deed.warning, "Apply");
            }
            None => events.push(event(deed.reason, &deed.message, deed.warning, "Apply")),
        }
    }
    events
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeds_of_a_kind_are_one_event() {
        let deed = |reason, message: &str| Deed { reason, message: message.to_owned(), warning: false };
        let events = done(&[deed("Created", "created A"), deed("Deleted", "deleted B"), deed("Created", "created C")]);
        let said: Vec<_> = events.iter().map(|event| (event.reason.as_str(), event.note.as_deref().unwrap_or_default())).collect();
        assert_eq!(said, [("Created", "created A; created C"), ("Deleted", "deleted B")]);
    }
}
