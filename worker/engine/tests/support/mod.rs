//! A device double whose logits are a hash of everything its slot has seen, and the loop that drives a scheduler with it.
//! A row in the wrong slot, order or position changes what is said.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
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

#[derive(Debug)]
pub struct Double {
    slots: u32,
    pub open: BTreeMap<SlotId, Vec<u32>>,
    hashes: Vec<u64>,
    logits: Vec<f32>,
    pub steps: usize,
}

impl Double {
    pub fn new(slots: u32) -> Self {
        Self { slots, open: BTreeMap::new(), hashes: Vec::new(), logits: Vec::new(), steps: 0 }
    }
}

impl Executor for Double {
    fn open_slot(&mut self) -> Result<SlotId, ExecutorError> {
        let free = (0..self.slots).map(SlotId).find(|slot| !self.open.contains_key(slot));
        let slot = free.ok_or(ExecutorError::NoFreeSlot { slots: self.slots })?;
        self.open.insert(slot, Vec::new());
        Ok(slot)
    }

    fn close_slot(&mut self, slot: SlotId) {
        assert!(self.open.remove(&slot).is_some(), "slot {slot:?} closed twice");
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        assert!(!batch.segments.is_empty());
        let slots: BTreeSet<SlotId> = batch.segments.iter().map(|segment| segment.slot).collect();
        assert_eq!(slots.len(), batch.segments.len(), "a slot came twice");
        assert!(batch.logit_rows.is_sorted());
        (self.hashes, self.logits) = (Vec::new(), Vec::new());
        for segment in &batch.segments {
            assert!(segment.tokens > 0);
            assert_eq!(segment.start as usize, self.hashes.len(), "segments are packed");
            let seen = self.open.get_mut(&segment.slot).expect("an open slot");
            assert_eq!(segment.position as usize, seen.len(), "a sequence goes on where it was");
            for row in segment.start..segment.start + segment.tokens {
                seen.push(batch.ids[row as usize]);
                self.hashes.push(digest(seen));
                if batch.logit_rows.contains(&row) {
                    self.logits.extend(logits_after(seen));
                }
            }
        }
        assert_eq!(self.hashes.len(), batch.ids.len());
        self.steps += 1;
        Ok(())
    }

    fn attention(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), ExecutorError> {
        routing.reset(self.hashes.len(), SHAPE.top_k);
        for (row, &hash) in self.hashes.iter().enumerate() {
            let pick = mix(hash, u64::from(layer.0) + 1000);
            let (first, step) = ((pick % 4) as u16, (pick >> 8) as u16 % 3 + 1);
            let weight = 0.5 + (pick >> 16 & 0xff) as f32 / 512.0;
            routing.experts[row * 2..row * 2 + 2].copy_from_slice(&[first, (first + step) % 4]);
            routing.weights[row * 2..row * 2 + 2].copy_from_slice(&[weight, 1.0 - weight]);
        }
        Ok(())
    }

    fn gather(&mut self, _: &[u32], _: &mut BytesMut) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn local(&mut self, _: LayerId, _: &Assignment<'_>) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn accumulate(&mut self, _: &[u32], _: &[u8]) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn combine(&mut self, _: LayerId) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn end_step(&mut self, logits: &mut Vec<f32>) -> Result<(), ExecutorError> {
        logits.clear();
        logits.append(&mut self.logits);
        Ok(())
    }

    fn serve(&mut self, _: LayerId, _: &[u8], _: &Assignment<'_>, _: &mut BytesMut) -> Result<(), ExecutorError> {
        Ok(())
    }
}

pub fn limits() -> Limits {
    Limits { vocab: VOCAB, max_context: 64, slots: 3, kv_block_tokens: 4, kv_blocks: 20 }
}

pub fn scheduler(limits: Limits, queue: u32, prefill_tokens: u32) -> Scheduler {
    let config = SchedulerConfig { limits, queue, prefill_tokens };
    Scheduler::new(config, SHAPE, AllowedIds::from_ids(VOCAB, 0..KNOWN)).unwrap()
}

/// Computes a step up to its logits.
pub fn compute(scheduler: &mut Scheduler, device: &mut Double, step: &Step) -> Vec<f32> {
    let (mut routing, mut logits) = (LayerRouting::default(), Vec::new());
    device.begin_step(&step.batch).unwrap();
    for layer in (0..SHAPE.layers as u16).map(LayerId) {
        device.attention(layer, &mut routing).unwrap();
        scheduler.route(step, layer, &mut routing).unwrap();
        device.combine(layer).unwrap();
    }
    device.end_step(&mut logits).unwrap();
    logits
}

/// Text that means nothing.
pub fn deaf(_: SequenceId, _: u32) -> Heard {
    Heard::default()
}

/// One whole step; its kind, and what came of it.
pub fn turn(scheduler: &mut Scheduler, device: &mut Double) -> Option<(StepKind, Vec<Outcome>)> {
    turn_heard(scheduler, device, &mut deaf)
}

/// The same, with somebody who understands the text.
pub fn turn_heard(
    scheduler: &mut Scheduler,
    device: &mut Double,
    hear: &mut dyn FnMut(SequenceId, u32) -> Heard,
) -> Option<(StepKind, Vec<Outcome>)> {
    let mut out = Vec::new();
    let step = scheduler.next_step(device, &mut out)?;
    let kind = step.kind;
    let logits = compute(scheduler, device, &step);
    scheduler.complete(step, &logits, hear, &mut out);
    Some((kind, out))
}

/// Runs until nothing is left; everything that came.
pub fn drain(scheduler: &mut Scheduler, device: &mut Double) -> Vec<Outcome> {
    let mut all = Vec::new();
    while let Some((_, out)) = turn(scheduler, device) {
        all.extend(out);
        assert!(all.len() < 100_000, "it never ends");
    }
    all
}

/// The output ids of one sequence.
pub fn tokens_of(outcomes: &[Outcome], of: SequenceId) -> Vec<u32> {
    let token = |outcome: &Outcome| match outcome {
        Outcome::Token { id, token, .. } if *id == of => Some(*token),
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
