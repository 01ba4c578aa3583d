//! Sequences packed in one batch compute what each computes alone, whatever slots and blocks they got.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Turn, checkpoint, difference, golden, pack, prompts, step, whole};
use m1_engine::{Executor, ExecutorError};
use m1_torch::TorchExecutor;

/// Rounding only: products over other shapes sum in another order.
const SAME: f32 = 5e-5;

/// Logits by turn.
fn together(executor: &mut TorchExecutor, turns: &[Turn]) -> Vec<Vec<Vec<f32>>> {
    let mut rows = step(executor, None, &pack(turns)).unwrap().into_iter();
    turns.iter().map(|turn| rows.by_ref().take(turn.ids.len()).collect()).collect()
}

fn assert_same(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        let d = difference(a, b);
        assert!(d <= SAME, "{what}, row {row}: {d:e}");
    }
}

#[test]
fn prefill_and_decode_of_several_sequences_in_one_batch() {
    for model in ["A", "B"] {
        let (mut executor, prompts) = (whole(model), prompts(model));
        let lengths = [257, 7, 1, 255];
        let alone: Vec<_> = lengths
            .iter()
            .map(|length| {
                let slot = executor.open_slot().unwrap();
                let rows = together(&mut executor, &[Turn { slot, position: 0, ids: prompts[length].clone() }]).remove(0);
                let token = golden(model, *length).decode_tokens[0];
                let next = together(&mut executor, &[Turn { slot, position: *length, ids: vec![token] }]).remove(0);
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
        };
        let first = together(&mut executor, &[turn(0, 0, 100), turn(1, 0, 6), turn(2, 0, 1), turn(3, 0, 250)]);
        let second = together(&mut executor, &[turn(3, 250, 255), turn(1, 6, 7), turn(0, 100, 257)]);
        assert_same(&first[0], &alone[0].0[..100], "first chunk");
        assert_same(&first[1], &alone[1].0[..6], "beginning of a short prompt");
        assert_same(&first[2], &alone[2].0, "one token");
        assert_same(&second[0], &alone[3].0[250..], "end of a chunked prompt");
        assert_same(&second[1], &alone[1].0[6..], "one token among chunks");
        assert_same(&second[2], &alone[0].0[100..], "second chunk");
        let decode: Vec<_> = (0..4).map(|i| Turn { slot: slots[i], position: lengths[i], ids: vec![alone[i].1] }).collect();
        for (i, rows) in together(&mut executor, &decode).iter().enumerate() {
            assert_same(rows, &alone[i].2, "decode");
        }
    }
}

#[test]
fn a_reopened_slot_remembers_nothing() {
    let (mut executor, prompts) = (whole("B"), prompts("B"));
    let slot = executor.open_slot().unwrap();
    let first = together(&mut executor, &[Turn { slot, position: 0, ids: prompts[&7].clone() }]);
    together(&mut executor, &[Turn { slot, position: 7, ids: prompts[&255].clone() }]);
    executor.close_slot(slot);
    let again = executor.open_slot().unwrap();
    assert_eq!(again, slot);
    assert_same(&together(&mut executor, &[Turn { slot, position: 0, ids: prompts[&7].clone() }])[0], &first[0], "again");
}

#[test]
fn scattered_kv_blocks_are_read_in_order() {
    let (mut executor, prompts) = (whole("A"), prompts("A"));
    let ids = &prompts[&700];
    let alone = executor.open_slot().unwrap();
    let wanted = together(&mut executor, &[Turn { slot: alone, position: 0, ids: ids.clone() }]).remove(0);
    executor.close_slot(alone);
    let slots: Vec<_> = (0..8).map(|_| executor.open_slot().unwrap()).collect();
    for start in (0..700).step_by(140) {
        let turns: Vec<_> =
            slots.iter().rev().map(|slot| Turn { slot: *slot, position: start, ids: ids[start..start + 140].to_vec() }).collect();
        for rows in together(&mut executor, &turns) {
            assert_same(&rows, &wanted[start..start + 140], "a grown sequence");
        }
    }
}

#[test]
fn a_full_kv_cache_refuses_and_changes_nothing() {
    let mut executor = whole("B");
    let vocabulary = checkpoint("B").architecture().vocab as u32;
    let (a, b) = (executor.open_slot().unwrap(), executor.open_slot().unwrap());
    let ids = |n: u32| (0..n).map(|i| i % vocabulary).collect::<Vec<_>>();
    together(&mut executor, &[Turn { slot: a, position: 0, ids: ids(64 * 102) }]);
    let refused = executor.begin_step(&pack(&[Turn { slot: b, position: 0, ids: ids(129) }]));
    assert!(matches!(refused, Err(ExecutorError::NoFreeKv { needed: 192, free: 128 })), "{refused:?}");
    together(&mut executor, &[Turn { slot: b, position: 0, ids: ids(128) }]);
}
