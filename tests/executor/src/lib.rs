//! One suite for every executor behind the port of `m1-engine`: goldens of two tiny models, packed batches, the order of calls,
//! refusals, and experts that come and go. A crate that has an executor says how it is made, and `suite!` gives it the tests.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod goldens;
mod order;
mod packing;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::BytesMut;
use m1_arch::{Architecture, ExpertId, ExpertSet};
use m1_engine::{Assignment, Batch, CacheSize, Executor, ExecutorError, LayerRouting, Segment, SlotId, UNUSED};
use m1_weights::Checkpoint;

/// Prompt lengths of the goldens.
pub const LENGTHS: [usize; 6] = [1, 7, 255, 256, 257, 700];
/// Largest difference of a logit from its golden.
pub const TOLERANCE: f32 = 1e-4;
/// Room for the longest prompt and its decode, in every slot.
pub const SIZE: CacheSize = CacheSize { slots: 8, kv_blocks: 8 * 13 };

pub fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../model/testdata").join(name)
}

pub fn checkpoint(model: &str) -> Checkpoint {
    Checkpoint::open(&testdata(&format!("tiny-{model}"))).unwrap()
}

pub fn all_experts(arch: &Architecture) -> ExpertSet {
    ExpertSet::full(arch.layers.len(), arch.experts)
}

pub fn prompts(model: &str) -> BTreeMap<usize, Vec<u32>> {
    let text = std::fs::read_to_string(testdata(&format!("tiny-{model}/prompts.json"))).unwrap();
    let by_name: BTreeMap<String, Vec<u32>> = serde_json::from_str(&text).unwrap();
    by_name.into_iter().map(|(length, ids)| (length.parse().unwrap(), ids)).collect()
}

/// Expected values of one prompt.
pub struct Golden {
    pub positions: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
    pub argmax: Vec<u32>,
    pub decode_tokens: Vec<u32>,
    pub decode_logits: Vec<Vec<f32>>,
}

