//! The scheduler's rules, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod support;

use m1_engine::*;
use support::*;

fn spec(request: SequenceRequest) -> SequenceSpec {
    SequenceSpec::new(request, &limits()).unwrap()
}

fn greedy_spec(prompt: Vec<u32>, max_tokens: u32) -> SequenceSpec {
    spec(SequenceRequest::greedy(prompt, max_tokens))
}

/// The end of one sequence.
fn end_of(outcomes: &[Outcome], of: SequenceId) -> (&Finish, Usage, &RoutingCounts) {
    let mut ends = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Finished { id, finish, usage, routing } if *id == of => Some((finish, *usage, &**routing)),
        _ => None,
    });
    let end = ends.next().expect("an end");
    assert!(ends.next().is_none(), "one end only");
    end
}

#[test]
fn one_sequence_says_what_greedy_says() {
    for chunk in [0, 1, 2, 7] {
        let (mut scheduler, mut device) = (scheduler(limits(), 4, 5), Double::new(limits()));
        let mut request = SequenceRequest::greedy((0..13).collect(), 6);
        request.prefill_chunk = chunk;
        let id = scheduler.submit(spec(request)).unwrap();
        let out = drain(&mut scheduler, &mut device);
        assert_eq!(tokens_of(&out, id), greedy(&(0..13).collect::<Vec<_>>(), 6));
        let (finish, usage, routing) = end_of(&out, id);
        assert_eq!(*finish, Finish::Length);
        assert_eq!(usage, Usage { prompt_tokens: 13, output_tokens: 6, reasoning_tokens: 0 });
        assert_eq!((routing.tokens, routing.executed), (18, 18 * 2 * 3));
        assert!(scheduler.is_idle());
    }
}

#[test]
fn a_stop_id_is_the_last_output() {
    let said = greedy(&[5, 6], 5);
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 5), Double::new(limits()));
    let mut request = SequenceRequest::greedy(vec![5, 6], 20);
    request.stop_ids = vec![200_000, said[2]];
    let id = scheduler.submit(spec(request)).unwrap();
    let out = drain(&mut scheduler, &mut device);
    let last = said.iter().position(|&token| token == said[2]).unwrap();
    assert_eq!(tokens_of(&out, id), said[..=last]);
    assert_eq!(*end_of(&out, id).0, Finish::Stop);
}

#[test]
fn decode_and_prefill_take_turns() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 4), Double::new(limits()));
    scheduler.submit(greedy_spec(vec![1], 10)).unwrap();
    turn(&mut scheduler, &mut device).unwrap();
    scheduler.submit(greedy_spec(vec![2; 16], 2)).unwrap();
    let kinds: Vec<&str> = (0..8).map(|_| turn(&mut scheduler, &mut device).unwrap().0.as_str()).collect();
    assert_eq!(kinds, ["decode", "prefill", "decode", "prefill", "decode", "prefill", "decode", "prefill"]);
}

#[test]
fn prompts_share_the_prefill_budget_and_take_turns() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 6), Double::new(limits()));
    let long = scheduler.submit(greedy_spec(vec![1; 20], 2)).unwrap();
    let mut chunked = SequenceRequest::greedy(vec![2; 5], 2);
    chunked.prefill_chunk = 2;
    let chunked = scheduler.submit(spec(chunked)).unwrap();
    let short = scheduler.submit(greedy_spec(vec![3], 1)).unwrap();
    let mut plans = Vec::new();
    for _ in 0..3 {
        let step = loop {
            let step = scheduler.next_step(&mut Vec::new()).unwrap();
            if step.kind == StepKind::Prefill {
                break step;
            }
            let results = compute(&mut scheduler, &mut device, &step);
            scheduler.complete(step, &results, &mut deaf, &mut Vec::new());
        };
        // An id is drawn only after a prompt's last token.
        let ends = step.owners.iter().filter(|&&id| id == short).count() + usize::from(plans.len() == 3);
        assert_eq!((step.batch.draws.len(), step.batch.logit_rows.len()), (ends, 0));
        plans.push(step.owners.iter().copied().zip(step.batch.segments.iter().map(|s| s.tokens)).collect::<Vec<_>>());
        let results = compute(&mut scheduler, &mut device, &step);
        scheduler.complete(step, &results, &mut deaf, &mut Vec::new());
    }
    assert_eq!(plans, [vec![(long, 6)], vec![(chunked, 2), (short, 1), (long, 3)], vec![(chunked, 2), (long, 4)]]);
}

