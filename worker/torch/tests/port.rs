//! The port's order of calls and its refusals; holdings that change; serving while a step is in flight.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use bytes::BytesMut;
use common::{LIMITS, Turn, all_experts, checkpoint, difference, load, pack, prompts, step, whole};
use m1_arch::{ExpertId, ExpertSet, LayerId};
use m1_engine::{Assignment, Executor, ExecutorError, LayerRouting, SlotId};
use m1_torch::{TorchError, TorchExecutor};
use m1_weights::plan_read;

fn reason<T: std::fmt::Debug>(result: Result<T, ExecutorError>) -> &'static str {
    result.unwrap_err().reason()
}

#[test]
fn calls_out_of_order_are_refused_and_the_step_goes_on() {
    let mut executor = whole("B");
    let mut routing = LayerRouting::default();
    let slot = executor.open_slot().unwrap();
    let none = Assignment { rows: &[], slots: 2, experts: &[], weights: &[] };
    assert_eq!(reason(executor.attention(LayerId(0), &mut routing)), "OutOfOrder");
    executor.begin_step(&pack(&[Turn { slot, position: 0, ids: vec![1, 2] }])).unwrap();
    assert_eq!(reason(executor.attention(LayerId(1), &mut routing)), "OutOfOrder");
    assert_eq!(reason(executor.local(LayerId(0), &none)), "OutOfOrder");
    assert_eq!(reason(executor.gather(&[0], &mut BytesMut::new())), "OutOfOrder");
    assert_eq!(reason(executor.end_step(&mut Vec::new())), "OutOfOrder");
    for layer in executor.architecture().layer_ids() {
        executor.attention(layer, &mut routing).unwrap();
        assert_eq!(reason(executor.combine(LayerId(layer.0 + 1))), "OutOfOrder");
        assert_eq!(reason(executor.local(LayerId(layer.0 + 1), &none)), "OutOfOrder");
        assert_eq!(reason(executor.accumulate(&[2], &[0; 4 * 96])), "InvalidArgument");
        assert_eq!(reason(executor.accumulate(&[1], &[0; 4 * 95])), "InvalidArgument");
        executor.combine(layer).unwrap();
    }
    assert_eq!(reason(executor.attention(LayerId(4), &mut routing)), "InvalidArgument");
    let mut logits = vec![0.0; 7];
    executor.end_step(&mut logits).unwrap();
    assert_eq!(logits.len(), 2 * 320);
    assert_eq!(reason(executor.end_step(&mut logits)), "OutOfOrder");
}

#[test]
fn slots_are_counted_and_positions_must_follow() {
    let mut executor = whole("B");
    let slots: Vec<_> = (0..LIMITS.slots).map(|_| executor.open_slot().unwrap()).collect();
    assert_eq!(reason(executor.open_slot()), "NoFreeSlot");
    let batch = |slot, position| pack(&[Turn { slot, position, ids: vec![1] }]);
    assert_eq!(reason(executor.begin_step(&batch(slots[0], 1))), "InvalidArgument");
    assert_eq!(reason(executor.begin_step(&batch(SlotId(99), 0))), "UnknownSlot");
    executor.close_slot(slots[3]);
    assert_eq!(reason(executor.begin_step(&batch(slots[3], 0))), "UnknownSlot");
    assert_eq!(executor.open_slot().unwrap(), slots[3]);
    assert!(executor.begin_step(&batch(slots[3], 0)).is_ok());
}

