//! Random arrivals, cancels, failures, ends and chunk sizes: every sequence says what it would say alone, ends exactly once
//! whatever meets in one step, and nothing leaks.
//!
//! `M1_ENGINE_CASES=100000 cargo test --release -p m1-engine --test properties` runs as many cases as it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod support;

use std::collections::{BTreeMap, VecDeque};

use m1_engine::*;
use proptest::prelude::*;
use support::*;

/// Cases where the environment names no number.
const CASES: u32 = 3000;
/// An id whose text completes a stop text.
const TEXT_STOP: u32 = 7;
const CLOSE: [u32; 2] = [65, 66];

#[derive(Debug, Clone)]
enum Op {
    /// A sequence; so many of its tokens were said by an earlier attempt, as far as it says them.
    Submit(SequenceRequest, usize),
    /// A step begins if two are not in flight yet; then the older one in flight ends, or the younger.
    Step(Vec<Within>, StepEnd, bool),
    Cancel(usize),
    FailAll,
}

/// What meets within one step.
#[derive(Debug, Clone)]
enum Within {
    /// The n-th sequence goes away.
    Cancel(usize),
    /// What this row needs is nowhere to be had.
    GiveUp(u32),
    /// The worker stops, or its device breaks.
    FailAll,
    Submit(SequenceRequest),
}

#[derive(Debug, Clone, Copy)]
enum StepEnd {
    Complete,
    Fail,
    /// Logits that are not finite.
    Broken,
    /// Not yet.
    Later,
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
        any::<(bool, bool, bool)>(),
    );
    parts.prop_map(
        |(prompt, max_tokens, sampling, prefill_chunk, budget, stop, expert_threshold, (raw_logits, omit_routing, batch))| {
            SequenceRequest {
                sampling,
                prefill_chunk,
                stop_ids: stop.into_iter().collect(),
                thinking: budget.map(|tokens| ThinkingBudget { tokens, close_ids: CLOSE.to_vec() }),
                expert_threshold,
                raw_logits,
                omit_routing,
                priority: if batch { Priority::Batch } else { Priority::Interactive },
                tally: Some(TallyId(u64::from(omit_routing))),
                ..SequenceRequest::greedy(prompt, max_tokens)
            }
        },
    )
}

