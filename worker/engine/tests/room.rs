//! Who is let in, who waits behind whom, and who is set aside where KV blocks run out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod support;

use m1_engine::*;
use support::*;

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
    let ends: Vec<SequenceId> =
        out.iter().filter(|outcome| matches!(outcome, SequenceEvent::Finished { .. })).map(SequenceEvent::id).collect();
    assert_eq!(ends[0], first);
    assert!(ends.contains(&second) && ends.contains(&third));
    assert_eq!(scheduler.occupancy(), Occupancy { slots_total: 3, kv_blocks_total: 20, ..Occupancy::default() });
}

/// Three sequences that each come to need half of all blocks.
fn crowd(aside_bytes: u64) -> (Vec<SequenceEvent>, Vec<SequenceId>, usize, u32) {
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
            out.iter().filter(|outcome| matches!(outcome, SequenceEvent::Finished { .. })).map(SequenceEvent::id).collect();
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
    let ends: Vec<SequenceId> =
        out.iter().filter(|outcome| matches!(outcome, SequenceEvent::Finished { .. })).map(SequenceEvent::id).collect();
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
    let ends: Vec<SequenceId> =
        out.iter().filter(|outcome| matches!(outcome, SequenceEvent::Finished { .. })).map(SequenceEvent::id).collect();
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
        assert_eq!(out, [SequenceEvent::Progress { id: ids[2] }]);
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
    assert_eq!(out, [SequenceEvent::Progress { id: gone }]);
    assert_eq!(scheduler.routing().tokens, 2, "the worker did compute them");
    assert_eq!(scheduler.occupancy().running, 1, "the waiting one is in");
    out = drain(&mut scheduler, &mut device);
    assert_eq!(tokens_of(&out, next), greedy(&[3], 2));
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