#[test]
fn runs_where_the_prompt_fits_with_room_to_grow() {
    let (mut scheduler, mut device) = (scheduler(limits(), 2, 8), Double::new(limits()));
    // 20 blocks of 4 tokens: 13 for the first prompt and its first output, so the second, which needs 7, waits though a slot is free.
    let first = scheduler.submit(greedy_spec(vec![1; 50], 10)).unwrap();
    let second = scheduler.submit(greedy_spec(vec![2; 24], 4)).unwrap();
    // It would fit, but does not overtake.
    let third = scheduler.submit(greedy_spec(vec![3], 1)).unwrap();
    assert_eq!(scheduler.submit(greedy_spec(vec![4], 1)), Err(SchedulerError::QueueFull { waiting: 2, queue: 2 }));
    let expected = Occupancy {
        running: 1,
        waiting: 2,
        slots_used: 1,
        slots_total: 3,
        kv_blocks_used: 13,
        kv_blocks_total: 20,
        kv_blocks_waiting: 8,
        ..Occupancy::default()
    };
    assert_eq!(scheduler.occupancy(), expected);
    let out = drain(&mut scheduler, &mut device);
    let ends: Vec<SequenceId> = out.iter().filter(|outcome| matches!(outcome, Outcome::Finished { .. })).map(Outcome::id).collect();
    assert_eq!(ends[0], first);
    assert!(ends.contains(&second) && ends.contains(&third));
    assert_eq!(scheduler.occupancy(), Occupancy { slots_total: 3, kv_blocks_total: 20, ..Occupancy::default() });
}

/// Three sequences that each come to need half of all blocks.
fn crowd(aside_bytes: u64) -> (Vec<Outcome>, Vec<SequenceId>, usize, u32) {
    let limits = Limits { kv_blocks: 12, ..limits() };
    let config = SchedulerConfig { limits, queue: 4, prefill_tokens: 8, prefill_beside: 8, aside_bytes };
    let mut scheduler = Scheduler::new(config, SHAPE, AllowedIds::from_ids(VOCAB, 0..KNOWN)).unwrap();
    let mut device = Double::new(limits);
    let ids: Vec<SequenceId> = (0..3).map(|n| scheduler.submit(greedy_spec(vec![n + 1; 3], 22)).unwrap()).collect();
    assert_eq!(scheduler.occupancy().running, 3, "none reserves what it may come to need");
    let (mut out, mut most) = (Vec::new(), 0);
    while let Some((_, more)) = turn(&mut scheduler, &mut device) {
        out.extend(more);
        most = most.max(scheduler.occupancy().set_aside);
    }
    assert_eq!(scheduler.occupancy(), Occupancy { slots_total: 3, kv_blocks_total: 12, ..Occupancy::default() });
    let tokens = scheduler.routing().tokens;
    assert_eq!(tokens, 3 * (3 + 22 - 1), "what is read again is not counted again");
    (out, ids, device.steps, most)
}

#[test]
fn where_blocks_run_out_the_youngest_is_set_aside_and_says_what_it_says_alone() {
    for (aside_bytes, again) in [(u64::MAX, false), (0, true)] {
        let (out, ids, steps, most) = crowd(aside_bytes);
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(tokens_of(&out, *id), greedy(&[n as u32 + 1; 3], 22));
            let (finish, usage, routing) = end_of(&out, *id);
            assert_eq!((finish, usage.output_tokens, routing.tokens), (&Finish::Length, 22, 24));
        }
        let ends: Vec<SequenceId> =
            out.iter().filter(|outcome| matches!(outcome, Outcome::Finished { .. })).map(Outcome::id).collect();
        assert_eq!(ends, ids, "the oldest is never the one that goes");
        assert!((1..=2).contains(&most), "{most} set aside at once");
        // One token a step at most; what is read again takes steps of its own.
        assert!(again || steps <= 3 * 23, "{steps} steps");
    }
}

