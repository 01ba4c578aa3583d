//! What the next step computes.

use std::sync::Arc;

use super::sequence::Sequence;
use super::{Scheduler, StepKind};
use crate::executor::{Batch, KV_BLOCK_TOKENS, Segment, StepId};
use crate::step::{Outcome, SequenceId, Step};

/// Bytes of raw logits that one prefill step returns at most (one row always): 20 rows of M1's vocabulary, thousands of
/// a test model's. They all lie in memory at once before they are sent.
const RAW_LOGIT_BYTES: u64 = 16 << 20;

impl Scheduler {
    /// The next step, or `None` where nothing is to be computed beside the steps in flight. The word that a sequence has left the queue
    /// goes to `out`.
    pub fn next_step(&mut self, out: &mut Vec<Outcome>) -> Option<Step> {
        let kind = self.next_kind()?;
        self.last_kind = kind;
        self.last_step = StepId(self.last_step.0 + 1);
        self.flying.push((self.last_step, kind));
        let mut step = self.spare.pop().unwrap_or_else(Step::blank);
        let mut batch = step.reset(self.last_step, kind);
        match kind {
            StepKind::Decode => self.plan_decode(&mut step, &mut batch),
            StepKind::Prefill => self.plan_prefill(&mut step, &mut batch, out),
        }
        step.batch = Arc::new(batch);
        Some(step)
    }

    /// The kinds take turns while there is work for both. Two of a kind would read the weights twice for what one can do.
    fn next_kind(&self) -> Option<StepKind> {
        let lands = |kind| self.flying.iter().all(|(_, other)| *other != kind);
        let prefill = lands(StepKind::Prefill) && !self.prefilling.is_empty();
        let ready = |sequence: &Sequence| sequence.step.is_none() && sequence.prompt_left() == 0;
        let decode = lands(StepKind::Decode) && self.running.values().any(ready);
        match (decode, prefill, self.last_kind) {
            (true, true, StepKind::Prefill) | (true, false, _) => Some(StepKind::Decode),
            (true, true, StepKind::Decode) | (false, true, _) => Some(StepKind::Prefill),
            (false, false, _) => None,
        }
    }

    /// By slot, so that states that lie side by side are read one after another.
    fn plan_decode(&mut self, step: &mut Step, batch: &mut Batch) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let free = self.running.iter().filter(|(_, sequence)| sequence.step.is_none() && sequence.prompt_left() == 0);
        ready.extend(free.filter_map(|(id, sequence)| Some((sequence.slot?, *id))));
        ready.sort_unstable();
        for (_, id) in &ready {
            self.append(step, batch, *id, 1);
        }
        self.ready = ready;
    }

    fn plan_prefill(&mut self, step: &mut Step, batch: &mut Batch, out: &mut Vec<Outcome>) {
        let mut budget = self.config.prefill_tokens;
        let row_bytes = u64::from(self.config.limits.vocab) * size_of::<f32>() as u64;
        let mut raw_rows = u32::try_from(RAW_LOGIT_BYTES / row_bytes).unwrap_or(u32::MAX).max(1);
        for _ in 0..self.prefilling.len() {
            let Some(id) = self.prefilling.pop_front() else { break };
            let Some(sequence) = self.running.get_mut(&id) else { continue };
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
            if sequence.begin() {
                out.push(Outcome::Progress { id });
            }
            self.append(step, batch, id, chunk);
        }
    }

    /// Adds the next `tokens` inputs of a sequence, with the KV blocks that they need.
    fn append(&mut self, step: &mut Step, batch: &mut Batch, id: SequenceId, tokens: u32) {
        let Some((sequence, slot)) = self.running.get_mut(&id).and_then(|s| s.slot.map(|slot| (s, slot))) else { return };
        let (start, position) = (batch.ids.len() as u32, sequence.position());
        let needed = self.config.limits.blocks_of(u64::from(position) + u64::from(tokens)) as usize;
        let held = sequence.blocks.len();
        while sequence.blocks.len() < needed {
            // Reserved when it was let in.
            let Some(block) = self.pool.take_block(sequence.blocks.last().copied()) else { break };
            sequence.blocks.push(block);
        }
        let fresh = &sequence.blocks[held..];
        batch.blocks.extend_from_slice(fresh);
        let (fresh, end, request) = (fresh.len() as u32, start + tokens, sequence.spec.request());
        let (prompt, threshold) = (request.prompt.len() as u32, request.expert_threshold);
        batch.segments.push(Segment { slot, start, tokens, position, prompt, fresh, threshold });
        if request.raw_logits {
            batch.logit_rows.extend(start..end);
        }
        if sequence.prompt_left() <= tokens {
            batch.draws.push(sequence.draw(end - 1, position + tokens, &self.known, &self.every));
        }
        step.owners.push(id);
        step.tallies.push(request.tally);
        step.given_up.push(None);
        sequence.inputs(tokens, &mut batch.ids);
        sequence.step = Some(step.id);
    }
}

/// A chunk that ends at a multiple of [`KV_BLOCK_TOKENS`], where it is not the end and not within the first block: an executor that reads
/// prompts in blocks then has no rests of them, and cuts change no bit.
fn whole_blocks(position: u32, chunk: u32, left: u32) -> u32 {
    let block = KV_BLOCK_TOKENS as u32;
    let end = (position + chunk) / block * block;
    if chunk < left && end > position { end - position } else { chunk }
}
