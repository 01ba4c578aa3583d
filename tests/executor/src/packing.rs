//! Sequences packed in one batch, or in steps side by side, compute what each computes alone, whatever slots and blocks they got.

use std::sync::Arc;

use m1_arch::ExpertSet;
use m1_engine::{Completion, Executor, SlotId};
use m1_weights::Checkpoint;

use crate::{Rig, Suite, Turn, all_experts, checkpoint, difference, golden, prompts};

impl<E: Executor<Weights = Arc<Checkpoint>>> Suite<E> {
    /// Logits by turn.
    pub(crate) fn together(&self, rig: &mut Rig<E>, turns: &[Turn]) -> Vec<Vec<Vec<f32>>> {
        let mut rows = rig.step(None, turns).unwrap().logits.into_iter();
        turns.iter().map(|turn| rows.by_ref().take(turn.ids.len()).collect()).collect()
    }

    pub(crate) fn assert_same(&self, a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
        assert_eq!(a.len(), b.len(), "{what}");
        for (row, (a, b)) in a.iter().zip(b).enumerate() {
            let d = difference(a, b);
            assert!(d <= self.company, "{what}, row {row}: {d:e}");
        }
    }

    pub fn prefill_and_decode_of_several_sequences_in_one_batch(&self) {
        for model in ["A", "B"] {
            let (mut rig, prompts) = (self.whole(model), prompts(model));
            let lengths = [257, 7, 1, 255];
            let alone: Vec<_> = lengths
                .iter()
                .map(|length| {
                    let turn = |position, ids| Turn { slot: SlotId(5), position, ids, prompt: *length };
                    let rows = self.together(&mut rig, &[turn(0, prompts[length].clone())]).remove(0);
                    let token = golden(model, *length).decode_tokens[0];
                    let next = self.together(&mut rig, &[turn(*length, vec![token])]).remove(0);
                    (rows, token, next)
                })
                .collect();
            let slots = [SlotId(2), SlotId(1), SlotId(0), SlotId(3)];
            let turn = |i: usize, from: usize, to: usize| Turn {
                slot: slots[i],
                position: from,
                ids: prompts[&lengths[i]][from..to].to_vec(),
                prompt: lengths[i],
            };
            let first = self.together(&mut rig, &[turn(0, 0, 128), turn(1, 0, 6), turn(2, 0, 1), turn(3, 0, 192)]);
            let second = self.together(&mut rig, &[turn(3, 192, 255), turn(1, 6, 7), turn(0, 128, 257)]);
            self.assert_same(&first[0], &alone[0].0[..128], "first chunk");
            self.assert_same(&first[1], &alone[1].0[..6], "beginning of a short prompt");
            self.assert_same(&first[2], &alone[2].0, "one token");
            self.assert_same(&second[0], &alone[3].0[192..], "end of a chunked prompt");
            self.assert_same(&second[1], &alone[1].0[6..], "one token among chunks");
            self.assert_same(&second[2], &alone[0].0[128..], "second chunk");
            let decode: Vec<_> =
                (0..4).map(|i| Turn { slot: slots[i], position: lengths[i], ids: vec![alone[i].1], prompt: lengths[i] }).collect();
            for (i, rows) in self.together(&mut rig, &decode).iter().enumerate() {
                self.assert_same(rows, &alone[i].2, "decode");
            }
        }
    }

    pub fn a_slot_that_begins_anew_remembers_nothing(&self) {
        let (mut rig, prompts) = (self.whole("B"), prompts("B"));
        let turn = |position, length: usize| Turn { slot: SlotId(0), position, ids: prompts[&length].clone(), prompt: 7 };
        let first = self.together(&mut rig, &[turn(0, 7)]);
        self.together(&mut rig, &[turn(7, 255)]);
        self.assert_same(&self.together(&mut rig, &[turn(0, 7)])[0], &first[0], "again");
    }

    pub fn scattered_kv_blocks_are_read_in_order(&self) {
        let (mut rig, prompts) = (self.whole("A"), prompts("A"));
        let ids = &prompts[&700];
        let turn = |slot, from: usize, to: usize| Turn { slot, position: from, ids: ids[from..to].to_vec(), prompt: 700 };
        let wanted = self.together(&mut rig, &[turn(SlotId(0), 0, 700)]).remove(0);
        for start in (0..700).step_by(128) {
            let end = (start + 128).min(700);
            let turns: Vec<_> = (0..8).rev().map(|slot| turn(SlotId(slot), start, end)).collect();
            for rows in self.together(&mut rig, &turns) {
                self.assert_same(&rows, &wanted[start..end], "a grown sequence");
            }
        }
    }

    /// One waits at each layer for its peer while the other begins, computes and ends.
    pub fn two_steps_in_flight_leave_each_other_alone(&self) {
        let checkpoint = checkpoint("A");
        let arch = checkpoint.architecture();
        let first = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..arch.experts / 2);
        let mut own = self.open(&checkpoint, &first);
        let mut peer = self.open(&checkpoint, &all_experts(arch).difference(&first));
        let prompts = prompts("A");
        let turn = |slot, length: usize| Turn { slot: SlotId(slot), position: 0, ids: prompts[&length].clone(), prompt: length };
        let (slow, quick) = (turn(0, 255), turn(1, 7));
        let wanted = [&slow, &quick].map(|turn| own.step(Some(&mut peer), std::slice::from_ref(turn)).unwrap().logits);
        let batch = own.pack(std::slice::from_ref(&slow));
        let waits = own.begin(batch);
        let logits = loop {
            match own.completion() {
                Completion::Routed { step, layer, routing } => {
                    assert_eq!(step, waits);
                    let other = own.step(Some(&mut peer), std::slice::from_ref(&quick)).unwrap();
                    self.assert_same(&other.logits, &wanted[1], "the quick step");
                    own.experts(step, layer, routing, Some(&mut peer)).unwrap();
                }
                Completion::Ended { results, .. } => break results.logits,
                other => panic!("{other:?}"),
            }
        };
        let logits: Vec<Vec<f32>> = logits.chunks(arch.vocab).map(<[f32]>::to_vec).collect();
        self.assert_same(&logits, &wanted[0], "the step that waited");
    }
}
