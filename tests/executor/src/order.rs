//! The order of commands and refusals; holdings that change; serving while a step is in flight.

use std::sync::Arc;

use bytes::Bytes;
use m1_arch::{ExpertSet, LayerId};
use m1_engine::*;
use m1_weights::{Checkpoint, plan_read};

use crate::{Rig, SIZE, Suite, Turn, all_experts, checkpoint, prompts};

type Spoil = fn(&mut Batch);
type Order = fn(StepId) -> Command<Arc<Checkpoint>>;

/// What is asked of a step that stands at a layer.
enum Ask {
    Gather(u32),
    Accumulate((Vec<u32>, Bytes)),
    Local(Work),
}

fn refused<T: std::fmt::Debug>(result: Result<T, ExecutorError>) -> &'static str {
    result.unwrap_err().reason()
}

fn one(slot: u32, position: usize, ids: &[u32]) -> Turn {
    Turn { slot: SlotId(slot), position, ids: ids.to_vec(), prompt: ids.len() }
}

fn hidden(rows: usize, width: usize) -> Bytes {
    (0..rows * width).flat_map(|i| (i as f32 / width as f32).to_le_bytes()).collect()
}

fn request(key: u64, hidden: Bytes, rows: u32, experts: &[u16], weights: &[f32]) -> Request {
    Request { key: RequestKey(key), hidden, rows, experts: experts.to_vec(), weights: weights.to_vec() }
}

impl<E: Executor<Weights = Arc<Checkpoint>>> Suite<E> {
    /// Model B with half of the experts: every step stands at a layer sooner or later.
    fn half(&self) -> Rig<E> {
        let checkpoint = checkpoint("B");
        let arch = checkpoint.architecture();
        self.open(&checkpoint, &ExpertSet::from_range(arch.layers.len(), arch.experts, 0..arch.experts / 2))
    }

    pub fn what_does_not_fit_is_refused_and_changes_nothing(&self) {
        let mut rig = self.whole("B");
        let wanted = rig.step(None, &[one(0, 0, &[1, 2, 3])]).unwrap();
        let spoilt: [(&str, Spoil); 7] = [
            ("InvalidArgument", |batch| batch.segments[0].position = 2),
            ("UnknownSlot", |batch| batch.segments[0].slot = SlotId(SIZE.slots)),
            ("InvalidArgument", |batch| batch.blocks[0] = SIZE.kv_blocks),
            ("InvalidArgument", |batch| batch.blocks.push(1)),
            ("InvalidArgument", |batch| batch.segments[0].fresh = 0),
            ("InvalidArgument", |batch| batch.ids[0] = 320),
            ("InvalidArgument", |batch| batch.logit_rows[0] = 9),
        ];
        for (reason, spoil) in spoilt {
            let mut batch = rig.pack(&[one(1, 0, &[4])]);
            spoil(&mut batch);
            assert_eq!(refused(rig.run(None, batch)), reason);
        }
        // Neither the slot nor any other has moved on.
        assert_eq!(rig.step(None, &[one(1, 0, &[1, 2, 3])]).unwrap().logits, wanted.logits);
        assert_eq!(refused(rig.step(None, &[one(0, 4, &[1])])), "InvalidArgument");
        rig.step(None, &[one(0, 3, &[1])]).unwrap();
    }

    pub fn commands_out_of_order_end_their_step_and_no_other(&self) {
        let mut rig = self.half();
        let ids = prompts("B")[&255].clone();
        let early: [Order; 3] = [
            |step| Command::Gather { step, rows: vec![0] },
            |step| Command::Combine { step, routing: LayerRouting::default() },
            |step| Command::Local { step, work: Work::default() },
        ];
        for command in early {
            let batch = rig.pack(&[one(0, 0, &ids)]);
            let step = rig.begin(batch);
            rig.executor.submit(command(step));
            let Completion::Failed { step: of, error } = rig.completion() else { panic!("it goes on") };
            assert_eq!((of, error.reason()), (step, "OutOfOrder"));
        }
        let width = rig.arch.hidden;
        let work =
            |experts: [u16; 2], weights: &[f32]| Work { rows: vec![0], experts: experts.to_vec(), weights: weights.to_vec() };
        let sums = |row, numbers| (vec![row], hidden(1, numbers));
        let wrong: [(&str, Ask); 5] = [
            ("InvalidArgument", Ask::Gather(255)),
            ("InvalidArgument", Ask::Accumulate(sums(255, width))),
            ("InvalidArgument", Ask::Accumulate(sums(1, width - 1))),
            ("InvalidArgument", Ask::Local(work([1, 2], &[1.0]))),
            ("NotHeld", Ask::Local(work([31, 2], &[0.5; 2]))),
        ];
        for (reason, command) in wrong {
            let batch = rig.pack(&[one(0, 0, &ids)]);
            let step = rig.begin(batch);
            assert!(matches!(rig.completion(), Completion::Routed { .. }));
            rig.executor.submit(match command {
                Ask::Gather(row) => Command::Gather { step, rows: vec![row] },
                Ask::Accumulate((rows, sums)) => Command::Accumulate { step, rows, sums },
                Ask::Local(work) => Command::Local { step, work },
            });
            let Completion::Failed { error, .. } = rig.completion() else { panic!("it goes on") };
            assert_eq!(error.reason(), reason);
            rig.executor.submit(Command::Local { step, work: Work::default() });
            assert!(rig.is_idle(), "what comes for a step that has failed is ignored");
        }
    }

