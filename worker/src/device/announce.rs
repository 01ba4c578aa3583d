//! [`Announcing`]: an executor that says, before a call that may take long, how long. Peers then know that the device is at work
//! and does not hang. What a call takes is learned from those before it, by kind and size; before the first of a size it is
//! reckoned from its floating-point operations at a pace that any machine keeps.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use m1_arch::{Architecture, AttentionKind, LayerId};
use m1_engine::{Assignment, Batch, Executor, ExecutorError, LayerRouting, SlotId, UNUSED};
use m1_exchange::LONG_TURN;

use crate::status::SharedStatus;

/// Calls take up to this times as long as those before: another process may want the CPU, or caches are cold.
const MARGIN: f64 = 2.0;
/// Pace of calls of a size that none was of before: one core that waits for memory at each product does better.
const COLD: f64 = 1.0 / 2e9;
/// Part of a faster call that counts against the slower ones before it, so that one that was slow by chance is soon forgotten.
const FORGET: f64 = 0.25;
/// Rate at which weights are read at least. Also the one by which the probes' budget for starting is made.
const READ_RATE: f64 = 50e6;
/// What loading takes beside reading: memory is given back, asked for and zeroed.
const LOADING: Duration = Duration::from_secs(10);

/// Kinds of calls that keep their own pace.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Lightning,
    Softmax,
    Experts,
    Head,
}

/// Seconds per operation by size of the call: one place for each power of two.
#[derive(Debug, Clone)]
struct Pace([Option<f64>; 64]);

impl Pace {
    fn bucket(operations: f64) -> usize {
        (operations.max(1.0).log2() as usize).min(63)
    }

    /// Seconds that a call may take. A smaller one takes more for each operation, so that one's pace will do.
    fn expect(&self, operations: f64) -> f64 {
        let known = self.0[..=Self::bucket(operations)].iter().rev().find_map(|pace| *pace);
        operations * known.unwrap_or(COLD) * MARGIN
    }

    fn took(&mut self, operations: f64, seconds: f64) {
        let (pace, known) = (seconds / operations.max(1.0), &mut self.0[Self::bucket(operations)]);
        *known = Some(known.map_or(pace, |known| if pace > known { pace } else { known + (pace - known) * FORGET }));
    }
}

/// Operations of one row in one layer.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// Products with weights, in either kind of attention.
    dense: f64,
    /// Of each token that softmax attention looks at.
    score: f64,
    /// State of lightning attention.
    state: f64,
    expert: f64,
    head: f64,
}

impl Costs {
    fn of(arch: &Architecture) -> Self {
        let layers = |kind| arch.count(kind).max(1) as f64;
        let (expert, head) = (arch.expert_flops_per_token(), 2.0 * (arch.vocab * arch.hidden) as f64);
        let all = arch.layers.len().max(1) as f64;
        Self {
            dense: (arch.matmul_flops_per_token() - head) / all - expert * arch.top_k as f64,
            score: arch.softmax_flops_per_token(1) / layers(AttentionKind::Softmax),
            state: arch.lightning_flops_recurrent() / layers(AttentionKind::Lightning),
            expert,
            head,
        }
    }
}

/// An executor and what is known of its pace.
#[derive(Debug)]
pub(super) struct Announcing<E: ?Sized> {
    executor: Box<E>,
    status: Arc<SharedStatus>,
    kinds: Vec<AttentionKind>,
    costs: Costs,
    paces: [Pace; 4],
    /// Of the step in flight: rows, pairs of a row and a token it may look at, rows with logits.
    step: (f64, f64, f64),
}

impl<E: ?Sized> Announcing<E> {
    /// Announces an executor's long calls through `status`.
    pub fn new(executor: Box<E>, arch: &Architecture, status: Arc<SharedStatus>) -> Self {
        let paces = std::array::from_fn(|_| Pace([None; 64]));
        Self { executor, status, kinds: arch.layers.clone(), costs: Costs::of(arch), paces, step: (0.0, 0.0, 0.0) }
    }

    /// Calls, announced if need be, and learns.
    fn call<T>(&mut self, kind: Kind, operations: f64, call: impl FnOnce(&mut E) -> T) -> T {
        let expected = Duration::try_from_secs_f64(self.paces[kind as usize].expect(operations)).unwrap_or(Duration::MAX);
        let long = expected > LONG_TURN;
        if long {
            self.status.announce(expected);
        }
        let began = Instant::now();
        let done = call(&mut *self.executor);
        self.paces[kind as usize].took(operations, began.elapsed().as_secs_f64());
        if long {
            self.status.turn();
        }
        done
    }

    fn experts(&self, assignment: &Assignment<'_>) -> f64 {
        let places = assignment.experts.iter().filter(|expert| **expert != UNUSED).count();
        places as f64 * self.costs.expert
    }
}

