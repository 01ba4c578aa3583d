//! A device double whose logits are a hash of everything its slot has seen, and the loop that drives a scheduler with it.
//! A row in the wrong slot, order or position changes what is said.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use m1_arch::LayerId;
use m1_engine::*;

pub const VOCAB: u32 = 70;
/// Ids from here on are never drawn; the ids that close the reasoning are among them.
pub const KNOWN: u32 = 60;
pub const SHAPE: RoutingShape = RoutingShape { layers: 3, experts: 4, top_k: 2 };

fn mix(seed: u64, value: u64) -> u64 {
    let mut z = (seed ^ value.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 32)
}

/// Hash of a sequence's tokens.
fn digest(tokens: &[u32]) -> u64 {
    tokens.iter().fold(1, |hash, &token| mix(hash, u64::from(token)))
}

/// The logits after these tokens.
pub fn logits_after(tokens: &[u32]) -> Vec<f32> {
    let hash = digest(tokens);
    (0..VOCAB).map(|id| (mix(hash, u64::from(id)) % 64) as f32 / 8.0).collect()
}

/// What the double knows of a slot.
#[derive(Debug, Default)]
struct Slot {
    seen: Vec<u32>,
    blocks: Vec<u32>,
}

#[derive(Debug)]
pub struct Double {
    slots: BTreeMap<SlotId, Slot>,
    limits: Limits,
    sampler: Sampler,
    pub steps: usize,
}

impl Double {
    pub fn new(limits: Limits) -> Self {
        Self { slots: BTreeMap::new(), limits, sampler: Sampler::default(), steps: 0 }
    }

    /// Computes a step from its beginning to its end.
    pub fn compute(&mut self, batch: &Batch, results: &mut Results) {
        assert!(!batch.segments.is_empty());
        let slots: BTreeSet<SlotId> = batch.segments.iter().map(|segment| segment.slot).collect();
        assert_eq!(slots.len(), batch.segments.len(), "a slot came twice");
        assert!(batch.logit_rows.is_sorted() && batch.draws.is_sorted_by_key(|draw| draw.row));
        results.begin(batch.ids.len());
        let (mut hashes, mut logits) = (Vec::new(), Vec::new());
        let mut fresh = batch.blocks.iter().copied();
        for segment in &batch.segments {
            assert!(segment.tokens > 0 && segment.slot.0 < self.limits.slots);
            assert_eq!(segment.start as usize, hashes.len(), "segments are packed");
            self.grow(segment, fresh.by_ref().take(segment.fresh as usize).collect());
            let slot = self.slots.get_mut(&segment.slot).expect("a slot that was begun");
            for row in segment.rows() {
                slot.seen.push(batch.ids[row]);
                hashes.push(digest(&slot.seen));
                logits.push(logits_after(&slot.seen));
            }
            let needed = slot.seen.len().div_ceil(self.limits.kv_block_tokens as usize);
            assert_eq!(slot.blocks.len(), needed, "as many blocks as tokens need");
        }
        assert_eq!((hashes.len(), fresh.next()), (batch.ids.len(), None));
        for layer in (0..SHAPE.layers as u16).map(LayerId) {
            results.routing.book(layer, &mut route(layer, &hashes), &batch.segments).unwrap();
        }
        results.drawn.extend(batch.draws.iter().map(|draw| self.sampler.draw(&logits[draw.row as usize], draw)));
        batch.logit_rows.iter().for_each(|row| results.logits.extend(&logits[*row as usize]));
        self.steps += 1;
    }

    /// Does what the scheduler wants of sequences' states.
    pub fn carry_out(&mut self, what: Move, scheduler: &mut Scheduler) {
        match what {
            Move::Export { slot } => scheduler.exported(slot, Ok(self.export(slot))),
            Move::Import { slot, blocks, state } => {
                let ids = state.bytes.chunks(4).map(|id| u32::from_le_bytes(id.try_into().unwrap()));
                blocks.iter().for_each(|block| self.slots.retain(|_, slot| !slot.blocks.contains(block)));
                self.slots.insert(slot, Slot { seen: ids.collect(), blocks });
                scheduler.imported(slot, Ok(()));
            }
            Move::Fork { .. } => panic!("the scheduler forks nothing"),
        }
    }

    fn export(&mut self, slot: SlotId) -> SequenceState {
        let seen = &self.slots[&slot].seen;
        SequenceState { tokens: seen.len() as u64, bytes: seen.iter().flat_map(|id| id.to_le_bytes()).collect() }
    }

    /// A sequence begins, or goes on where it was. Blocks that it takes from another slot are that one's end.
    fn grow(&mut self, segment: &Segment, fresh: Vec<u32>) {
        if segment.position == 0 {
            self.slots.insert(segment.slot, Slot::default());
        }
        for block in &fresh {
            assert!(*block < self.limits.kv_blocks, "block {block}");
            self.slots.retain(|_, slot| !slot.blocks.contains(block));
        }
        let slot = self.slots.get_mut(&segment.slot).expect("a sequence whose blocks nobody else got");
        assert_eq!(segment.position as usize, slot.seen.len(), "a sequence goes on where it was");
        slot.blocks.extend(fresh);
    }
}