fn batch(prompt: Vec<u32>, max_tokens: u32) -> SequenceSpec {
    spec(SequenceRequest { priority: Priority::Batch, ..SequenceRequest::greedy(prompt, max_tokens) })
}

#[test]
fn batch_sequences_wait_behind_interactive_ones_and_do_not_starve() {
    let limits = Limits { slots: 1, ..limits() };
    let (mut scheduler, mut device) = (scheduler(limits, 99, 8), Double::new(limits));
    let running = scheduler.submit(greedy_spec(vec![1], 2)).unwrap();
    let patient: Vec<SequenceId> = (0..2).map(|n| scheduler.submit(batch(vec![n + 2], 1)).unwrap()).collect();
    let hasty: Vec<SequenceId> = (0..9).map(|n| scheduler.submit(greedy_spec(vec![n + 9], 1)).unwrap()).collect();
    let out = drain(&mut scheduler, &mut device);
    let ends: Vec<SequenceId> = out.iter().filter(|outcome| matches!(outcome, Outcome::Finished { .. })).map(Outcome::id).collect();
    let order = [&[running], &hasty[..4], &patient[..1], &hasty[4..8], &patient[1..], &hasty[8..]].concat();
    assert_eq!(ends, order);
}

#[test]
fn batch_sequences_are_set_aside_before_interactive_ones_whatever_their_age() {
    let limits = Limits { kv_blocks: 12, ..limits() };
    let (mut scheduler, mut device) = (scheduler(limits, 4, 8), Double::new(limits));
    let patient = scheduler.submit(batch(vec![1; 3], 22)).unwrap();
    let hasty: Vec<SequenceId> = (0..2).map(|n| scheduler.submit(greedy_spec(vec![n + 2; 3], 22)).unwrap()).collect();
    let out = drain(&mut scheduler, &mut device);
    let ends: Vec<SequenceId> = out.iter().filter(|outcome| matches!(outcome, Outcome::Finished { .. })).map(Outcome::id).collect();
    assert_eq!(ends, [hasty[0], hasty[1], patient]);
    assert_eq!(tokens_of(&out, patient), greedy(&[1; 3], 22));
}

#[test]
fn prompts_of_batch_sequences_are_read_behind_others_but_for_every_fifth_step() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 2), Double::new(limits()));
    let patient = scheduler.submit(batch(vec![1; 20], 1)).unwrap();
    let hasty = scheduler.submit(greedy_spec(vec![2; 20], 1)).unwrap();
    let mut order = Vec::new();
    while let Some(step) = scheduler.next_step(&mut Vec::new()) {
        assert_eq!(step.owners.len(), 1);
        order.push(step.owners[0] == hasty);
        let results = compute(&mut scheduler, &mut device, &step);
        scheduler.complete(step, &results, &mut deaf, &mut Vec::new());
    }
    assert_eq!(order[..12], [true, true, true, true, false, true, true, true, true, false, true, true]);
    assert!(scheduler.is_idle() && order.len() == 20, "{patient:?}");
}

#[test]
fn one_that_alone_fills_all_blocks_has_reached_its_length() {
    let limits = Limits { kv_blocks: 3, ..limits() };
    let mut scheduler = scheduler(limits, 4, 8);
    let mut device = Double::new(limits);
    let spec = SequenceSpec::new(SequenceRequest::greedy(vec![5, 6], 40), &limits).unwrap();
    let id = scheduler.submit(spec).unwrap();
    let out = drain(&mut scheduler, &mut device);
    let (finish, usage, _) = end_of(&out, id);
    assert_eq!(
        (finish, usage.prompt_tokens + usage.output_tokens),
        (&Finish::Length, 13),
        "12 tokens in the cache, and the one after them"
    );
    assert_eq!(tokens_of(&out, id), greedy(&[5, 6], 11));
}

