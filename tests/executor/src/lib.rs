//! One suite for every executor behind the port of `m1-engine`: goldens of two tiny models, packed batches, steps side by side, the order
//! of commands, refusals, experts that come and go, sequences that are moved. A crate that has an executor says how it is made, and
//! `suite!` gives it the tests.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod drawing;
mod goldens;
mod moving;
mod order;
mod packing;
mod rig;

use std::sync::Arc;

use std::collections::BTreeMap;
use std::path::PathBuf;

use m1_arch::{Architecture, ExpertSet};
use m1_engine::{CacheSize, Executor, SlotId};
use m1_weights::Checkpoint;

pub use rig::{Outcome, Rig, Turn};

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

/// Makes an executor, or says in one word why not.
pub type Load<E> = fn(&Checkpoint, &ExpertSet, CacheSize, &mut dyn FnMut(u64)) -> Result<E, &'static str>;

/// How an executor is made. Errors are their `reason()`.
#[derive(Debug, Clone, Copy)]
pub struct Suite<E> {
    pub load: Load<E>,
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
            who_holds_all_experts_is_asked_nothing,
            prefill_and_decode_of_several_sequences_in_one_batch,
            a_slot_that_begins_anew_remembers_nothing,
            scattered_kv_blocks_are_read_in_order,
            two_steps_in_flight_leave_each_other_alone,
            what_does_not_fit_is_refused_and_changes_nothing,
            commands_out_of_order_end_their_step_and_no_other,
            an_aborted_step_is_gone,
            requests_of_a_layer_are_served_together_and_refused_one_by_one,
            serving_leaves_the_step_in_flight_alone,
            holdings_change_beside_a_step_and_what_is_not_held_is_refused,
            a_sequence_goes_on_where_it_was_exported,
            a_fork_and_its_origin_go_their_own_ways,
            a_state_that_does_not_fit_is_refused,
            ids_are_drawn_from_their_rows,
        );
    };
}

impl<E: Executor<Weights = Arc<Checkpoint>>> Suite<E> {
    pub fn open(&self, checkpoint: &Checkpoint, experts: &ExpertSet) -> Rig<E> {
        let executor = (self.load)(checkpoint, experts, SIZE, &mut |_| {}).unwrap();
        assert_eq!((executor.held(), executor.capabilities().size), (experts, SIZE));
        Rig::new(executor, checkpoint.architecture())
    }

    pub fn whole(&self, model: &str) -> Rig<E> {
        let checkpoint = checkpoint(model);
        self.open(&checkpoint, &all_experts(checkpoint.architecture()))
    }

    /// Prefill in chunks, then greedy decode, against the golden; the largest difference of a logit seen.
    pub fn check(&self, own: &mut Rig<E>, mut peer: Option<&mut Rig<E>>, ids: &[u32], golden: &Golden, chunk: usize) -> f32 {
        let slot = SlotId(0);
        let mut rows = Vec::new();
        for part in ids.chunks(chunk) {
            let turn = Turn { slot, position: rows.len(), ids: part.to_vec(), prompt: ids.len() };
            rows.extend(own.step(peer.as_deref_mut(), &[turn]).unwrap().logits);
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
            let turn = Turn { slot, position: ids.len() + k, ids: vec![*token], prompt: ids.len() };
            let logits = own.step(peer.as_deref_mut(), &[turn]).unwrap().logits.remove(0);
            worst = worst.max(difference(&logits, wanted));
            next = argmax(&logits);
        }
        own.close(slot);
        worst
    }
}