/// Experts of rows with these hashes.
fn route(layer: LayerId, hashes: &[u64]) -> LayerRouting {
    let mut routing = LayerRouting::default();
    routing.reset(hashes.len(), SHAPE.top_k);
    for (row, &hash) in hashes.iter().enumerate() {
        let pick = mix(hash, u64::from(layer.0) + 1000);
        let (first, step) = ((pick % 4) as u16, (pick >> 8) as u16 % 3 + 1);
        let weight = 0.5 + (pick >> 16 & 0xff) as f32 / 512.0;
        routing.experts[row * 2..row * 2 + 2].copy_from_slice(&[first, (first + step) % 4]);
        routing.weights[row * 2..row * 2 + 2].copy_from_slice(&[weight, 1.0 - weight]);
    }
    routing
}

pub fn limits() -> Limits {
    Limits { vocab: VOCAB, max_context: 64, slots: 3, kv_block_tokens: 4, kv_blocks: 20 }
}

pub fn scheduler(limits: Limits, queue: u32, prefill_tokens: u32) -> Scheduler {
    let config = SchedulerConfig { limits, queue, prefill_tokens, prefill_beside: prefill_tokens, aside_bytes: u64::MAX };
    Scheduler::new(config, SHAPE, AllowedIds::from_ids(VOCAB, 0..KNOWN)).unwrap()
}

/// Computes a step.
pub fn compute(scheduler: &mut Scheduler, device: &mut Double, step: &Step) -> Results {
    let mut results = scheduler.blank_results();
    device.compute(&step.batch, &mut results);
    results
}

/// The next step, once all that it waits for is done.
pub fn next(scheduler: &mut Scheduler, device: &mut Double, out: &mut Vec<SequenceEvent>) -> Option<Step> {
    loop {
        let moves = scheduler.take_moves();
        let moved = !moves.is_empty();
        moves.into_iter().for_each(|what| device.carry_out(what, scheduler));
        if let Some(step) = scheduler.next_step(out) {
            return Some(step);
        }
        let more = scheduler.take_moves();
        if more.is_empty() && !moved {
            return None;
        }
        more.into_iter().for_each(|what| device.carry_out(what, scheduler));
    }
}

/// Text that means nothing.
pub fn deaf(_: SequenceId, _: u32) -> Heard {
    Heard::default()
}

/// One whole step; its kind, and what came of it.
pub fn turn(scheduler: &mut Scheduler, device: &mut Double) -> Option<(StepKind, Vec<SequenceEvent>)> {
    turn_heard(scheduler, device, &mut deaf)
}

/// The same, with somebody who understands the text.
pub fn turn_heard(
    scheduler: &mut Scheduler,
    device: &mut Double,
    hear: &mut dyn FnMut(SequenceId, u32) -> Heard,
) -> Option<(StepKind, Vec<SequenceEvent>)> {
    let mut out = Vec::new();
    let Some(step) = next(scheduler, device, &mut out) else {
        // An end without a step.
        return (!out.is_empty()).then_some((StepKind::Decode, out));
    };
    let kind = step.kind;
    let results = compute(scheduler, device, &step);
    scheduler.complete(step, &results, hear, &mut out);
    scheduler.reuse(results);
    Some((kind, out))
}

/// Runs until nothing is left; everything that came.
pub fn drain(scheduler: &mut Scheduler, device: &mut Double) -> Vec<SequenceEvent> {
    let mut all = Vec::new();
    while let Some((_, out)) = turn(scheduler, device) {
        all.extend(out);
        assert!(all.len() < 100_000, "it never ends");
    }
    all
}

/// The output ids of one sequence.
pub fn tokens_of(outcomes: &[SequenceEvent], of: SequenceId) -> Vec<u32> {
    let token = |outcome: &SequenceEvent| match outcome {
        SequenceEvent::Token { id, token, .. } if *id == of => Some(*token),
        _ => None,
    };
    outcomes.iter().filter_map(token).collect()
}

/// What greedy decoding says, by definition.
pub fn greedy(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut seen = prompt.to_vec();
    for _ in 0..tokens {
        let logits = logits_after(&seen);
        let best = (0..KNOWN).rev().max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap();
        seen.push(best);
    }
    seen.split_off(prompt.len())
}

pub fn spec(request: SequenceRequest) -> SequenceSpec {
    SequenceSpec::new(request, &limits()).unwrap()
}

pub fn greedy_spec(prompt: Vec<u32>, max_tokens: u32) -> SequenceSpec {
    spec(SequenceRequest::greedy(prompt, max_tokens))
}

/// The end of one sequence.
pub fn end_of(outcomes: &[SequenceEvent], of: SequenceId) -> (&Finish, Usage, &RoutingCounts) {
    let mut ends = outcomes.iter().filter_map(|outcome| match outcome {
        SequenceEvent::Finished { id, finish, usage, routing } if *id == of => Some((finish, *usage, &**routing)),
        _ => None,
    });
    let end = ends.next().expect("an end");
    assert!(ends.next().is_none(), "one end only");
    end
}
