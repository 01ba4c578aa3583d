//! What the operator says: the status, written at once when a condition turned and after a pause when only numbers and words differ;
//! and events, for what was done and for conditions that turned.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::Api;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use m1_operator_api::{Condition, ConditionStatus, ConditionType, DeploymentStatus, MiniMaxM1Deployment};
use m1_operator_plan::condition;
use tokio::sync::mpsc;

use crate::apply::Deed;
use crate::cache::Key;
use crate::cluster::write_status;
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
const PROGRESS: Duration = Duration::from_secs(10);
/// Between two statuses whose conditions are the same but for reasons and words: pods that come one by one are one news.
const NUMBERS: Duration = Duration::from_secs(1);

/// How long after the last status this one is worth writing; none where it says the same.
pub fn pause(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> Option<Duration> {
    let Some(before) = before else { return Some(Duration::ZERO) };
    let holds = |status: &DeploymentStatus| -> Vec<_> {
        let pairs = status.conditions.iter().map(|condition| (condition.kind, condition.status));
        pairs.collect()
    };
    if before == now {
        None
    } else if before.observed_generation != now.observed_generation || holds(before) != holds(now) {
        Some(Duration::ZERO)
    } else if *before == (DeploymentStatus { weights: before.weights.clone(), ..now.clone() }) {
        Some(PROGRESS)
    } else {
        Some(NUMBERS)
    }
}

/// Writes the status.
///
/// # Errors
/// The API server's. A deployment that is gone is none.
pub async fn write(client: &Client, key: &Key, status: &DeploymentStatus) -> Result<(), Error> {
    let api: Api<MiniMaxM1Deployment> = Api::namespaced(client.clone(), &key.namespace);
    let (version, kind) = (MiniMaxM1Deployment::api_version(&()), MiniMaxM1Deployment::kind(&()));
    write_status(&api, (&version, &kind), &key.name, status).await.map(|_| ())
}

/// Tells what was done.
pub fn tell_deeds(teller: &Teller, deployment: &MiniMaxM1Deployment, deeds: &[Deed]) {
    for event in done(deeds) {
        teller.publish(event, deployment);
    }
}

/// Tells which conditions turned.
pub fn tell_turns(teller: &Teller, deployment: &MiniMaxM1Deployment, status: &DeploymentStatus) {
    for event in turned(deployment.status.as_ref(), status) {
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

/// Conditions that are news. What never held is missed by nobody, and what is on its way or missing is told by `Ready`.
fn turned(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> Vec<Event> {
    let is_news = |condition_now: &&Condition| {
        let known = before.and_then(|before| condition(before, condition_now.kind));
        let differs = known.is_none_or(|known| (known.status, known.reason) != (condition_now.status, condition_now.reason));
        let held = known.is_some_and(|known| known.status == ConditionStatus::True);
        match condition_now.kind {
            ConditionType::Progressing => false,
            ConditionType::Accepted | ConditionType::Ready => differs,
            _ => differs && (held || condition_now.status == ConditionStatus::True),
        }
    };
    let news = now.conditions.iter().filter(is_news);
    news.map(|condition| {
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
