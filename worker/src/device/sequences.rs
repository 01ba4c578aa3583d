//! Sequences of this worker: admission, cancellation, and what a completed step means for each. Owns the engine's scheduler and
//! the streams; knows nothing of peers.
//!
//! A sequence is open from its admission until the engine says that it has ended, or until nobody reads it any more: leaving
//! `open` is its end, so there is exactly one.

use std::collections::HashMap;
use std::sync::Arc;

use m1_engine::{
    ExecutorError, Failure, Results, Scheduler, SequenceEvent, SequenceId, SequenceRequest, SequenceState, SlotId, Step, TallyId,
};
use tonic::Status;

use super::convert;
use super::inbox::{NewSequence, SequenceKey};
use super::streams::Open;
use crate::service::reasoned;
use crate::tallies::Tally;

/// The sequences of one worker.
#[derive(Debug)]
pub struct Sequences {
    /// Who runs, who waits, what is next.
    pub scheduler: Scheduler,
    open: HashMap<SequenceId, Open>,
    ids: HashMap<SequenceKey, SequenceId>,
    outcomes: Vec<SequenceEvent>,
    /// Whose counts somebody waits for, because a sequence has ended.
    ended: HashMap<TallyId, Arc<Tally>>,
}

impl Sequences {
    /// No sequence yet.
    pub fn new(scheduler: Scheduler) -> Self {
        let (open, ids, ended) = Default::default();
        Self { scheduler, open, ids, outcomes: Vec::new(), ended }
    }

    /// Takes a sequence in or refuses it.
    pub fn admit(&mut self, new: NewSequence) {
        let NewSequence { key, spec, text, tally, events: sink, accepted } = new;
        let must = must_arrive(spec.request());
        let id = match self.scheduler.submit(spec) {
            Ok(id) => id,
            Err(error) => {
                // Nobody may wait for the answer any more, here and below.
                let _ = accepted.send(Err(reasoned(Status::resource_exhausted(error.to_string()), error.reason())));
                return;
            }
        };
        self.ids.insert(key, id);
        self.open.insert(id, Open { key, sink, text, tally, stop: None, must });
        if accepted.send(Ok(())).is_err() {
            self.cancel(key);
        }
    }

    /// Forgets a sequence that nobody reads; its slot and blocks are free at once.
    pub fn cancel(&mut self, key: SequenceKey) {
        if let Some(id) = self.ids.remove(&key) {
            self.open.remove(&id);
            self.scheduler.cancel(id);
        }
    }

    /// Whether a sequence of this step is still waited for.
    pub fn wants_any(&self, step: &Step) -> bool {
        step.wanted().any(|id| self.open.contains_key(&id))
    }

    /// The next step, if there is work beside the steps in flight, and memory for its results.
    pub fn next_step(&mut self) -> Option<(Step, Results)> {
        let step = self.scheduler.next_step(&mut self.outcomes);
        self.settle(&[]);
        step.map(|step| (step, self.scheduler.blank_results()))
    }

    /// A state was given out.
    pub fn exported(&mut self, slot: SlotId, state: Result<SequenceState, ExecutorError>) {
        if let Err(error) = &state {
            tracing::error!(slot = slot.0, reason = error.reason(), %error, "a sequence cannot be set aside; it is computed again");
        }
        self.scheduler.exported(slot, state);
    }

    /// A state was taken in.
    pub fn imported(&mut self, slot: SlotId, result: Result<(), ExecutorError>) {
        if let Err(error) = &result {
            tracing::error!(slot = slot.0, reason = error.reason(), %error, "a sequence cannot come back; it is computed again");
        }
        self.scheduler.imported(slot, result);
    }

    /// Says of the sequences that are set aside that they are alive.
    pub fn reassure(&mut self) {
        self.scheduler.reassure(&mut self.outcomes);
        self.settle(&[]);
    }

    /// Ends a step: sends what came of it.
    pub fn complete(&mut self, step: Step, results: Results) {
        let Self { scheduler, open, outcomes, .. } = self;
        let mut hear = |id: SequenceId, token| open.get_mut(&id).map(|open| open.hear(token)).unwrap_or_default();
        scheduler.complete(step, &results, &mut hear, outcomes);
        self.settle(&results.logits);
        self.scheduler.reuse(results);
    }

    /// Ends a step that could not be computed, and its sequences.
    pub fn fail(&mut self, step: Step, failure: &Failure) {
        self.scheduler.fail(step, failure, &mut self.outcomes);
        self.settle(&[]);
    }

    /// Ends every sequence.
    pub fn fail_all(&mut self, failure: &Failure) {
        self.scheduler.fail_all(failure, &mut self.outcomes);
        self.settle(&[]);
    }

    /// Whether counts are waited for.
    pub fn any_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Publishes the counts that are waited for.
    pub fn publish_ended(&mut self) {
        for (id, tally) in self.ended.drain() {
            if let Some(counts) = self.scheduler.tally(id) {
                tally.publish(counts, true);
            }
        }
    }

    /// Publishes what else has changed and forgets the counts of those that are kept no more.
    pub fn publish(&mut self, kept: &HashMap<TallyId, Arc<Tally>>) {
        self.scheduler.keep_tallies(|id| kept.contains_key(&id));
        for (id, counts) in self.scheduler.tallies() {
            if let Some(tally) = kept.get(&id).filter(|tally| tally.tokens() != counts.tokens) {
                tally.publish(counts, false);
            }
        }
    }

    /// Sends outcomes in order, those of a step with its whole rows of logits.
    fn settle(&mut self, logits: &[f32]) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.drain(..).for_each(|outcome| self.send(outcome, logits));
        self.outcomes = outcomes;
    }

    fn send(&mut self, outcome: SequenceEvent, logits: &[f32]) {
        let Some(open) = self.open.get_mut(&outcome.id()) else { return };
        match outcome {
            SequenceEvent::Progress { .. } => open.progress(),
            SequenceEvent::Token { token, logprobs, .. } => open.token(token, logprobs.as_deref()),
            SequenceEvent::RawLogits { position, rows, .. } => {
                let vocab = self.scheduler.config().limits.vocab as usize;
                let count = rows.len() as u32;
                if let Some(values) = logits.get(rows.start * vocab..rows.end * vocab) {
                    open.logits(position, count, values);
                }
            }
            SequenceEvent::Finished { id, finish, usage, routing } => {
                let Some(mut open) = self.open.remove(&id) else { return };
                self.ids.remove(&open.key);
                let mut finished = convert::finished(&finish, &usage, &routing, open.stop.take().unwrap_or_default());
                if let Some(tally) = &open.tally {
                    finished.counted = self.scheduler.tally(tally.id).map_or(0, |counts| counts.tokens);
                    self.ended.insert(tally.id, tally.clone());
                }
                open.finish(finished);
            }
        }
    }
}

/// Events of a sequence that its reader must get: each token, the logits of each position where they were asked for, and the end.
pub fn must_arrive(request: &SequenceRequest) -> usize {
    let (prompt, output) = (request.prompt.len(), request.max_tokens as usize);
    output + if request.raw_logits { prompt + output } else { 0 } + 1
}

#[cfg(test)]
mod tests;