fn within() -> impl Strategy<Value = Within> {
    prop_oneof![
        3 => (0usize..64).prop_map(Within::Cancel),
        3 => (0u32..12).prop_map(Within::GiveUp),
        1 => Just(Within::FailAll),
        2 => request().prop_map(Within::Submit),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let end =
        prop_oneof![8 => Just(StepEnd::Complete), 6 => Just(StepEnd::Later), 1 => Just(StepEnd::Fail), 1 => Just(StepEnd::Broken)];
    let quiet = || Op::Step(Vec::new(), StepEnd::Complete, true);
    let op = prop_oneof![
        8 => (request(), prop_oneof![2 => Just(0usize), 1 => 0usize..14]).prop_map(|(request, said)| Op::Submit(request, said)),
        12 => Just(()).prop_map(move |()| quiet()),
        9 => (prop::collection::vec(within(), 0..3), end, any::<bool>()).prop_map(|(within, end, older)| Op::Step(within, end, older)),
        2 => (0usize..64).prop_map(Op::Cancel),
        1 => Just(Op::FailAll),
    ];
    prop::collection::vec(op, 1..60)
}

/// Whether the caller sees the reasoning open after these outputs: from the second one until it is closed.
fn reasons(said: &[u32]) -> bool {
    said.len() >= 2 && said.last() != Some(&CLOSE[1]) && !said.contains(&CLOSE[1])
}

/// What a request says, by definition: one sequence, no batches, no scheduler.
fn oracle(request: &SequenceRequest) -> (Vec<u32>, Finish) {
    let mut sampler = Sampler::default();
    let ids = if request.raw_logits { AllowedIds::all(VOCAB) } else { AllowedIds::from_ids(VOCAB, 0..KNOWN) };
    let (mut seen, mut said, mut reasoned, mut closing) = (request.prompt.clone(), Vec::new(), 0, Vec::new());
    loop {
        let open = reasons(&said);
        let budget = request.thinking.as_ref().map(|thinking| thinking.tokens);
        let begun = said.windows(2).any(|pair| pair == CLOSE);
        if closing.is_empty() && !begun && open && budget.is_some_and(|budget| reasoned >= budget) {
            closing = vec![CLOSE[1], CLOSE[0]];
        }
        let drawn =
            |sampler: &mut Sampler| sampler.choose(&logits_after(&seen), &request.sampling, seen.len() as u32, &ids).unwrap();
        let token = closing.pop().unwrap_or_else(|| drawn(&mut sampler));
        reasoned += u32::from(open);
        seen.push(token);
        said.push(token);
        if request.stop_ids.contains(&token) || token == TEXT_STOP {
            return (said, Finish::Stop);
        }
        if said.len() == request.max_tokens as usize {
            return (said, Finish::Length);
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    request: Option<SequenceRequest>,
    /// By an earlier attempt, then here.
    said: Vec<u32>,
    /// What was heard of it, in the engine's own order.
    heard: Vec<u32>,
    end: Option<(Finish, Usage, RoutingCounts)>,
    cancelled: bool,
}

struct World {
    scheduler: Scheduler,
    device: Double,
    flying: Vec<(Step, Results)>,
    /// States on their way.
    moves: VecDeque<Move>,
    seen: BTreeMap<SequenceId, Seen>,
}

impl World {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit(request, said) => self.submit(request, said),
            Op::Step(within, end, older) => drop(self.step(within, end, older)),
            Op::Cancel(n) => self.cancel(n),
            Op::FailAll => self.fail_all(),
        }
        let now = self.scheduler.occupancy();
        assert!(now.slots_used <= now.slots_total && now.kv_blocks_used <= now.kv_blocks_total, "{now:?}");
    }

    fn submit(&mut self, mut request: SequenceRequest, said: usize) {
        if said > 0 {
            let (whole, _) = oracle(&request);
            request.said = whole[..said.min(whole.len() - 1)].to_vec();
        }
        let mut heard = Vec::new();
        let hear = |token| {
            heard.push(token);
            meaning(&heard)
        };
        let spec = SequenceSpec::heard(request.clone(), &limits(), false, hear).unwrap();
        match self.scheduler.submit(spec) {
            Ok(id) => {
                let said = request.said.clone();
                self.seen.insert(id, Seen { request: Some(request), heard: said.clone(), said, ..Seen::default() });
            }
            Err(error) => assert_eq!(error, SchedulerError::QueueFull { waiting: 4, queue: 4 }),
        }
    }

    fn cancel(&mut self, n: usize) {
        let live: Vec<SequenceId> =
            self.seen.iter().filter(|(_, seen)| seen.end.is_none() && !seen.cancelled).map(|(&id, _)| id).collect();
        if let Some(&id) = live.get(n % live.len().max(1)) {
            assert!(self.scheduler.cancel(id));
            self.seen.entry(id).or_default().cancelled = true;
        }
    }

    fn fail_all(&mut self) {
        let mut out = Vec::new();
        self.scheduler.fail_all(&failure("all"), &mut out);
        out.into_iter().for_each(|outcome| self.take(outcome));
    }

    /// False: nothing is in flight, and nothing is to be computed.
    fn step(&mut self, within: Vec<Within>, end: StepEnd, older: bool) -> bool {
        let mut out = Vec::new();
        self.moves.extend(self.scheduler.take_moves());
        // Now and then states take longer than a step.
        if older && let Some(what) = self.moves.pop_front() {
            self.carry_out(what, matches!(end, StepEnd::Fail));
        }
        if self.flying.len() < 2
            && let Some(step) = self.scheduler.next_step(&mut out)
        {
            let budget = self.scheduler.config().prefill_tokens as usize;
            assert!(step.kind == StepKind::Decode || step.batch.ids.len() <= budget);
            let results = compute(&mut self.scheduler, &mut self.device, &step);
            self.flying.push((step, results));
        }
        out.drain(..).for_each(|outcome| self.take(outcome));
        let place = if older { 0 } else { self.flying.len().saturating_sub(1) };
        if place >= self.flying.len() {
            self.moves.extend(self.scheduler.take_moves());
            return !self.moves.is_empty();
        }
        for within in within {
            match within {
                Within::Cancel(n) => self.cancel(n),
                Within::GiveUp(row) => self.flying[place].0.give_up(row, &failure("row")),
                Within::FailAll => self.fail_all(),
                Within::Submit(request) => self.submit(request, 0),
            }
        }
        if matches!(end, StepEnd::Later) {
            return true;
        }
        let (step, mut results) = self.flying.remove(place);
        let seen = &mut self.seen;
        let mut hear = |id: SequenceId, token: u32| {
            let heard = &mut seen.get_mut(&id).expect("a submitted sequence").heard;
            heard.push(token);
            meaning(heard)
        };
        match end {
            StepEnd::Complete | StepEnd::Later => self.scheduler.complete(step, &results, &mut hear, &mut out),
            StepEnd::Fail => self.scheduler.fail(step, &failure("step"), &mut out),
            StepEnd::Broken => {
                let nan = [f32::NAN; VOCAB as usize];
                let draws = step.batch.draws.iter();
                results.drawn = draws.map(|draw| Sampler::default().draw(&nan, draw)).collect();
                self.scheduler.complete(step, &results, &mut hear, &mut out);
            }
        }
        self.scheduler.reuse(results);
        out.into_iter().for_each(|outcome| self.take(outcome));
        true
    }

    fn carry_out(&mut self, what: Move, fails: bool) {
        let error = || ExecutorError::OutOfMemory("on purpose".into());
        match what {
            Move::Export { slot } if fails => self.scheduler.exported(slot, Err(error())),
            Move::Import { slot, .. } if fails => self.scheduler.imported(slot, Err(error())),
            what => self.device.carry_out(what, &mut self.scheduler),
        }
    }

    fn take(&mut self, outcome: SequenceEvent) {
        let seen = self.seen.get_mut(&outcome.id()).expect("a submitted sequence");
        assert!(seen.end.is_none() && !seen.cancelled, "nothing comes after the end: {outcome:?}");
        match outcome {
            SequenceEvent::Progress { .. } | SequenceEvent::RawLogits { .. } => {}
            SequenceEvent::Token { token, .. } => seen.said.push(token),
            SequenceEvent::Finished { finish, usage, routing, .. } => seen.end = Some((finish, usage, *routing)),
        }
    }
}

fn failure(message: &str) -> Failure {
    Failure { reason: "Test", message: message.into() }
}

/// What the text of the last of these tokens means.
fn meaning(said: &[u32]) -> Heard {
    Heard { stop: said.last() == Some(&TEXT_STOP), reasoning_open: reasons(said) }
}

fn cases() -> u32 {
    std::env::var("M1_ENGINE_CASES").map_or(CASES, |cases| cases.parse().expect("M1_ENGINE_CASES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_sequence_says_what_it_says_alone_and_ends_once(
        ops in ops(),
        prefill_tokens in 1u32..12,
        // The longest sequence takes 9 blocks.
        kv_blocks in prop_oneof![9u32..14, Just(20)],
        aside_bytes in prop_oneof![Just(0u64), 40u64..200, Just(u64::MAX)],
    ) {
        let limits = Limits { kv_blocks, ..limits() };
        let config = SchedulerConfig { limits, queue: 4, prefill_tokens, prefill_beside: prefill_tokens, aside_bytes };
        let mut world = World {
            scheduler: Scheduler::new(config, SHAPE, AllowedIds::from_ids(VOCAB, 0..KNOWN)).unwrap(),
            device: Double::new(limits),
            flying: Vec::new(),
            moves: VecDeque::new(),
            seen: BTreeMap::new(),
        };
        ops.into_iter().for_each(|op| world.apply(op));
        // Bounded: each step moves at least one token of a sequence that has at most 34, and reads few again.
        let bound = world.device.steps + 4 * 34 * world.seen.len();
        while world.step(Vec::new(), StepEnd::Complete, true) {
            prop_assert!(world.device.steps <= bound, "steps without progress");
        }
        prop_assert!(world.scheduler.is_idle() && world.flying.is_empty());
        let empty = Occupancy { slots_total: 3, kv_blocks_total: kv_blocks, ..Occupancy::default() };
        prop_assert_eq!(world.scheduler.occupancy(), empty);
        for (id, seen) in &world.seen {
            let request = seen.request.as_ref().expect("a submitted sequence");
            let (said, finish) = oracle(request);
            prop_assert!(said.starts_with(&seen.said), "{:?} is not the head of {:?}", seen.said, said);
            prop_assert!(seen.heard == seen.said, "what is heard is what is said");
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
        prop_assert_eq!(world.scheduler.tallies().map(|(_, counts)| counts.tokens).sum::<u64>(), all.tokens);
    }
}
