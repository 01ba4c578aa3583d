//! The port's order of calls and its refusals; holdings that change; serving while a step is in flight.

use bytes::BytesMut;
use m1_arch::{ExpertId, ExpertSet, LayerId};
use m1_engine::{Assignment, Executor, ExecutorError, LayerRouting, SlotId};
use m1_weights::plan_read;

use crate::{SIZE, Suite, Turn, all_experts, checkpoint, difference, pack, prompts};

fn reason<T: std::fmt::Debug>(result: Result<T, ExecutorError>) -> &'static str {
    result.unwrap_err().reason()
}

impl<E: Executor> Suite<E> {
    pub fn calls_out_of_order_are_refused_and_the_step_goes_on(&self) {
        let mut executor = self.whole("B");
        let mut routing = LayerRouting::default();
        let slot = executor.open_slot().unwrap();
        let none = Assignment { rows: &[], slots: 2, experts: &[], weights: &[] };
        assert_eq!(reason(executor.attention(LayerId(0), &mut routing)), "OutOfOrder");
        executor.begin_step(&pack(&[Turn { slot, position: 0, ids: vec![1, 2], prompt: 2 }])).unwrap();
        assert_eq!(reason(executor.attention(LayerId(1), &mut routing)), "OutOfOrder");
        assert_eq!(reason(executor.local(LayerId(0), &none)), "OutOfOrder");
        assert_eq!(reason(executor.gather(&[0], &mut BytesMut::new())), "OutOfOrder");
        assert_eq!(reason(executor.end_step(&mut Vec::new())), "OutOfOrder");
        for layer in (self.architecture)(&executor).layer_ids() {
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

    pub fn slots_are_counted_and_positions_must_follow(&self) {
        let mut executor = self.whole("B");
        let slots: Vec<_> = (0..SIZE.slots).map(|_| executor.open_slot().unwrap()).collect();
        assert_eq!(reason(executor.open_slot()), "NoFreeSlot");
        let batch = |slot, position| pack(&[Turn { slot, position, ids: vec![1], prompt: 1 }]);
        assert_eq!(reason(executor.begin_step(&batch(slots[0], 1))), "InvalidArgument");
        assert_eq!(reason(executor.begin_step(&batch(SlotId(99), 0))), "UnknownSlot");
        executor.close_slot(slots[3]);
        assert_eq!(reason(executor.begin_step(&batch(slots[3], 0))), "UnknownSlot");
        assert_eq!(executor.open_slot().unwrap(), slots[3]);
        assert!(executor.begin_step(&batch(slots[3], 0)).is_ok());
    }

    pub fn holdings_change_and_what_is_not_held_is_refused(&self) {
        let checkpoint = checkpoint("B");
        let arch = checkpoint.architecture();
        let half = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..16);
        let mut read = 0;
        let mut executor = (self.load)(&checkpoint, &half, SIZE, &mut |bytes| read = bytes).unwrap();
        assert_eq!(read, plan_read(&checkpoint, &half).bytes);
        assert!(
            (self.held)(&executor).contains(LayerId(3), ExpertId(15)) && !(self.held)(&executor).contains(LayerId(3), ExpertId(16))
        );
        let turn = |slot| pack(&[Turn { slot, position: 0, ids: prompts("B")[&255].clone(), prompt: 255 }]);
        let slot = executor.open_slot().unwrap();
        assert_eq!(reason(self.step(&mut executor, None, &turn(slot))), "NotHeld");

        let all = all_experts(arch);
        (self.update)(&mut executor, &checkpoint, &all, &mut |bytes| read = bytes).unwrap();
        assert_eq!(read, plan_read(&checkpoint, &all).bytes - plan_read(&checkpoint, &half).bytes);
        assert_eq!((self.held)(&executor), &all);
        let wanted = {
            let mut whole = self.whole("B");
            let slot = whole.open_slot().unwrap();
            self.step(&mut whole, None, &turn(slot)).unwrap()
        };
        let slot = executor.open_slot().unwrap();
        assert_eq!(self.step(&mut executor, None, &turn(slot)).unwrap(), wanted);

        (self.update)(&mut executor, &checkpoint, &ExpertSet::empty(arch.layers.len(), arch.experts), &mut |_| {}).unwrap();
        assert!((self.held)(&executor).is_empty());
        let other = crate::checkpoint("A");
        let refused = (self.update)(&mut executor, &other, &all, &mut |_| {});
        assert_eq!(refused, Err("OtherCheckpoint"));
    }

    pub fn a_refused_assignment_adds_nothing(&self) {
        let checkpoint = checkpoint("B");
        let arch = checkpoint.architecture();
        let mut executor = self.open(&checkpoint, &ExpertSet::from_range(arch.layers.len(), arch.experts, 0..16));
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

    pub fn serving_leaves_the_step_in_flight_alone(&self) {
        let (mut quiet, mut busy) = (self.whole("A"), self.whole("A"));
        let batch = pack(&[Turn { slot: SlotId(0), position: 0, ids: prompts("A")[&7].clone(), prompt: 7 }]);
        let slot = quiet.open_slot().unwrap();
        assert_eq!(slot, busy.open_slot().unwrap());
        let wanted = self.step(&mut quiet, None, &batch).unwrap();
        let hidden: Vec<u8> = (0..128).flat_map(|i| (i as f32 / 128.0).to_le_bytes()).collect();
        let serve = |busy: &mut E, layer| {
            let assignment = Assignment { rows: &[0], slots: 2, experts: &[1, 2], weights: &[0.25, 0.75] };
            busy.serve(layer, &hidden, &assignment, &mut BytesMut::new()).unwrap();
        };
        let mut routing = LayerRouting::default();
        busy.begin_step(&batch).unwrap();
        for layer in (self.architecture)(&busy).layer_ids() {
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
}
