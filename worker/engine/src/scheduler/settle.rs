//! What comes back from a step: its results, or a failure.

use std::ops::Range;

use super::Scheduler;
use crate::executor::{Draw, Drawn, Results, Segment};
use crate::routing::{RoutingCounts, StepRouting};
use crate::step::{Failure, Finish, Heard, SequenceEvent, SequenceId, Step};

/// What a step's results hold for one segment.
struct Share<'a> {
    /// Rows of the logits.
    logits: Range<usize>,
    drawn: Option<(&'a Draw, &'a Drawn)>,
}

impl Scheduler {
    /// Takes a step's results: counts its routing, takes the drawn ids, and ends what has ended. Each drawn id is said to `hear` first,
    /// so that what its text means counts before stop ids and length: whatever meets in one step, a sequence ends once, here. A step
    /// whose results are not whole, or with layers that were not routed, counts as failed.
    pub fn complete(
        &mut self,
        step: Step,
        results: &Results,
        hear: &mut dyn FnMut(SequenceId, u32) -> Heard,
        out: &mut Vec<SequenceEvent>,
    ) {
        if let Some(failure) = self.defect(&step, results) {
            return self.fail(step, &failure, out);
        }
        self.land(&step);
        self.count(&step, &results.routing);
        let batch = step.batch.clone();
        let (mut rows, mut draws) = (0..0, batch.draws.iter().zip(&results.drawn).peekable());
        for (place, (segment, &id)) in batch.segments.iter().zip(&step.owners).enumerate() {
            let end = segment.start + segment.tokens;
            let upto = batch.logit_rows[rows.end..].iter().take_while(|&&row| row < end).count();
            rows = rows.end..rows.end + upto;
            let share = Share { logits: rows.clone(), drawn: draws.next_if(|(draw, _)| draw.row < end) };
            match step.given_up.get(place).cloned().flatten() {
                Some(failure) => out.extend(self.end(id, Finish::Failed(failure))),
                None => self.settle((id, segment, step.counted[place]), share, &results.routing, hear, out),
            }
        }
        drop(batch);
        self.spare.push(step);
    }

    /// Ends every sequence of a step that could not be computed, those that were given up with their own failure. Its
    /// routing is not counted.
    pub fn fail(&mut self, step: Step, failure: &Failure, out: &mut Vec<SequenceEvent>) {
        self.land(&step);
        for (&id, given_up) in step.owners.iter().zip(&step.given_up) {
            out.extend(self.end(id, Finish::Failed(given_up.as_ref().unwrap_or(failure).clone())));
        }
        self.spare.push(step);
    }

    /// Counts a step for the worker and for those who asked, also of sequences that were cancelled meanwhile, but not of
    /// those that were given up.
    fn count(&mut self, step: &Step, routing: &StepRouting) {
        let shape = self.shape;
        let segments = step.batch.segments.iter().zip(&step.counted).zip(&step.tallies).zip(&step.given_up);
        for (((segment, counted), tally), _) in segments.filter(|(_, given_up)| given_up.is_none()) {
            let rows = uncounted(segment, *counted);
            routing.count(rows.clone(), &mut self.routing);
            if let Some(tally) = tally {
                let counts = self.tallies.entry(*tally).or_insert_with(|| RoutingCounts::without_weights(shape));
                routing.count(rows, counts);
            }
        }
    }

    /// What keeps a step's results from being used.
    fn defect(&self, step: &Step, results: &Results) -> Option<Failure> {
        let whole = [
            ("ids", results.drawn.len(), step.batch.draws.len()),
            ("logits", results.logits.len(), step.batch.logit_rows.len() * self.config.limits.vocab as usize),
        ];
        if let Some((what, given, needed)) = whole.iter().find(|(_, given, needed)| given != needed) {
            let message = format!("the step returned {given} {what}; {needed} are needed");
            return Some(Failure { reason: "ResultsSize", message });
        }
        let layer = results.routing.missing()?;
        Some(Failure { reason: "LayerNotRouted", message: format!("the step ended without the routing of layer {layer}") })
    }

    /// One segment's share of a completed step: its sequence goes on, or ends.
    fn settle(
        &mut self,
        (id, segment, counted): (SequenceId, &Segment, u32),
        share: Share<'_>,
        routing: &StepRouting,
        hear: &mut dyn FnMut(SequenceId, u32) -> Heard,
        out: &mut Vec<SequenceEvent>,
    ) {
        let Some(sequence) = self.running.get_mut(&id) else { return };
        routing.count(uncounted(segment, counted), &mut sequence.routing);
        sequence.passed(segment.tokens);
        if sequence.spec.request().raw_logits && !share.logits.is_empty() {
            out.push(SequenceEvent::RawLogits { id, position: segment.position + counted, rows: share.logits });
        }
        let Some((draw, drawn)) = share.drawn else {
            if sequence.prompt_left() > 0 {
                self.prefilling.push_back(id);
            }
            out.push(SequenceEvent::Progress { id });
            return;
        };
        let finish = match drawn.id {
            Ok(token) => {
                sequence.speak(token);
                let heard = hear(id, token);
                let (forced, logprobs) = (draw.forced.is_some(), drawn.logprobs.clone());
                out.push(SequenceEvent::Token { id, token, forced, logprobs });
                sequence.heard(heard)
            }
            Err(error) => Some(Finish::Failed(error.into())),
        };
        if let Some(finish) = finish {
            out.extend(self.end(id, finish));
        }
    }
}

/// Rows that are not read again.
fn uncounted(segment: &Segment, counted: u32) -> Range<usize> {
    let rows = segment.rows();
    rows.start + counted as usize..rows.end
}
