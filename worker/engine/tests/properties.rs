//! Random arrivals, cancels, failures and chunk sizes: every sequence says what it would say alone, and nothing leaks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod support;

use std::collections::BTreeMap;

use m1_engine::*;
use proptest::prelude::*;
use support::*;

/// An id that, once said, makes the caller end the sequence, as a stop text would.
const TEXT_STOP: u32 = 7;
const CLOSE: [u32; 2] = [65, 66];

#[derive(Debug, Clone)]
enum Op {
    Submit(SequenceRequest),
    Step,
    /// A step during which the n-th sequence goes away.
    CancelWithin(usize),
    Cancel(usize),
    FailStep,
}

fn request() -> impl Strategy<Value = SequenceRequest> {
    let sampling = prop_oneof![
        Just(Sampling::GREEDY),
        (0.2f32..2.0, 0.3f32..=1.0, any::<u64>()).prop_map(|(temperature, top_p, seed)| Sampling { temperature, top_p, seed })
    ];
    let parts = (
        prop::collection::vec(0..VOCAB, 1..20),
        1u32..14,
        sampling,
        0u32..6,
        prop::option::of(0u32..4),
        prop::option::of(0..KNOWN),
        prop_oneof![Just(1.0f32), 0.55f32..0.99],
        any::<bool>(),
    );
    parts.prop_map(|(prompt, max_tokens, sampling, prefill_chunk, budget, stop, expert_threshold, raw_logits)| SequenceRequest {
        sampling,
        prefill_chunk,
        stop_ids: stop.into_iter().collect(),
        thinking: budget.map(|tokens| ThinkingBudget { tokens, close_ids: CLOSE.to_vec() }),
        expert_threshold,
        raw_logits,
        ..SequenceRequest::greedy(prompt, max_tokens)
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => request().prop_map(Op::Submit),
        8 => Just(Op::Step),
        1 => any::<prop::sample::Index>().prop_map(|index| Op::CancelWithin(index.index(64))),
        1 => any::<prop::sample::Index>().prop_map(|index| Op::Cancel(index.index(64))),
        1 => Just(Op::FailStep),
    ];
    prop::collection::vec(op, 1..60)
}

/// Whether the caller sees the reasoning open after these outputs: from the second one until it is closed.
fn reasons(said: &[u32]) -> bool {
    said.len() >= 2 && said.last() != Some(&CLOSE[1]) && !said.contains(&CLOSE[1])
}

/// What a request says, by definition: one sequence, no batches, no scheduler.
fn oracle(request: &SequenceRequest) -> (Vec<u32>, Finish) {
    let mut sampler = Sampler::new(AllowedIds::from_ids(VOCAB, 0..KNOWN));
    let ids = if request.raw_logits { Ids::Every } else { Ids::Known };
    let (mut seen, mut said, mut reasoned, mut closing) = (request.prompt.clone(), Vec::new(), 0, Vec::new());
    loop {
        let open = reasons(&said);
        let budget = request.thinking.as_ref().map(|thinking| thinking.tokens);
        let begun = said.windows(2).any(|pair| pair == CLOSE);
        if closing.is_empty() && !begun && open && budget.is_some_and(|budget| reasoned >= budget) {
            closing = vec![CLOSE[1], CLOSE[0]];
        }
        let drawn =
            |sampler: &mut Sampler| sampler.choose(&logits_after(&seen), &request.sampling, seen.len() as u32, ids).unwrap();
        let token = closing.pop().unwrap_or_else(|| drawn(&mut sampler));
        reasoned += u32::from(open);
        seen.push(token);
        said.push(token);
        if request.stop_ids.contains(&token) || token == TEXT_STOP && said.len() < request.max_tokens as usize {
            return (said, Finish::Stop);
        }
        if said.len() == request.max_tokens as usize {
            return (said, Finish::Length);
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    said: Vec<u32>,
    end: Option<(Finish, Usage, RoutingCounts)>,
    cancelled: bool,
}

struct World {
    scheduler: Scheduler,
    device: Double,
    requests: BTreeMap<SequenceId, SequenceRequest>,
    seen: BTreeMap<SequenceId, Seen>,
}

impl World {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit(request) => {
                let spec = SequenceSpec::new(request.clone(), &limits()).unwrap();
                match self.scheduler.submit(spec) {
                    Ok(id) => {
                        self.requests.insert(id, request);
                        self.seen.insert(id, Seen::default());
                    }
                    Err(error) => assert_eq!(error, SchedulerError::QueueFull { waiting: 4, queue: 4 }),
                }
            }
            Op::Step => drop(self.step(|_| (), false)),
            Op::CancelWithin(n) => drop(self.step(|world| world.cancel(n), false)),
            Op::FailStep => drop(self.step(|_| (), true)),
            Op::Cancel(n) => self.cancel(n),
        }
        let now = self.scheduler.occupancy();
        assert!(now.slots_used <= now.slots_total && now.kv_blocks_used <= now.kv_blocks_total, "{now:?}");
    }

    fn cancel(&mut self, n: usize) {
        let live: Vec<SequenceId> =
            self.seen.iter().filter(|(_, seen)| seen.end.is_none() && !seen.cancelled).map(|(&id, _)| id).collect();
        if let Some(&id) = live.get(n % live.len().max(1)) {
            assert!(self.scheduler.cancel(id));
            self.seen.entry(id).or_default().cancelled = true;
        }
    }

    fn step(&mut self, within: impl FnOnce(&mut Self), fail: bool) -> bool {
        let mut out = Vec::new();
        let Some(step) = self.scheduler.next_step(&mut self.device, &mut out) else { return false };
        let budget = self.scheduler.config().prefill_tokens as usize;
        assert!(step.kind == StepKind::Decode || step.batch.ids.len() <= budget);
        within(self);
        let logits = compute(&mut self.scheduler, &mut self.device, &step);
        if fail {
            self.scheduler.fail(step, &Failure { reason: "Test", message: "on purpose".into() }, &mut out);
        } else {
            self.scheduler.complete(step, &logits, &mut out);
        }
        out.into_iter().for_each(|outcome| self.take(outcome));
        true
    }

    fn take(&mut self, outcome: Outcome) {
        let id = outcome.id();
        let seen = self.seen.get_mut(&id).expect("a submitted sequence");
        assert!(seen.end.is_none() && !seen.cancelled, "nothing comes after the end");
        match outcome {
            Outcome::RawLogits { .. } => {}
            Outcome::Finished { finish, usage, routing, .. } => seen.end = Some((finish, usage, *routing)),
            Outcome::Token { token, .. } => {
                seen.said.push(token);
                self.scheduler.set_reasoning_open(id, reasons(&seen.said));
                if token == TEXT_STOP
                    && !self.requests[&id].stop_ids.contains(&token)
                    && let Some(Outcome::Finished { finish, usage, routing, .. }) = self.scheduler.finish(id, Finish::Stop)
                {
                    seen.end = Some((finish, usage, *routing));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_sequence_says_what_it_says_alone(ops in ops(), prefill_tokens in 1u32..12) {
        let mut world = World {
            scheduler: scheduler(limits(), 4, prefill_tokens),
            device: Double::new(limits().slots),
            requests: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        ops.into_iter().for_each(|op| world.apply(op));
        // Bounded: each step moves at least one token of a sequence that has at most 34.
        let bound = world.device.steps + 34 * world.seen.len();
        while world.step(|_| (), false) {
            prop_assert!(world.device.steps <= bound, "steps without progress");
        }
        prop_assert!(world.scheduler.is_idle() && world.device.open.is_empty());
        let empty = Occupancy { slots_total: 3, kv_blocks_total: 20, ..Occupancy::default() };
        prop_assert_eq!(world.scheduler.occupancy(), empty);
        for (id, seen) in &world.seen {
            let (said, finish) = oracle(&world.requests[id]);
            prop_assert!(said.starts_with(&seen.said), "{:?} is not the head of {:?}", seen.said, said);
            let Some((end, usage, routing)) = &seen.end else {
                prop_assert!(seen.cancelled, "sequence {} was forgotten", id.0);
                continue;
            };
            let per_token = (SHAPE.top_k * SHAPE.layers) as u64;
            prop_assert_eq!(routing.executed + routing.skipped + routing.lost, routing.tokens * per_token);
            if end.as_str() != "error" {
                prop_assert_eq!((&seen.said, end), (&said, &finish));
                prop_assert_eq!(usage.output_tokens as usize, said.len());
                prop_assert_eq!(routing.tokens, u64::from(usage.prompt_tokens + usage.output_tokens - 1));
            }
        }
        let all = world.scheduler.routing();
        prop_assert_eq!(all.executed + all.skipped + all.lost, all.tokens * (SHAPE.top_k * SHAPE.layers) as u64);
    }
}
