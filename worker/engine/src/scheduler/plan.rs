//! What the next step computes.

use super::sequence::Sequence;
use super::{Scheduler, StepKind};
use crate::executor::{Executor, KV_BLOCK_TOKENS, Segment, SlotId};
use crate::step::{Failure, Finish, Outcome, SequenceId, Step};

/// Bytes of raw logits that one prefill step returns at most (one row always): 20 rows of M1's vocabulary, thousands of
/// a test model's. They all lie in memory at once before they are sent.
const RAW_LOGIT_BYTES: u64 = 16 << 20;

impl Scheduler {
    /// The next step, or `None` where nothing is to be computed or a step is in flight. Closes slots that were given
    /// back and opens those of admitted sequences; a sequence that gets none ends, into `out`, and so does the word that
    /// one has left the queue.
    pub fn next_step<E: Executor + ?Sized>(&mut self, executor: &mut E, out: &mut Vec<Outcome>) -> Option<Step> {
        if self.in_flight {
            return None;
        }
        self.settle_slots(executor, out);
        let kind = self.next_kind()?;
        let mut step = self.blank(kind);
        match kind {
            StepKind::Decode => self.plan_decode(&mut step),
            StepKind::Prefill => self.plan_prefill(&mut step, out),
        }
        self.last_kind = kind;
        self.in_flight = true;
        self.staged.begin(step.batch.ids.len());
        Some(step)
    }

    fn settle_slots<E: Executor + ?Sized>(&mut self, executor: &mut E, out: &mut Vec<Outcome>) {
        loop {
            for slot in self.closing.drain(..) {
                executor.close_slot(slot);
            }
            let mut refused = Vec::new();
            for (id, sequence) in self.running.iter_mut().filter(|(_, sequence)| sequence.slot.is_none()) {
                match executor.open_slot() {
                    Ok(slot) => sequence.slot = Some(slot),
                    Err(error) => refused.push((*id, Failure::from(&error))),
                }
            }
            if refused.is_empty() {
                return;
            }
            // Each one that ends may let a waiting one in, which needs a slot too.
            out.extend(refused.into_iter().filter_map(|(id, failure)| self.end(id, Finish::Failed(failure))));
        }
    }

    /// The kinds take turns while there is work for both.
    fn next_kind(&self) -> Option<StepKind> {
        let prefill = !self.prefilling.is_empty();
        let decode = self.running.len() > self.prefilling.len();
        match (decode, prefill, self.last_kind) {
            (true, true, StepKind::Prefill) | (true, false, _) => Some(StepKind::Decode),
            (true, true, StepKind::Decode) | (false, true, _) => Some(StepKind::Prefill),
            (false, false, _) => None,
        }
    }

    fn blank(&mut self, kind: StepKind) -> Step {
        let mut step = self.spare.take().unwrap_or_else(|| Step::blank(kind));
        step.reset(kind);
        step
    }

    fn plan_decode(&self, step: &mut Step) {
        for (&id, sequence) in self.running.iter().filter(|(_, sequence)| sequence.prompt_left() == 0) {
            if let Some(slot) = sequence.slot {
                append(step, id, slot, sequence, 1);
            }
        }
    }

    fn plan_prefill(&mut self, step: &mut Step, out: &mut Vec<Outcome>) {
        let mut budget = self.config.prefill_tokens;
        let row_bytes = u64::from(self.config.limits.vocab) * size_of::<f32>() as u64;
        let mut raw_rows = u32::try_from(RAW_LOGIT_BYTES / row_bytes).unwrap_or(u32::MAX).max(1);
        for _ in 0..self.prefilling.len() {
            let Some(id) = self.prefilling.pop_front() else { break };
            let Some((sequence, slot)) = self.running.get_mut(&id).and_then(|s| s.slot.map(|slot| (s, slot))) else { continue };
            let request = sequence.spec.request();
            let mut chunk = sequence.prompt_left().min(budget);
            if request.prefill_chunk > 0 {
                chunk = chunk.min(request.prefill_chunk);
            }
            if request.raw_logits {
                chunk = chunk.min(raw_rows);
                raw_rows -= chunk;
            }
            chunk = whole_blocks(sequence.position(), chunk, sequence.prompt_left());
            if chunk == 0 {
                self.prefilling.push_back(id);
                continue;
            }
            budget -= chunk;
            append(step, id, slot, sequence, chunk);
            if sequence.begin() {
                out.push(Outcome::Progress { id });
            }
        }
    }
}

/// A chunk that ends at a multiple of [`KV_BLOCK_TOKENS`], where it is not the end and not within the first block: an executor that reads
/// prompts in blocks then has no rests of them, and cuts change no bit.
fn whole_blocks(position: u32, chunk: u32, left: u32) -> u32 {
    let block = KV_BLOCK_TOKENS as u32;
    let end = (position + chunk) / block * block;
    if chunk < left && end > position { end - position } else { chunk }
}

/// Adds the next `tokens` inputs of a sequence.
fn append(step: &mut Step, id: SequenceId, slot: SlotId, sequence: &Sequence, tokens: u32) {
    let batch = &mut step.batch;
    let start = batch.ids.len() as u32;
    sequence.inputs(tokens, &mut batch.ids);
    let prompt = sequence.spec.request().prompt.len() as u32;
    batch.segments.push(Segment { slot, start, tokens, position: sequence.position(), prompt });
    let end = start + tokens;
    if sequence.spec.request().raw_logits {
        batch.logit_rows.extend(start..end);
    } else if sequence.prompt_left() <= tokens {
        batch.logit_rows.push(end - 1);
    }
    step.owners.push(id);
    step.thresholds.push(sequence.spec.request().expert_threshold);
    step.tallies.push(sequence.spec.request().tally);
    step.given_up.push(None);
}