impl<E: ?Sized> Deref for Announcing<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.executor
    }
}

impl<E: ?Sized> DerefMut for Announcing<E> {
    fn deref_mut(&mut self) -> &mut E {
        &mut self.executor
    }
}

impl<E: Executor + ?Sized> Executor for Announcing<E> {
    fn open_slot(&mut self) -> Result<SlotId, ExecutorError> {
        self.executor.open_slot()
    }

    fn close_slot(&mut self, slot: SlotId) {
        self.executor.close_slot(slot);
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        let looks = batch
            .segments
            .iter()
            .map(|segment| f64::from(segment.tokens) * (f64::from(segment.position) + f64::from(segment.tokens)));
        self.step = (batch.ids.len() as f64, looks.sum(), batch.logit_rows.len() as f64);
        self.executor.begin_step(batch)
    }

    fn attention(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), ExecutorError> {
        let ((rows, looks, _), costs) = (self.step, self.costs);
        let (kind, more) = match self.kinds.get(layer.index()) {
            Some(AttentionKind::Softmax) => (Kind::Softmax, looks * costs.score),
            _ => (Kind::Lightning, rows * costs.state),
        };
        self.call(kind, rows * costs.dense + more, |executor| executor.attention(layer, routing))
    }

    fn gather(&mut self, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError> {
        self.executor.gather(rows, out)
    }

    fn local(&mut self, layer: LayerId, assignment: &Assignment<'_>) -> Result<(), ExecutorError> {
        let operations = self.experts(assignment);
        self.call(Kind::Experts, operations, |executor| executor.local(layer, assignment))
    }

    fn accumulate(&mut self, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError> {
        self.executor.accumulate(rows, sums)
    }

    fn combine(&mut self, layer: LayerId) -> Result<(), ExecutorError> {
        self.executor.combine(layer)
    }

    fn end_step(&mut self, logits: &mut Vec<f32>) -> Result<(), ExecutorError> {
        let operations = self.step.2 * self.costs.head;
        self.call(Kind::Head, operations, |executor| executor.end_step(logits))
    }

    fn serve(
        &mut self,
        layer: LayerId,
        hidden: &[u8],
        assignment: &Assignment<'_>,
        sums: &mut BytesMut,
    ) -> Result<(), ExecutorError> {
        let operations = self.experts(assignment);
        self.call(Kind::Experts, operations, |executor| executor.serve(layer, hidden, assignment, sums))
    }
}

/// The reading of so many bytes, for an executor that tells how far it is. Every piece that was read is progress, and what is
/// left is announced anew.
pub(super) fn reading(status: &SharedStatus, bytes: u64) -> impl FnMut(u64) + '_ {
    let announce = move |read: u64| {
        let left = bytes.saturating_sub(read) as f64 / READ_RATE;
        status.announce(LOADING.saturating_add(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)));
    };
    announce(0);
    move |read| {
        status.set_bytes_loaded(read);
        announce(read);
    }
}

#[cfg(test)]
mod tests {
    use m1_engine::Segment;
    use m1_exchange::LONGEST_ANNOUNCED;

    use super::*;

    /// Notes what was announced when each call came.
    struct Noting {
        status: Arc<SharedStatus>,
        seen: Vec<(u64, Duration)>,
    }

    impl Noting {
        fn note(&mut self) -> Result<(), ExecutorError> {
            self.seen.push((self.status.progress(), self.status.announced()));
            Ok(())
        }
    }

    impl Executor for Noting {
        fn open_slot(&mut self) -> Result<SlotId, ExecutorError> {
            Ok(SlotId(0))
        }
        fn close_slot(&mut self, _: SlotId) {}
        fn begin_step(&mut self, _: &Batch) -> Result<(), ExecutorError> {
            Ok(())
        }
        fn attention(&mut self, _: LayerId, _: &mut LayerRouting) -> Result<(), ExecutorError> {
            self.note()
        }
        fn gather(&mut self, _: &[u32], _: &mut BytesMut) -> Result<(), ExecutorError> {
            Ok(())
        }
        fn local(&mut self, _: LayerId, _: &Assignment<'_>) -> Result<(), ExecutorError> {
            self.note()
        }
        fn accumulate(&mut self, _: &[u32], _: &[u8]) -> Result<(), ExecutorError> {
            Ok(())
        }
        fn combine(&mut self, _: LayerId) -> Result<(), ExecutorError> {
            Ok(())
        }
        fn end_step(&mut self, _: &mut Vec<f32>) -> Result<(), ExecutorError> {
            self.note()
        }
        fn serve(&mut self, _: LayerId, _: &[u8], _: &Assignment<'_>, _: &mut BytesMut) -> Result<(), ExecutorError> {
            self.note()
        }
    }

