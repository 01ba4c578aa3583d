//! The scheduler's rules, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod support;

use m1_engine::*;
use support::*;

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
            SequenceEvent::Progress { .. } => 'p',
            SequenceEvent::Token { .. } => 't',
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
                SequenceEvent::RawLogits { position, rows, .. } => {
                    assert_eq!(position as usize, positions);
                    for row in rows {
                        positions += 1;
                        let found = &results.logits[row * VOCAB as usize..(row + 1) * VOCAB as usize];
                        assert_eq!(found, logits_after(&seen[..positions]));
                    }
                }
                SequenceEvent::Token { token, .. } => {
                    let logits = logits_after(&seen);
                    assert!(
                        logits.iter().enumerate().all(|(id, &logit)| logit < logits[token as usize]
                            || (logit == logits[token as usize] && id >= token as usize))
                    );
                    seen.push(token);
                }
                SequenceEvent::Progress { .. } => {}
                SequenceEvent::Finished { .. } => assert_eq!(positions, prompt.len() + 2),
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
    let SequenceEvent::Token { token, logprobs: Some(logprobs), .. } = &out[1] else { panic!("{out:?}") };
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