    pub fn an_aborted_step_is_gone(&self) {
        let mut rig = self.half();
        let batch = rig.pack(&[one(0, 0, &prompts("B")[&255])]);
        let step = rig.begin(batch);
        rig.executor.submit(Command::Abort { step });
        assert!(rig.is_idle());
        let batch = rig.pack(&[one(0, 0, &prompts("B")[&255])]);
        let step = rig.begin(batch);
        assert!(matches!(rig.completion(), Completion::Routed { .. }));
        rig.executor.submit(Command::Gather { step, rows: vec![0, 1] });
        rig.executor.submit(Command::Abort { step });
        rig.executor.submit(Command::Abort { step });
        assert!(rig.is_idle());
    }

    pub fn requests_of_a_layer_are_served_together_and_refused_one_by_one(&self) {
        let mut rig = self.half();
        let width = rig.arch.hidden;
        let good = |key| request(key, hidden(2, width), 2, &[3, UNUSED, 2, 1], &[0.5, 0.0, 0.25, 0.75]);
        let other = |key| request(key, hidden(1, width), 1, &[2, 3], &[0.5, 0.5]);
        let alone = [good(0), other(0)].map(|request| rig.serve(LayerId(0), vec![request]).remove(0).unwrap());
        assert_eq!((alone[0].len(), alone[1].len()), (2 * width * 4, width * 4));
        let requests = vec![
            good(1),
            request(2, hidden(2, width), 2, &[3, 16, 2, 1], &[0.5; 4]),
            request(3, hidden(2, width), 2, &[3, 99, 2, 1], &[0.5; 4]),
            request(4, hidden(2, width), 2, &[3, 1, 2], &[0.5; 3]),
            request(5, hidden(2, width), 2, &[3, 1, 2, 1], &[0.5; 3]),
            request(6, hidden(2, width).slice(1..), 2, &[3, 1, 2, 1], &[0.5; 4]),
            other(7),
        ];
        let served = rig.serve(LayerId(0), requests);
        let reasons: Vec<&str> = served.iter().map(|sums| sums.as_ref().map_or_else(ExecutorError::reason, |_| "served")).collect();
        let invalid = "InvalidArgument";
        assert_eq!(reasons, ["served", "NotHeld", "NotHeld", invalid, invalid, invalid, "served"]);
        let sums = |bytes: &Bytes| vec![bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<f32>>()];
        for (place, alone) in [(0, &alone[0]), (6, &alone[1])] {
            self.assert_same(&sums(served[place].as_ref().unwrap()), &sums(alone), "sums in company");
        }
    }

    pub fn serving_leaves_the_step_in_flight_alone(&self) {
        let (mut rig, mut peer) = (self.half(), self.whole("B"));
        let turn = one(0, 0, &prompts("B")[&255]);
        let wanted = rig.step(Some(&mut peer), std::slice::from_ref(&turn)).unwrap().logits;
        let width = rig.arch.hidden;
        let ask = || vec![request(1, hidden(1, width), 1, &[1, 2], &[0.25, 0.75])];
        let batch = rig.pack(&[turn]);
        let step = rig.begin(batch);
        rig.executor.submit(Command::Serve { urgent: true, layer: LayerId(3), requests: ask() });
        assert!(matches!(rig.completion(), Completion::Served { sums: Ok(_), .. }), "peers go first");
        let logits = loop {
            match rig.completion() {
                Completion::Routed { layer, routing, .. } => {
                    assert!(rig.serve(layer, ask()).remove(0).is_ok());
                    rig.experts(step, layer, routing, Some(&mut peer)).unwrap();
                }
                Completion::Ended { results, .. } => break results.logits,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(logits, wanted.concat());
    }

    pub fn holdings_change_beside_a_step_and_what_is_not_held_is_refused(&self) {
        let checkpoint = checkpoint("B");
        let arch = checkpoint.architecture();
        let half = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..16);
        let mut read = 0;
        let executor = (self.load)(&checkpoint, &half, SIZE, &mut |bytes| read = bytes).unwrap();
        assert_eq!(read, plan_read(&checkpoint, &half).bytes);
        let mut rig = Rig::new(executor, arch);
        let turn = one(0, 0, &prompts("B")[&255]);
        assert_eq!(refused(rig.step(None, std::slice::from_ref(&turn))), "NotHeld");

        let wanted = self.whole("B").step(None, std::slice::from_ref(&turn)).unwrap().logits;
        let batch = rig.pack(std::slice::from_ref(&turn));
        let step = rig.begin(batch);
        let Completion::Routed { layer, routing, .. } = rig.completion() else { panic!("it has all experts") };
        let all = all_experts(arch);
        let read = rig.load(Arc::new(crate::checkpoint("B")), &all).unwrap();
        assert_eq!(read, plan_read(&checkpoint, &all).bytes - plan_read(&checkpoint, &half).bytes);
        assert_eq!(rig.executor.held(), &all);
        // The step goes on with what has come.
        rig.experts(step, layer, routing, None).unwrap();
        let Completion::Ended { results, .. } = rig.completion() else { panic!("it asks on") };
        let rows: Vec<Vec<f32>> = results.logits.chunks(arch.vocab).map(<[f32]>::to_vec).collect();
        self.assert_same(&rows, &wanted, "a step beside a load");
        self.assert_same(&rig.step(None, &[turn]).unwrap().logits, &wanted, "after the load");

        rig.executor.submit(Command::Unload { experts: all.clone() });
        assert!(!rig.is_idle() || rig.executor.held().is_empty());
        assert!(rig.is_idle() && rig.executor.held().is_empty());
        assert_eq!(refused(rig.load(Arc::new(crate::checkpoint("A")), &all)), "OtherCheckpoint");
        assert!(rig.executor.held().is_empty());
    }
}
