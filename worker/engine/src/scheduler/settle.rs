//! What comes back from a step: routing while it runs, logits or a failure at its end.

use std::ops::Range;

use m1_arch::{ExpertId, LayerId};

use super::Scheduler;
use crate::executor::{LayerRouting, Segment};
use crate::routing::RoutingError;
use crate::step::{Failure, Finish, Outcome, SequenceId, Step};

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

    /// Takes a step's logits, `[logit_rows, vocab]`: counts its routing, draws the next ids, ends what has ended. A step
    /// with logits of another size, or with layers that were not routed, counts as failed.
    pub fn complete(&mut self, step: Step, logits: &[f32], out: &mut Vec<Outcome>) {
        if let Some(failure) = self.defect(&step, logits) {
            return self.fail(step, &failure, out);
        }
        self.in_flight = false;
        self.staged.count(0..step.batch.ids.len(), &mut self.routing);
        let mut rows = 0..0;
        for (segment, &id) in step.batch.segments.iter().zip(&step.owners) {
            let end = segment.start + segment.tokens;
            let upto = step.batch.logit_rows[rows.end..].iter().take_while(|&&row| row < end).count();
            rows = rows.end..rows.end + upto;
            self.settle(id, segment, rows.clone(), logits, out);
        }
        self.spare = Some(step);
    }

    /// Ends every sequence of a step that could not be computed. Its routing is not counted.
    pub fn fail(&mut self, step: Step, failure: &Failure, out: &mut Vec<Outcome>) {
        self.in_flight = false;
        out.extend(step.owners.iter().filter_map(|&id| self.finish(id, Finish::Failed(failure.clone()))));
        self.spare = Some(step);
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

    /// One segment's share of a completed step. `rows`: its logit rows.
    fn settle(&mut self, id: SequenceId, segment: &Segment, rows: Range<usize>, logits: &[f32], out: &mut Vec<Outcome>) {
        let Some(sequence) = self.running.get_mut(&id) else { return };
        self.staged.count(segment.start as usize..(segment.start + segment.tokens) as usize, &mut sequence.routing);
        sequence.passed(segment.tokens);
        if sequence.spec.request().raw_logits {
            out.push(Outcome::RawLogits { id, position: segment.position, rows: rows.clone() });
        }
        if sequence.prompt_left() > 0 {
            self.prefilling.push_back(id);
            return;
        }
        let vocab = self.config.limits.vocab as usize;
        let last = &logits[rows.end.saturating_sub(1) * vocab..rows.end * vocab];
        let finish = match sequence.speak(id, &mut self.sampler, last) {
            Ok(token) => {
                out.push(token);
                sequence.verdict()
            }
            Err(error) => Some(Finish::Failed(error.into())),
        };
        if let Some(finish) = finish {
            out.extend(self.finish(id, finish));
        }
    }
}