#[test]
fn whoever_is_set_aside_can_be_cancelled_and_failed_and_is_alive_meanwhile() {
    let limits = Limits { kv_blocks: 12, ..limits() };
    for cancel in [true, false] {
        let (mut scheduler, mut device) = (scheduler(limits, 4, 8), Double::new(limits));
        let ids: Vec<SequenceId> = (0..3).map(|n| scheduler.submit(greedy_spec(vec![n + 1; 3], 22)).unwrap()).collect();
        while scheduler.occupancy().set_aside == 0 {
            turn(&mut scheduler, &mut device).unwrap();
        }
        let mut out = Vec::new();
        scheduler.reassure(&mut out);
        assert_eq!(out, [Outcome::Progress { id: ids[2] }]);
        assert_eq!(scheduler.occupancy().waiting, 1, "it counts as waiting");
        if cancel {
            assert!(scheduler.cancel(ids[2]) && !scheduler.cancel(ids[2]));
            out = drain(&mut scheduler, &mut device);
            assert!(tokens_of(&out, ids[2]).is_empty());
            assert_eq!(end_of(&out, ids[1]).0, &Finish::Length);
        } else {
            scheduler.fail_all(&Failure { reason: "Draining", message: "the worker stops".into() }, &mut out);
            ids.iter().for_each(|&id| assert_eq!(end_of(&out, id).0.as_str(), "error"));
        }
        assert!(scheduler.is_idle());
    }
}

#[test]
fn a_queue_of_none_still_runs_what_fits() {
    let mut scheduler = scheduler(limits(), 0, 8);
    (0..3).for_each(|_| assert!(scheduler.submit(greedy_spec(vec![1], 1)).is_ok()));
    let error = scheduler.submit(greedy_spec(vec![1], 1)).unwrap_err();
    assert_eq!((error.reason(), error.is_transient()), ("QueueFull", true));
}

#[test]
fn what_is_cancelled_within_a_step_is_free_when_it_has_ended() {
    let limits = Limits { slots: 1, ..limits() };
    let (mut scheduler, mut device) = (scheduler(limits, 4, 8), Double::new(limits));
    let gone = scheduler.submit(greedy_spec(vec![1, 2], 5)).unwrap();
    let next = scheduler.submit(greedy_spec(vec![3], 2)).unwrap();
    let mut out = Vec::new();
    let step = scheduler.next_step(&mut out).unwrap();
    assert_eq!(step.owners, [gone]);
    assert!(scheduler.cancel(gone) && !scheduler.cancel(gone));
    let Occupancy { running, waiting, slots_used, kv_blocks_used, .. } = scheduler.occupancy();
    assert_eq!((running, waiting, slots_used, kv_blocks_used), (0, 1, 1, 1), "the executor may still use its slot and blocks");
    assert!(scheduler.next_step(&mut out).is_none());
    let results = compute(&mut scheduler, &mut device, &step);
    scheduler.complete(step, &results, &mut deaf, &mut out);
    assert_eq!(out, [Outcome::Progress { id: gone }]);
    assert_eq!(scheduler.routing().tokens, 2, "the worker did compute them");
    assert_eq!(scheduler.occupancy().running, 1, "the waiting one is in");
    out = drain(&mut scheduler, &mut device);
    assert_eq!(tokens_of(&out, next), greedy(&[3], 2));
}

#[test]
fn steps_in_flight_share_no_sequence_and_end_in_any_order() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 4), Double::new(limits()));
    let first = scheduler.submit(greedy_spec(vec![1; 3], 4)).unwrap();
    turn(&mut scheduler, &mut device).unwrap();
    let second = scheduler.submit(greedy_spec(vec![2; 6], 2)).unwrap();
    let mut out = Vec::new();
    let decode = scheduler.next_step(&mut out).unwrap();
    let prefill = scheduler.next_step(&mut out).unwrap();
    assert_eq!((decode.kind, prefill.kind), (StepKind::Decode, StepKind::Prefill));
    assert!(decode.id < prefill.id && scheduler.next_step(&mut out).is_none());
    assert_eq!((prefill.owners.as_slice(), decode.owners.as_slice()), ([second].as_slice(), [first].as_slice()));
    let of_prefill = compute(&mut scheduler, &mut device, &prefill);
    let of_decode = compute(&mut scheduler, &mut device, &decode);
    scheduler.complete(decode, &of_decode, &mut deaf, &mut out);
    let again = scheduler.next_step(&mut out).unwrap();
    assert_eq!(again.owners, [first], "it goes on while the other step is in flight");
    scheduler.complete(prefill, &of_prefill, &mut deaf, &mut out);
    let of_again = compute(&mut scheduler, &mut device, &again);
    scheduler.complete(again, &of_again, &mut deaf, &mut out);
    out.extend(drain(&mut scheduler, &mut device));
    assert_eq!(tokens_of(&out, second), greedy(&[2; 6], 2));
    assert_eq!(tokens_of(&out, first), greedy(&[1; 3], 4)[1..]);
}

