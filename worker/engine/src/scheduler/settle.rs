//! What comes back from a step: routing while it runs, logits or a failure at its end.

use std::ops::Range;

use m1_arch::{ExpertId, LayerId};

use super::Scheduler;
use super::sequence::Spoken;
use crate::executor::{LayerRouting, Segment};
use crate::routing::{RoutingCounts, RoutingError};
use crate::step::{Failure, Finish, Heard, Outcome, SequenceId, Step};

impl Scheduler {
    /// Applies each sequence's expert threshold to a layer's routing, as the executor filled it, and stages the counts.
    /// They are added when the step completes.
    ///
    /// # Errors
    /// Routing that does not fit the step or the model; the step should be failed.
    pub fn route(&mut self, step: &Step, layer: LayerId, routing: &mut LayerRouting) -> Result<(), RoutingError> {
        if !self.in_flight {
            return Err(RoutingError::NoStep(layer));
        }
        self.staged.book(layer, routing, step.thresholds())
    }

    /// Stages that a row of the step in flight went without an expert that `route` had given it, its weight going to the
    /// row's other ones.
    ///
    /// # Errors
    /// A row that was not routed to this expert, or has lost it already.
    pub fn lose(&mut self, layer: LayerId, row: u32, expert: ExpertId) -> Result<(), RoutingError> {
        if !self.in_flight {
            return Err(RoutingError::NoStep(layer));
        }
        self.staged.lose(layer, row, expert)
    }

    /// Takes a step's logits, `[logit_rows, vocab]`: counts its routing, draws the next ids, and ends what has ended. Each
    /// drawn id is said to `hear` first, so that what its text means counts before stop ids and length: whatever meets in
    /// one step, a sequence ends once, here. A step with logits of another size, or with layers that were not routed,
    /// counts as failed.
    pub fn complete(&mut self, step: Step, logits: &[f32], hear: &mut dyn FnMut(SequenceId, u32) -> Heard, out: &mut Vec<Outcome>) {
        if let Some(failure) = self.defect(&step, logits) {
            return self.fail(step, &failure, out);
        }
        self.in_flight = false;
        self.count(&step);
        let mut rows = 0..0;
        for (place, (segment, &id)) in step.batch.segments.iter().zip(&step.owners).enumerate() {
            let end = segment.start + segment.tokens;
            let upto = step.batch.logit_rows[rows.end..].iter().take_while(|&&row| row < end).count();
            rows = rows.end..rows.end + upto;
            match step.given_up.get(place).cloned().flatten() {
                Some(failure) => out.extend(self.end(id, Finish::Failed(failure))),
                None => self.settle((id, segment, rows.clone()), logits, hear, out),
            }
        }
        self.spare = Some(step);
    }

    /// Ends every sequence of a step that could not be computed, those that were given up with their own failure. Its
    /// routing is not counted.
    pub fn fail(&mut self, step: Step, failure: &Failure, out: &mut Vec<Outcome>) {
        self.in_flight = false;
        for (&id, given_up) in step.owners.iter().zip(&step.given_up) {
            out.extend(self.end(id, Finish::Failed(given_up.as_ref().unwrap_or(failure).clone())));
        }
        self.spare = Some(step);
    }

    /// Counts a step for the worker and for those who asked, also of sequences that were cancelled meanwhile, but not of
    /// those that were given up.
    fn count(&mut self, step: &Step) {
        let shape = self.shape;
        let segments = step.batch.segments.iter().zip(&step.tallies).zip(&step.given_up);
        for ((segment, tally), _) in segments.filter(|(_, given_up)| given_up.is_none()) {
            let rows = segment.start as usize..(segment.start + segment.tokens) as usize;
            self.staged.count(rows.clone(), &mut self.routing);
            if let Some(tally) = tally {
                let counts = self.tallies.entry(*tally).or_insert_with(|| RoutingCounts::without_weights(shape));
                self.staged.count(rows, counts);
            }
        }
    }

    /// What keeps a step's result from being used.
    fn defect(&self, step: &Step, logits: &[f32]) -> Option<Failure> {
        let needed = step.batch.logit_rows.len() * self.config.limits.vocab as usize;
        if logits.len() != needed {
            let message = format!("the step returned {} logits; {needed} are needed", logits.len());
            return Some(Failure { reason: "LogitsSize", message });
        }
        let layer = self.staged.missing()?;
        Some(Failure { reason: "LayerNotRouted", message: format!("the step ended without the routing of layer {layer}") })
    }

    /// One segment's share of a completed step: its sequence, and its logit rows.
    fn settle(
        &mut self,
        (id, segment, rows): (SequenceId, &Segment, Range<usize>),
        logits: &[f32],
        hear: &mut dyn FnMut(SequenceId, u32) -> Heard,
        out: &mut Vec<Outcome>,
    ) {
        let Some(sequence) = self.running.get_mut(&id) else { return };
        self.staged.count(segment.start as usize..(segment.start + segment.tokens) as usize, &mut sequence.routing);
        sequence.passed(segment.tokens);
        if sequence.spec.request().raw_logits {
            out.push(Outcome::RawLogits { id, position: segment.position, rows: rows.clone() });
        }
        if sequence.prompt_left() > 0 {
            self.prefilling.push_back(id);
            out.push(Outcome::Progress { id });
            return;
        }
        let vocab = self.config.limits.vocab as usize;
        let last = &logits[rows.end.saturating_sub(1) * vocab..rows.end * vocab];
        let finish = match sequence.speak(&mut self.sampler, last) {
            Ok(Spoken { token, forced, logprobs }) => {
                let heard = hear(id, token);
                out.push(Outcome::Token { id, token, forced, logprobs });
                sequence.heard(heard)
            }
            Err(error) => Some(Finish::Failed(error.into())),
        };
        if let Some(finish) = finish {
            out.extend(self.end(id, finish));
        }
    }
}
