//! What the next step computes.

use std::sync::Arc;

use super::room::MOST_OVERTAKING;
use super::sequence::{Busy, Sequence};
use super::{Priority, Scheduler, StepKind};
use crate::executor::{Batch, KV_BLOCK_TOKENS, Segment, StepId};
use crate::step::{SequenceEvent, SequenceId, Step};

/// Bytes of raw logits that one prefill step returns at most (one row always): 20 rows of M1's vocabulary, thousands of
/// a test model's. They all lie in memory at once before they are sent.
const RAW_LOGIT_BYTES: u64 = 16 << 20;

impl Scheduler {
    /// The next step, or `None` where nothing can be computed beside the steps in flight. What has happened to sequences goes to `out`:
    /// one has left the queue, is set aside, or has come to its length because it fills all KV blocks.
    pub fn next_step(&mut self, out: &mut Vec<SequenceEvent>) -> Option<Step> {
        // Where a sequence of the one kind goes aside, there may be work of the other.
        for _ in 0..2 {
            let kind = self.next_kind()?;
            self.last_kind = kind;
            let mut step = self.spare.pop().unwrap_or_else(Step::blank);
            let mut batch = step.reset(StepId(self.last_step.0 + 1), kind);
            match kind {
                StepKind::Decode => self.plan_decode(&mut step, &mut batch, out),
                StepKind::Prefill => self.plan_prefill(&mut step, &mut batch, out),
            }
            let empty = batch.ids.is_empty();
            step.batch = Arc::new(batch);
            if !empty {
                self.last_step = step.id;
                self.flying.push((step.id, kind));
                return Some(step);
            }
            self.spare.push(step);
        }
        None
    }

    /// The kinds take turns while there is work for both. Two of a kind would read the weights twice for what one can do.
    fn next_kind(&self) -> Option<StepKind> {
        let lands = |kind| self.flying.iter().all(|(_, other)| *other != kind);
        let prefill = lands(StepKind::Prefill) && !self.prefilling.is_empty();
        let decode = lands(StepKind::Decode) && self.running.values().any(Sequence::is_ready);
        match (decode, prefill, self.last_kind) {
            (true, true, StepKind::Prefill) | (true, false, _) => Some(StepKind::Decode),
            (true, true, StepKind::Decode) | (false, true, _) => Some(StepKind::Prefill),
            (false, false, _) => None,
        }
    }