    fn m1() -> (Arc<SharedStatus>, Announcing<Noting>) {
        of(&Architecture::minimax_m1())
    }

    fn of(arch: &Architecture) -> (Arc<SharedStatus>, Announcing<Noting>) {
        let status = Arc::new(SharedStatus::new(Default::default()));
        let noting = Noting { status: status.clone(), seen: Vec::new() };
        (status.clone(), Announcing::new(Box::new(noting), arch, status))
    }

    fn batch(tokens: u32, position: u32) -> Batch {
        let segments = vec![Segment { slot: SlotId(0), start: 0, tokens, position, prompt: position + tokens }];
        Batch { ids: vec![1; tokens as usize], segments, logit_rows: vec![0] }
    }

    const SOFTMAX: LayerId = LayerId(7);

    #[test]
    fn a_long_call_is_announced_before_it_begins_and_is_over_when_it_ends() {
        let (status, mut executor) = m1();
        executor.begin_step(&batch(512, 400_000)).unwrap();
        executor.attention(SOFTMAX, &mut LayerRouting::default()).unwrap();
        let (progress, announced) = executor.seen[0];
        assert!(progress == 1 && announced > LONG_TURN && announced <= LONGEST_ANNOUNCED, "{announced:?}");
        assert_eq!((status.progress(), status.announced()), (2, Duration::ZERO));
        executor.attention(SOFTMAX, &mut LayerRouting::default()).unwrap();
        assert_eq!(executor.seen[1], (2, Duration::ZERO), "it is known by now that this one is fast");
        let experts = [3; 2 * 64];
        let assignment = Assignment { rows: &[0; 64], slots: 2, experts: &experts, weights: &[0.5; 2 * 64] };
        executor.local(SOFTMAX, &assignment).unwrap();
        assert!(executor.seen[2].1 > LONG_TURN, "experts have a pace of their own: {:?}", executor.seen[2]);
        executor.serve(SOFTMAX, &[], &assignment, &mut BytesMut::new()).unwrap();
        assert_eq!(executor.seen[3].1, Duration::ZERO, "which is the same for peers");
    }

    #[test]
    fn what_is_short_is_not_announced() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/m1-demo/config.json")).unwrap();
        let (status, mut executor) = of(&Architecture::from_json(&text).unwrap());
        executor.begin_step(&batch(512, 0)).unwrap();
        executor.attention(LayerId(0), &mut LayerRouting::default()).unwrap();
        executor.attention(SOFTMAX, &mut LayerRouting::default()).unwrap();
        executor.end_step(&mut Vec::new()).unwrap();
        // However large the model, places that are not used cost nothing.
        executor.costs = Costs::of(&Architecture::minimax_m1());
        let assignment = Assignment { rows: &[0; 64], slots: 2, experts: &[UNUSED; 128], weights: &[0.0; 128] };
        executor.local(SOFTMAX, &assignment).unwrap();
        assert_eq!(executor.seen.len(), 4);
        assert!(executor.seen.iter().all(|(progress, announced)| (*progress, *announced) == (0, Duration::ZERO)));
        assert_eq!(status.progress(), 0);
    }

    #[test]
    fn a_pace_is_learned_by_size() {
        let mut pace = Pace([None; 64]);
        assert_eq!(pace.expect(2e9), MARGIN);
        pace.took(1e9, 5.0);
        assert_eq!((pace.expect(1e9), pace.expect(8e9)), (10.0, 80.0), "larger ones go by the next smaller size");
        assert_eq!(pace.expect(1e6), 1e6 * COLD * MARGIN, "and smaller ones do not");
        pace.took(1e9, 1.0);
        assert_eq!(pace.expect(1e9), 8.0);
        pace.took(1e9, 7.0);
        assert_eq!(pace.expect(1e9), 14.0, "a slower one counts at once");
        assert_eq!((Pace::bucket(0.0), Pace::bucket(f64::MAX)), (0, 63));
    }

    #[test]
    fn reading_announces_what_is_left_with_every_piece() {
        let status = SharedStatus::new(Default::default());
        let mut tell = reading(&status, 500_000_000);
        let near = |wanted: u64| {
            let announced = status.announced();
            announced <= Duration::from_secs(wanted) && announced > Duration::from_secs(wanted - 1)
        };
        assert!(status.progress() == 1 && near(20));
        tell(250_000_000);
        assert!(status.progress() == 2 && near(15));
        tell(600_000_000);
        assert!(status.progress() == 3 && near(10));
        let _ = reading(&status, u64::MAX);
        assert!(near(LONGEST_ANNOUNCED.as_secs()));
    }
}
