//! Sequences packed in one batch compute what each computes alone, whatever slots and blocks they got.

use m1_engine::{Executor, ExecutorError};

use crate::{Suite, Turn, checkpoint, difference, golden, pack, prompts};

impl<E: Executor> Suite<E> {
    /// Logits by turn.
    fn together(&self, executor: &mut E, turns: &[Turn]) -> Vec<Vec<Vec<f32>>> {
        let mut rows = self.step(executor, None, &pack(turns)).unwrap().into_iter();
        turns.iter().map(|turn| rows.by_ref().take(turn.ids.len()).collect()).collect()
    }

    fn assert_same(&self, a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
        assert_eq!(a.len(), b.len(), "{what}");
        for (row, (a, b)) in a.iter().zip(b).enumerate() {
            let d = difference(a, b);
            assert!(d <= self.company, "{what}, row {row}: {d:e}");
        }
    }

    pub fn prefill_and_decode_of_several_sequences_in_one_batch(&self) {
        for model in ["A", "B"] {
            let (mut executor, prompts) = (self.whole(model), prompts(model));
            let lengths = [257, 7, 1, 255];
            let alone: Vec<_> = lengths
                .iter()
                .map(|length| {
                    let slot = executor.open_slot().unwrap();
                    let rows = self
                        .together(&mut executor, &[Turn { slot, position: 0, ids: prompts[length].clone(), prompt: *length }])
                        .remove(0);
                    let token = golden(model, *length).decode_tokens[0];
                    let next = self
                        .together(&mut executor, &[Turn { slot, position: *length, ids: vec![token], prompt: *length }])
                        .remove(0);
                    executor.close_slot(slot);
                    (rows, token, next)
                })
                .collect();
            let mut slots: Vec<_> = lengths.iter().map(|_| executor.open_slot().unwrap()).collect();
            slots.swap(0, 2);
            let turn = |i: usize, from: usize, to: usize| Turn {
                slot: slots[i],
                position: from,
                ids: prompts[&lengths[i]][from..to].to_vec(),
                prompt: lengths[i],
            };
            let first = self.together(&mut executor, &[turn(0, 0, 128), turn(1, 0, 6), turn(2, 0, 1), turn(3, 0, 192)]);
            let second = self.together(&mut executor, &[turn(3, 192, 255), turn(1, 6, 7), turn(0, 128, 257)]);
            self.assert_same(&first[0], &alone[0].0[..128], "first chunk");
            self.assert_same(&first[1], &alone[1].0[..6], "beginning of a short prompt");
            self.assert_same(&first[2], &alone[2].0, "one token");
            self.assert_same(&second[0], &alone[3].0[192..], "end of a chunked prompt");
            self.assert_same(&second[1], &alone[1].0[6..], "one token among chunks");
            self.assert_same(&second[2], &alone[0].0[128..], "second chunk");
            let decode: Vec<_> =
                (0..4).map(|i| Turn { slot: slots[i], position: lengths[i], ids: vec![alone[i].1], prompt: lengths[i] }).collect();
            for (i, rows) in self.together(&mut executor, &decode).iter().enumerate() {
                self.assert_same(rows, &alone[i].2, "decode");
            }
        }
    }

    pub fn a_reopened_slot_remembers_nothing(&self) {
        let (mut executor, prompts) = (self.whole("B"), prompts("B"));
        let slot = executor.open_slot().unwrap();
        let first = self.together(&mut executor, &[Turn { slot, position: 0, ids: prompts[&7].clone(), prompt: 7 }]);
        self.together(&mut executor, &[Turn { slot, position: 7, ids: prompts[&255].clone(), prompt: 7 }]);
        executor.close_slot(slot);
        let again = executor.open_slot().unwrap();
        assert_eq!(again, slot);
        self.assert_same(
            &self.together(&mut executor, &[Turn { slot, position: 0, ids: prompts[&7].clone(), prompt: 7 }])[0],
            &first[0],
            "again",
        );
    }

    pub fn scattered_kv_blocks_are_read_in_order(&self) {
        let (mut executor, prompts) = (self.whole("A"), prompts("A"));
        let ids = &prompts[&700];
        let alone = executor.open_slot().unwrap();
        let wanted = self.together(&mut executor, &[Turn { slot: alone, position: 0, ids: ids.clone(), prompt: 700 }]).remove(0);
        executor.close_slot(alone);
        let slots: Vec<_> = (0..8).map(|_| executor.open_slot().unwrap()).collect();
        for start in (0..700).step_by(128) {
            let turns: Vec<_> = slots
                .iter()
                .rev()
                .map(|slot| Turn { slot: *slot, position: start, ids: ids[start..(start + 128).min(700)].to_vec(), prompt: 700 })
                .collect();
            for rows in self.together(&mut executor, &turns) {
                self.assert_same(&rows, &wanted[start..(start + 128).min(700)], "a grown sequence");
            }
        }
    }

    pub fn a_full_kv_cache_refuses_and_changes_nothing(&self) {
        let mut executor = self.whole("B");
        let vocabulary = checkpoint("B").architecture().vocab as u32;
        let (a, b) = (executor.open_slot().unwrap(), executor.open_slot().unwrap());
        let ids = |n: u32| (0..n).map(|i| i % vocabulary).collect::<Vec<_>>();
        self.together(&mut executor, &[Turn { slot: a, position: 0, ids: ids(64 * 102), prompt: 64 * 102 }]);
        let refused = executor.begin_step(&pack(&[Turn { slot: b, position: 0, ids: ids(129), prompt: 129 }]));
        assert!(matches!(refused, Err(ExecutorError::NoFreeKv { needed: 192, free: 128 })), "{refused:?}");
        self.together(&mut executor, &[Turn { slot: b, position: 0, ids: ids(128), prompt: 129 }]);
    }
}