#[test]
fn decode_rows_lie_in_the_order_of_slots() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 8), Double::new(limits()));
    let first = scheduler.submit(greedy_spec(vec![1], 1)).unwrap();
    scheduler.submit(greedy_spec(vec![2], 9)).unwrap();
    turn(&mut scheduler, &mut device).unwrap();
    assert!(!scheduler.cancel(first), "it has ended, and its slot goes to the next");
    scheduler.submit(greedy_spec(vec![3], 9)).unwrap();
    turn(&mut scheduler, &mut device).unwrap();
    turn(&mut scheduler, &mut device).unwrap();
    let step = scheduler.next_step(&mut Vec::new()).unwrap();
    let slots: Vec<u32> = step.batch.segments.iter().map(|segment| segment.slot.0).collect();
    assert_eq!((step.kind, slots), (StepKind::Decode, vec![0, 1]));
    assert!(step.owners[0] > step.owners[1]);
    scheduler.fail(step, &Failure { reason: "Test", message: String::new() }, &mut Vec::new());
}

#[test]
fn cancelling_the_head_of_the_queue_lets_the_next_in() {
    let mut scheduler = scheduler(limits(), 4, 8);
    scheduler.submit(greedy_spec(vec![1; 50], 10)).unwrap();
    let head = scheduler.submit(greedy_spec(vec![2; 20], 4)).unwrap();
    scheduler.submit(greedy_spec(vec![3], 1)).unwrap();
    assert!(scheduler.cancel(head));
    assert_eq!((scheduler.occupancy().running, scheduler.occupancy().waiting), (2, 0));
}

#[test]
fn a_failed_step_ends_its_sequences_and_no_other() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 4), Double::new(limits()));
    let first = scheduler.submit(greedy_spec(vec![1; 4], 3)).unwrap();
    let second = scheduler.submit(greedy_spec(vec![2; 4], 3)).unwrap();
    let mut out = Vec::new();
    let step = scheduler.next_step(&mut out).unwrap();
    assert_eq!(step.owners, [first]);
    let error = ExecutorError::Device("out of order".into());
    scheduler.fail(step, &Failure::from(&error), &mut out);
    let (finish, usage, routing) = end_of(&out, first);
    assert_eq!(*finish, Finish::Failed(Failure { reason: "DeviceFailed", message: "the device failed: out of order".into() }));
    assert_eq!((usage.output_tokens, routing.tokens, scheduler.routing().tokens), (0, 0, 0));
    assert_eq!(tokens_of(&drain(&mut scheduler, &mut device), second), greedy(&[2; 4], 3));
    assert!(scheduler.is_idle());
}

#[test]
fn a_step_whose_results_are_not_whole_fails() {
    type Spoil = fn(&mut Results);
    let spoilt: [(&str, Spoil); 3] = [
        ("ResultsSize", |results| results.drawn.clear()),
        ("ResultsSize", |results| results.logits.push(1.0)),
        ("LayerNotRouted", |results| results.routing.begin(1)),
    ];
    for (reason, spoil) in spoilt {
        let (mut scheduler, mut device) = (scheduler(limits(), 4, 4), Double::new(limits()));
        let id = scheduler.submit(greedy_spec(vec![1], 3)).unwrap();
        let mut out = Vec::new();
        let step = scheduler.next_step(&mut out).unwrap();
        let mut results = compute(&mut scheduler, &mut device, &step);
        spoil(&mut results);
        scheduler.complete(step, &results, &mut deaf, &mut out);
        assert!(matches!(end_of(&out, id).0, Finish::Failed(failure) if failure.reason == reason), "{out:?}");
    }
}

