//! Conditions: one of each type, the time of the last change kept, those that no longer apply left out.

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::{Condition, ConditionStatus, ConditionType, Reason};

/// Most characters of a message: the API's own limit for a condition is 32,768; this is what people read.
const LONGEST_MESSAGE: usize = 1024;

/// The conditions of one status, built on those of the last.
#[derive(Debug)]
pub struct Conditions<'a> {
    before: &'a [Condition],
    generation: i64,
    now: Timestamp,
    made: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Nothing is said yet.
    pub fn new(before: &'a [Condition], generation: i64, now: Timestamp) -> Self {
        Self { before, generation, now, made: Vec::new() }
    }

    /// Says that a condition holds, or does not.
    pub fn set(&mut self, kind: ConditionType, holds: bool, reason: Reason, message: impl Into<String>) {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        let before = self.before.iter().find(|condition| condition.kind == kind && condition.status == status);
        let last_transition_time = before.map_or_else(|| seconds(self.now), |condition| condition.last_transition_time.clone());
        let message = shortened(message.into());
        self.made.push(Condition {
            kind,
            status,
            reason,
            message,
            last_transition_time,
            observed_generation: Some(self.generation),
        });
    }

    /// Keeps a condition as it was.
    pub fn keep(&mut self, kind: ConditionType) {
        self.made.extend(self.before.iter().find(|condition| condition.kind == kind).cloned());
    }

    /// Takes over what somebody else has said already.
    pub fn take(&mut self, condition: Condition) {
        self.made.push(condition);
    }

    /// All that was said.
    pub fn done(self) -> Vec<Condition> {
        self.made
    }
}

/// A time in whole seconds, as Kubernetes writes it.
pub fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn shortened(mut message: String) -> String {
    if message.chars().count() > LONGEST_MESSAGE {
        message = message.chars().take(LONGEST_MESSAGE - 1).chain(['…']).collect();
    }
    message
}