#[test]
fn holdings_change_and_what_is_not_held_is_refused() {
    let checkpoint = checkpoint("B");
    let arch = checkpoint.architecture();
    let half = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..16);
    let mut read = 0;
    let mut executor = TorchExecutor::load(&checkpoint, &half, LIMITS, &mut |bytes| read = bytes).unwrap();
    assert_eq!(read, plan_read(&checkpoint, &half).bytes);
    assert!(executor.holds(LayerId(3), ExpertId(15)) && !executor.holds(LayerId(3), ExpertId(16)));
    let turn = |slot| pack(&[Turn { slot, position: 0, ids: prompts("B")[&255].clone() }]);
    let slot = executor.open_slot().unwrap();
    assert_eq!(reason(step(&mut executor, None, &turn(slot))), "NotHeld");

    let all = all_experts(arch);
    executor.update_experts(&checkpoint, &all, &mut |bytes| read = bytes).unwrap();
    assert_eq!(read, plan_read(&checkpoint, &all).bytes - plan_read(&checkpoint, &half).bytes);
    assert_eq!(executor.held(), &all);
    let wanted = {
        let mut whole = whole("B");
        let slot = whole.open_slot().unwrap();
        step(&mut whole, None, &turn(slot)).unwrap()
    };
    let slot = executor.open_slot().unwrap();
    assert_eq!(step(&mut executor, None, &turn(slot)).unwrap(), wanted);

    executor.update_experts(&checkpoint, &ExpertSet::empty(arch.layers.len(), arch.experts), &mut |_| {}).unwrap();
    assert!(executor.held().is_empty());
    let other = common::checkpoint("A");
    let refused = executor.update_experts(&other, &all, &mut |_| {});
    assert!(matches!(refused, Err(TorchError::OtherCheckpoint { .. })));
}

#[test]
fn a_refused_assignment_adds_nothing() {
    let checkpoint = checkpoint("B");
    let arch = checkpoint.architecture();
    let mut executor = load(&checkpoint, &ExpertSet::from_range(arch.layers.len(), arch.experts, 0..16));
    let hidden: Vec<u8> = (0..2 * 96).flat_map(|i| (i as f32 / 96.0).to_le_bytes()).collect();
    let mut serve = |experts: &[u16], weights: &[f32], hidden: &[u8]| {
        let mut sums = BytesMut::from(&b"kept"[..]);
        let assignment = Assignment { rows: &[0, 1], slots: 2, experts, weights };
        let result = executor.serve(LayerId(0), hidden, &assignment, &mut sums);
        (result.map_err(|error| error.reason()), sums.len())
    };
    assert_eq!(serve(&[3, 16, 2, 1], &[0.5; 4], &hidden), (Err("NotHeld"), 4));
    assert_eq!(serve(&[3, 99, 2, 1], &[0.5; 4], &hidden), (Err("NotHeld"), 4));
    assert_eq!(serve(&[3, 1], &[0.5; 2], &hidden), (Err("InvalidArgument"), 4));
    assert_eq!(serve(&[3, 1, 2, 1], &[0.5; 3], &hidden), (Err("InvalidArgument"), 4));
    assert_eq!(serve(&[3, 1, 2, 1], &[0.5; 4], &hidden[1..]), (Err("InvalidArgument"), 4));
    assert_eq!(serve(&[3, u16::MAX, 2, 1], &[0.5; 4], &hidden), (Ok(()), 4 + 2 * 96 * 4));
}

#[test]
fn serving_leaves_the_step_in_flight_alone() {
    let (mut quiet, mut busy) = (whole("A"), whole("A"));
    let batch = pack(&[Turn { slot: SlotId(0), position: 0, ids: prompts("A")[&7].clone() }]);
    let slot = quiet.open_slot().unwrap();
    assert_eq!(slot, busy.open_slot().unwrap());
    let wanted = step(&mut quiet, None, &batch).unwrap();
    let hidden: Vec<u8> = (0..128).flat_map(|i| (i as f32 / 128.0).to_le_bytes()).collect();
    let serve = |busy: &mut TorchExecutor, layer| {
        let assignment = Assignment { rows: &[0], slots: 2, experts: &[1, 2], weights: &[0.25, 0.75] };
        busy.serve(layer, &hidden, &assignment, &mut BytesMut::new()).unwrap();
    };
    let mut routing = LayerRouting::default();
    busy.begin_step(&batch).unwrap();
    for layer in busy.architecture().layer_ids() {
        serve(&mut busy, LayerId(7));
        busy.attention(layer, &mut routing).unwrap();
        serve(&mut busy, layer);
        let rows: Vec<u32> = (0..7).collect();
        let assignment = Assignment { rows: &rows, slots: 2, experts: &routing.experts, weights: &routing.weights };
        busy.local(layer, &assignment).unwrap();
        serve(&mut busy, layer);
        busy.combine(layer).unwrap();
    }
    let mut logits = Vec::new();
    busy.end_step(&mut logits).unwrap();
    assert_eq!(difference(&logits, &wanted.concat()), 0.0);
}