#[test]
fn logits_that_are_not_finite_end_the_sequence() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 4), Double::new(limits()));
    let id = scheduler.submit(greedy_spec(vec![1], 3)).unwrap();
    let mut out = Vec::new();
    let step = scheduler.next_step(&mut out).unwrap();
    let mut results = compute(&mut scheduler, &mut device, &step);
    results.drawn[0] = Sampler::default().draw(&[f32::NAN; VOCAB as usize], &step.batch.draws[0]);
    scheduler.complete(step, &results, &mut deaf, &mut out);
    assert!(matches!(end_of(&out, id).0, Finish::Failed(failure) if failure.reason == "NonFiniteLogits"));
}

#[test]
fn what_some_rows_cannot_have_ends_their_sequences_and_no_other() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 12), Double::new(limits()));
    let ids: Vec<SequenceId> = (0..3)
        .map(|n| {
            let request = SequenceRequest { tally: Some(TallyId(n)), ..SequenceRequest::greedy(vec![n as u32 + 1; 4], 3) };
            scheduler.submit(spec(request)).unwrap()
        })
        .collect();
    let mut out = Vec::new();
    let mut step = scheduler.next_step(&mut out).unwrap();
    let failure = |word: &str| Failure { reason: "ExpertUnavailable", message: word.into() };
    step.give_up(6, &failure("first"));
    step.give_up(4, &failure("second"));
    step.give_up(12, &failure("no such row"));
    assert!(step.given_up_rows().eq(std::iter::once(4..8)));
    assert_eq!(step.wanted().collect::<Vec<_>>(), [ids[0], ids[2]]);
    let results = compute(&mut scheduler, &mut device, &step);
    scheduler.complete(step, &results, &mut deaf, &mut out);
    let (finish, usage, routing) = end_of(&out, ids[1]);
    assert_eq!((finish, usage.output_tokens, routing.tokens), (&Finish::Failed(failure("first")), 0, 0));
    assert_eq!((scheduler.routing().tokens, scheduler.tally(TallyId(1)).map(|counts| counts.tokens)), (8, None));
    out.extend(drain(&mut scheduler, &mut device));
    for (n, id) in [(0, ids[0]), (2, ids[2])] {
        assert_eq!(tokens_of(&out, id), greedy(&[n as u32 + 1; 4], 3));
        assert_eq!(scheduler.tally(TallyId(n)).map(|counts| counts.tokens), Some(6));
    }
    assert!(scheduler.is_idle());
}

#[test]
fn progress_is_told_when_the_queue_is_left_and_after_every_part_of_the_prompt() {
    let (mut scheduler, mut device) = (scheduler(Limits { slots: 1, ..limits() }, 4, 3), Double::new(limits()));
    scheduler.submit(greedy_spec(vec![1; 3], 2)).unwrap();
    let waits = scheduler.submit(greedy_spec(vec![2; 8], 2)).unwrap();
    let mut seen = Vec::new();
    while let Some((_, out)) = turn(&mut scheduler, &mut device) {
        seen.extend(out.iter().filter(|outcome| outcome.id() == waits).map(|outcome| match outcome {
            Outcome::Progress { .. } => 'p',
            Outcome::Token { .. } => 't',
            _ => '.',
        }));
    }
    assert_eq!(seen, ['p', 'p', 'p', 't', 't', '.']);
}

#[test]
fn tallies_count_every_token_once_also_of_cancelled_sequences() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 8), Double::new(limits()));
    let tallied = |n: u64, omit_routing| {
        spec(SequenceRequest { tally: Some(TallyId(n)), omit_routing, ..SequenceRequest::greedy(vec![1, 2, 3], 3) })
    };
    let whole = scheduler.submit(tallied(1, true)).unwrap();
    let gone = scheduler.submit(tallied(1, false)).unwrap();
    scheduler.submit(tallied(2, false)).unwrap();
    let mut out = Vec::new();
    let step = scheduler.next_step(&mut out).unwrap();
    scheduler.cancel(gone);
    let results = compute(&mut scheduler, &mut device, &step);
    scheduler.complete(step, &results, &mut deaf, &mut out);
    out.extend(drain(&mut scheduler, &mut device));
    let all: Vec<(u64, u64)> = scheduler.tallies().map(|(id, counts)| (id.0, counts.tokens)).collect();
    assert_eq!(all, [(1, 5 + 3), (2, 5)], "of the cancelled one what its step had begun");
    let one = scheduler.tally(TallyId(1)).unwrap();
    assert_eq!((one.executed, one.expert_tokens.iter().sum::<u64>()), (8 * 2 * 3, 8 * 2 * 3));
    assert!(one.expert_weight.is_empty());
    let (_, _, own) = end_of(&out, whole);
    assert_eq!((own.tokens, own.executed, own.expert_tokens.len()), (5, 5 * 2 * 3, 0), "totals only");
    scheduler.keep_tallies(|id| id == TallyId(2));
    assert!(scheduler.tally(TallyId(1)).is_none() && scheduler.tally(TallyId(2)).is_some());
}

