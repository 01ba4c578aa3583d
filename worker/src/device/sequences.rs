//! Sequences of this worker: admission, cancellation, and what a completed step means for each. Owns the engine's scheduler and
//! the streams; knows nothing of peers.

use std::collections::HashMap;

use m1_engine::{Executor, Failure, Finish, Outcome, Scheduler, SequenceId, Step};
use tonic::Status;

use super::convert;
use super::inbox::{NewSequence, SequenceKey};
use super::streams::Streams;
use crate::service::reasoned;

/// The sequences of one worker.
#[derive(Debug)]
pub struct Sequences {
    /// Who runs, who waits, what is next.
    pub scheduler: Scheduler,
    streams: Streams,
    ids: HashMap<SequenceKey, SequenceId>,
    keys: HashMap<SequenceId, SequenceKey>,
    outcomes: Vec<Outcome>,
    logits: Vec<f32>,
}

impl Sequences {
    /// No sequence yet.
    pub fn new(scheduler: Scheduler) -> Self {
        let (ids, keys) = (HashMap::new(), HashMap::new());
        Self { scheduler, streams: Streams::default(), ids, keys, outcomes: Vec::new(), logits: Vec::new() }
    }

    /// Takes a sequence in or refuses it through its stream.
    pub fn admit(&mut self, new: NewSequence) {
        match self.scheduler.submit(new.spec) {
            Ok(id) => {
                self.ids.insert(new.key, id);
                self.keys.insert(id, new.key);
                self.streams.open(new.key, new.events, new.text);
            }
            Err(error) => {
                Streams::refuse(&new.events, reasoned(Status::resource_exhausted(error.to_string()), error.reason()));
            }
        }
    }

    /// Forgets a sequence that nobody reads; its slot and blocks are free at once.
    pub fn cancel(&mut self, key: SequenceKey) {
        self.streams.close(key);
        if let Some(id) = self.ids.remove(&key) {
            self.keys.remove(&id);
            self.scheduler.cancel(id);
        }
    }

    /// Whether a sequence of this step is still waited for.
    pub fn wants_any(&self, step: &Step) -> bool {
        step.owners.iter().any(|id| self.keys.contains_key(id))
    }

    /// The next step, if there is work.
    pub fn next_step<E: Executor>(&mut self, executor: &mut E) -> Option<Step> {
        let step = self.scheduler.next_step(executor, &mut self.outcomes);
        self.settle();
        step
    }

    /// Ends a step: takes its logits from the executor, draws, sends.
    pub fn complete<E: Executor>(&mut self, step: Step, executor: &mut E) {
        match executor.end_step(&mut self.logits) {
            Ok(()) => self.scheduler.complete(step, &self.logits, &mut self.outcomes),
            Err(error) => self.scheduler.fail(step, &Failure::from(&error), &mut self.outcomes),
        }
        self.settle();
    }

    /// Ends a step that could not be computed, and its sequences.
    pub fn fail(&mut self, step: Step, failure: &Failure) {
        tracing::error!(reason = failure.reason, error = %failure, "a step failed");
        self.scheduler.fail(step, failure, &mut self.outcomes);
        self.settle();
    }

    /// Ends every sequence.
    pub fn fail_all(&mut self, failure: &Failure) {
        self.scheduler.fail_all(failure, &mut self.outcomes);
        self.settle();
    }

    /// Sends outcomes in order; a stop text ends its sequence here.
    fn settle(&mut self) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            self.send(outcome);
        }
        self.outcomes = outcomes;
    }

    fn send(&mut self, outcome: Outcome) {
        let Some(key) = self.keys.get(&outcome.id()).copied() else { return };
        match outcome {
            Outcome::Token { id, token, logprobs, .. } => {
                let logprobs = logprobs.map(|l| convert::logprobs(&l));
                if let Some(seen) = self.streams.token(key, token, logprobs) {
                    self.scheduler.set_reasoning_open(id, seen.reasoning_open);
                    if let Some(stop) = seen.stop {
                        let ended = self.scheduler.finish(id, Finish::Stop);
                        self.end(key, id, ended, stop);
                    }
                }
            }
            Outcome::RawLogits { position, rows, .. } => {
                let vocab = self.scheduler.config().limits.vocab as usize;
                let count = rows.len() as u32;
                if let Some(values) = self.logits.get(rows.start * vocab..rows.end * vocab) {
                    self.streams.logits(key, position, count, values);
                }
            }
            Outcome::Finished { id, .. } => self.end(key, id, Some(outcome), String::new()),
        }
    }

    fn end(&mut self, key: SequenceKey, id: SequenceId, outcome: Option<Outcome>, stop: String) {
        self.ids.remove(&key);
        self.keys.remove(&id);
        if let Some(Outcome::Finished { finish, usage, routing, .. }) = outcome {
            self.streams.finish(key, convert::finished(&finish, &usage, &routing, stop));
        }
    }
}