    /// The oldest get KV blocks first; rows lie by slot, so that states that lie side by side are read one after another.
    fn plan_decode(&mut self, step: &mut Step, batch: &mut Batch, out: &mut Vec<SequenceEvent>) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let mut next = SequenceId(0);
        while let Some(id) = self.running.range(next..).find(|(_, sequence)| sequence.is_ready()).map(|(id, _)| *id) {
            next = SequenceId(id.0 + 1);
            if self.secure(id, 1, out) {
                ready.extend(self.running.get(&id).and_then(|sequence| Some((sequence.slot?, id))));
            }
        }
        ready.sort_unstable();
        for (_, id) in &ready {
            self.append(step, batch, *id, 1);
        }
        self.ready = ready;
    }

    fn plan_prefill(&mut self, step: &mut Step, batch: &mut Batch, out: &mut Vec<SequenceEvent>) {
        let streams = self.running.values().any(|sequence| sequence.prompt_left() == 0);
        let whole = if streams { self.config.prefill_beside } else { self.config.prefill_tokens };
        let mut budget = whole;
        let row_bytes = u64::from(self.config.limits.vocab) * size_of::<f32>() as u64;
        let most_raw = u32::try_from(RAW_LOGIT_BYTES / row_bytes).unwrap_or(u32::MAX).max(1);
        let mut raw_rows = most_raw;
        self.order_prompts();
        for _ in 0..self.prefilling.len() {
            let Some(id) = self.prefilling.pop_front() else { break };
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            let request = sequence.spec.request();
            let raw = request.raw_logits;
            let of_request = if request.prefill_chunk > 0 { request.prefill_chunk } else { u32::MAX };
            let most = of_request.min(whole).min(if raw { most_raw } else { u32::MAX });
            let left = sequence.prompt_left();
            let chunk = most.min(left).min(budget).min(if raw { raw_rows } else { u32::MAX });
            let chunk = whole_blocks(sequence.position(), chunk, left, most);
            if chunk == 0 || !self.secure(id, chunk, out) {
                // Unless it was set aside for want of blocks.
                if self.running.get(&id).is_some_and(|sequence| sequence.busy == Busy::Free) {
                    self.prefilling.push_back(id);
                }
                continue;
            }
            budget -= chunk;
            raw_rows -= if raw { chunk } else { 0 };
            if self.running.get_mut(&id).is_some_and(Sequence::begin) {
                out.push(SequenceEvent::Progress { id });
            }
            self.append(step, batch, id, chunk);
        }
    }

    /// Interactive prompts go before batch ones; now and then it is those that go first. Among equals turns stay as they are.
    fn order_prompts(&mut self) {
        let priority = |id: &SequenceId| self.running.get(id).map(Sequence::priority);
        let batch = self.prefilling.iter().any(|id| priority(id) == Some(Priority::Batch));
        let first = match batch && self.overtaken_prefill >= MOST_OVERTAKING {
            true => Priority::Batch,
            false => Priority::Interactive,
        };
        let others = self.prefilling.iter().any(|id| priority(id) == Some(Priority::Interactive));
        self.overtaken_prefill = if batch && others && first == Priority::Interactive { self.overtaken_prefill + 1 } else { 0 };
        if batch && others {
            self.prefilling.make_contiguous().sort_by_key(|id| self.running.get(id).map(Sequence::priority) != Some(first));
        }
    }

    /// Adds the next `tokens` inputs of a sequence, which has the KV blocks that they need.
    fn append(&mut self, step: &mut Step, batch: &mut Batch, id: SequenceId, tokens: u32) {
        let Some((sequence, slot)) = self.running.get_mut(&id).and_then(|s| s.slot.map(|slot| (s, slot))) else { return };
        let (start, position) = (batch.ids.len() as u32, sequence.position());
        let told = self.config.limits.blocks_of(u64::from(position)) as usize;
        let fresh = sequence.blocks.get(told..).unwrap_or_default();
        batch.blocks.extend_from_slice(fresh);
        let (fresh, end, request) = (fresh.len() as u32, start + tokens, sequence.spec.request());
        let (prompt, threshold) = (request.prompt.len() as u32, request.expert_threshold);
        batch.segments.push(Segment { slot, start, tokens, position, prompt, fresh, threshold });
        let counted = sequence.counted_of(tokens);
        if request.raw_logits {
            batch.logit_rows.extend(start + counted..end);
        }
        if sequence.draws_after(tokens) {
            batch.draws.push(sequence.draw(end - 1, position + tokens, &self.known, &self.every));
        }
        step.owners.push(id);
        step.tallies.push(request.tally);
        step.counted.push(counted);
        step.given_up.push(None);
        sequence.inputs(tokens, &mut batch.ids);
        sequence.busy = Busy::Step(step.id);
    }
}

/// A chunk that ends at a multiple of [`KV_BLOCK_TOKENS`], where it is not the end: an executor that reads prompts in blocks then has no rests of
/// them, and cuts change no bit. 0 where this step has no room for so much; only a sequence that never gets more (`most`) is cut within a block.
fn whole_blocks(position: u32, chunk: u32, left: u32, most: u32) -> u32 {
    let block = KV_BLOCK_TOKENS as u32;
    let end = (position + chunk) / block * block;
    if chunk == left {
        chunk
    } else if end > position {
        end - position
    } else if most < block - position % block {
        chunk
    } else {
        0
    }
}