#[test]
fn fail_all_ends_waiting_ones_too() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 8), Double::new(limits()));
    let ids: Vec<SequenceId> = (0..5).map(|n| scheduler.submit(greedy_spec(vec![n], 2)).unwrap()).collect();
    turn(&mut scheduler, &mut device).unwrap();
    let mut out = Vec::new();
    scheduler.fail_all(&Failure { reason: "Draining", message: "the worker stops".into() }, &mut out);
    ids.iter().for_each(|&id| assert_eq!(end_of(&out, id).0.as_str(), "error"));
    assert!(scheduler.is_idle() && turn(&mut scheduler, &mut device).is_none());
}

#[test]
fn raw_logits_come_for_every_position_unmasked() {
    let prompt = [9, 8, 7, 6, 5];
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 2), Double::new(limits()));
    let mut request = SequenceRequest::greedy(prompt.to_vec(), 3);
    request.raw_logits = true;
    scheduler.submit(spec(request)).unwrap();
    let (mut seen, mut positions, mut out) = (prompt.to_vec(), 0, Vec::new());
    while let Some(step) = scheduler.next_step(&mut out) {
        let results = compute(&mut scheduler, &mut device, &step);
        scheduler.complete(step, &results, &mut deaf, &mut out);
        for outcome in out.drain(..) {
            match outcome {
                Outcome::RawLogits { position, rows, .. } => {
                    assert_eq!(position as usize, positions);
                    for row in rows {
                        positions += 1;
                        let found = &results.logits[row * VOCAB as usize..(row + 1) * VOCAB as usize];
                        assert_eq!(found, logits_after(&seen[..positions]));
                    }
                }
                Outcome::Token { token, .. } => {
                    let logits = logits_after(&seen);
                    assert!(
                        logits.iter().enumerate().all(|(id, &logit)| logit < logits[token as usize]
                            || (logit == logits[token as usize] && id >= token as usize))
                    );
                    seen.push(token);
                }
                Outcome::Progress { .. } => {}
                Outcome::Finished { .. } => assert_eq!(positions, prompt.len() + 2),
            }
        }
    }
    assert_eq!(seen.len(), prompt.len() + 3);
}

#[test]
fn logprobs_come_where_asked_for() {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 8), Double::new(limits()));
    let mut request = SequenceRequest::greedy(vec![1, 2], 1);
    request.logprobs = 3;
    scheduler.submit(spec(request)).unwrap();
    let out = drain(&mut scheduler, &mut device);
    let Outcome::Token { token, logprobs: Some(logprobs), .. } = &out[1] else { panic!("{out:?}") };
    assert_eq!(logprobs.top.len(), 2);
    assert_eq!(logprobs.top[0], (*token, logprobs.logprob));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let known = || AllowedIds::all(VOCAB);
    let config = SchedulerConfig { limits: limits(), queue: 1, prefill_tokens: 1, prefill_beside: 1, aside_bytes: 0 };
    let words = |config, known| Scheduler::new(config, SHAPE, known).unwrap_err().to_string();
    assert_eq!(words(SchedulerConfig { prefill_tokens: 0, ..config }, known()), "prefill_tokens is 0; at least 1 is needed");
    let limits = Limits { kv_blocks: 0, ..limits() };
    assert_eq!(words(SchedulerConfig { limits, ..config }, known()), "kv_blocks is 0; at least 1 is needed");
    assert_eq!(words(config, AllowedIds::all(71)), "71 ids of a vocabulary of 71 are known; at least 1 of 70 is needed");
}