pub fn golden(model: &str, length: usize) -> Golden {
    let bytes = std::fs::read(testdata(&format!("golden-{model}-partial-fp32.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> (Vec<u8>, Vec<usize>) {
        let tensor = file.tensor(&format!("p{length}.{name}")).unwrap();
        (tensor.data().to_vec(), tensor.shape().to_vec())
    };
    let ids = |name| words(name).0.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    let rows = |name| {
        let (data, shape) = words(name);
        let values: Vec<f32> = data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        values.chunks(shape[1]).map(<[f32]>::to_vec).collect()
    };
    let positions = words("positions").0;
    Golden {
        positions: positions.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect(),
        logits: rows("logits"),
        argmax: ids("argmax"),
        decode_tokens: ids("decode_tokens"),
        decode_logits: rows("decode_logits"),
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// One sequence's part of a step.
#[derive(Clone)]
pub struct Turn {
    pub slot: SlotId,
    pub position: usize,
    pub ids: Vec<u32>,
    /// Tokens of the sequence's prompt.
    pub prompt: usize,
}

/// Packs turns one after another, all rows' logits wanted.
pub fn pack(turns: &[Turn]) -> Batch {
    let mut batch = Batch::default();
    for turn in turns {
        batch.segments.push(Segment {
            slot: turn.slot,
            start: batch.ids.len() as u32,
            tokens: turn.ids.len() as u32,
            position: turn.position as u32,
            prompt: turn.prompt as u32,
        });
        batch.ids.extend(&turn.ids);
    }
    batch.logit_rows = (0..batch.ids.len() as u32).collect();
    batch
}

/// Makes an executor, or says in one word why not.
pub type Load<E> = fn(&Checkpoint, &ExpertSet, CacheSize, &mut dyn FnMut(u64)) -> Result<E, &'static str>;
/// Changes what it holds, or says in one word why not.
pub type Update<E> = fn(&mut E, &Checkpoint, &ExpertSet, &mut dyn FnMut(u64)) -> Result<(), &'static str>;

/// How an executor is made and asked what the port does not ask. Errors are their `reason()`.
#[derive(Debug, Clone, Copy)]
pub struct Suite<E> {
    pub load: Load<E>,
    pub update: Update<E>,
    pub held: fn(&E) -> &ExpertSet,
    pub architecture: fn(&E) -> &Architecture,
    /// Largest difference that company may make: 0 where bits are promised.
    pub company: f32,
}

/// The tests of the suite, for an executor that `$suite` makes.
#[macro_export]
macro_rules! suite {
    ($suite:expr; $($test:ident),+ $(,)?) => {
        $(#[test]
        fn $test() {
            $suite.$test();
        })+
    };
    ($suite:expr) => {
        $crate::suite!($suite;
            every_length_in_one_piece_and_in_chunks,
            experts_on_a_peer_give_the_same,
            prefill_and_decode_of_several_sequences_in_one_batch,
            a_reopened_slot_remembers_nothing,
            scattered_kv_blocks_are_read_in_order,
            a_full_kv_cache_refuses_and_changes_nothing,
            calls_out_of_order_are_refused_and_the_step_goes_on,
            slots_are_counted_and_positions_must_follow,
            holdings_change_and_what_is_not_held_is_refused,
            a_refused_assignment_adds_nothing,
            serving_leaves_the_step_in_flight_alone,
        );
    };
}

impl<E: Executor> Suite<E> {
    pub fn open(&self, checkpoint: &Checkpoint, experts: &ExpertSet) -> E {
        (self.load)(checkpoint, experts, SIZE, &mut |_| {}).unwrap()
    }

    pub fn whole(&self, model: &str) -> E {
        let checkpoint = checkpoint(model);
        self.open(&checkpoint, &all_experts(checkpoint.architecture()))
    }

    /// One step of `own`; experts that it does not hold are asked of `peer`. Logits by row.
    pub fn step(&self, own: &mut E, mut peer: Option<&mut E>, batch: &Batch) -> Result<Vec<Vec<f32>>, ExecutorError> {
        let arch = (self.architecture)(own).clone();
        let (mut routing, held) = (LayerRouting::default(), (self.held)(own).clone());
        own.begin_step(batch)?;
        for layer in arch.layer_ids() {
            own.attention(layer, &mut routing)?;
            let rows: Vec<u32> = (0..routing.tokens as u32).collect();
            let here = |expert: &u16| held.contains(layer, ExpertId(*expert));
            let mine: Vec<u16> = routing.experts.iter().map(|e| if here(e) { *e } else { UNUSED }).collect();
            let theirs: Vec<u16> = routing.experts.iter().map(|e| if here(e) { UNUSED } else { *e }).collect();
            if let Some(peer) = peer.as_deref_mut() {
                let wanted: Vec<u32> =
                    rows.iter().copied().filter(|r| theirs_of(&theirs, *r, arch.top_k).any(|e| e != UNUSED)).collect();
                let experts: Vec<u16> = wanted.iter().flat_map(|r| theirs_of(&theirs, *r, arch.top_k)).collect();
                let weights: Vec<f32> =
                    wanted.iter().flat_map(|r| (0..arch.top_k).map(|k| routing.weights[*r as usize * arch.top_k + k])).collect();
                let (mut hidden, mut sums) = (BytesMut::new(), BytesMut::new());
                own.gather(&wanted, &mut hidden)?;
                let numbered: Vec<u32> = (0..wanted.len() as u32).collect();
                let assignment = Assignment { rows: &numbered, slots: arch.top_k, experts: &experts, weights: &weights };
                peer.serve(layer, &hidden, &assignment, &mut sums)?;
                own.local(layer, &Assignment { rows: &rows, slots: arch.top_k, experts: &mine, weights: &routing.weights })?;
                own.accumulate(&wanted, &sums)?;
            } else {
                own.local(
                    layer,
                    &Assignment { rows: &rows, slots: arch.top_k, experts: &routing.experts, weights: &routing.weights },
                )?;
            }
            own.combine(layer)?;
        }
        let mut logits = Vec::new();
        own.end_step(&mut logits)?;
        Ok(logits.chunks(arch.vocab).map(<[f32]>::to_vec).collect())
    }

    /// Prefill in chunks, then greedy decode, against the golden; the largest difference of a logit seen.
    pub fn check(&self, own: &mut E, mut peer: Option<&mut E>, ids: &[u32], golden: &Golden, chunk: usize) -> f32 {
        let slot = own.open_slot().unwrap();
        let mut rows = Vec::new();
        for part in ids.chunks(chunk) {
            let batch = pack(&[Turn { slot, position: rows.len(), ids: part.to_vec(), prompt: ids.len() }]);
            rows.extend(self.step(own, peer.as_deref_mut(), &batch).unwrap());
        }
        let mut worst = 0f32;
        for (position, wanted) in golden.positions.iter().zip(&golden.logits) {
            worst = worst.max(difference(&rows[*position], wanted));
        }
        let argmaxes: Vec<u32> = rows.iter().map(|row| argmax(row)).collect();
        assert_eq!(argmaxes, golden.argmax, "argmax of {} tokens in chunks of {chunk}", ids.len());
        let mut next = argmaxes[argmaxes.len() - 1];
        for (k, (token, wanted)) in golden.decode_tokens.iter().zip(&golden.decode_logits).enumerate() {
            assert_eq!(next, *token, "decode token {k} of {} tokens", ids.len());
            let batch = pack(&[Turn { slot, position: ids.len() + k, ids: vec![*token], prompt: ids.len() }]);
            let logits = self.step(own, peer.as_deref_mut(), &batch).unwrap().remove(0);
            worst = worst.max(difference(&logits, wanted));
            next = argmax(&logits);
        }
        own.close_slot(slot);
        worst
    }
}

fn theirs_of(experts: &[u16], row: u32, top_k: usize) -> impl Iterator<Item = u16> + '_ {
    (0..top_k).map(move |k| experts[row as usize * top_k + k])
}
