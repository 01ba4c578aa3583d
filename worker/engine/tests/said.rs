//! What text means while a sequence is generated, and a sequence that goes on from what an earlier attempt said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod support;

use m1_engine::*;
use support::*;

/// One sequence run alone.
#[derive(Debug, Default, PartialEq)]
struct Run {
    said: Vec<u32>,
    forced: Vec<u32>,
    finish: Option<Finish>,
    usage: Usage,
}

/// Runs a request; `open` tells from all that was said whether the reasoning is open, `opened` whether it was before that;
/// `stop` whether a stop text is complete.
fn run(request: &SequenceRequest, opened: bool, open: impl Fn(&[u32]) -> bool, stop: impl Fn(&[u32]) -> bool) -> Run {
    let (mut scheduler, mut device) = (scheduler(limits(), 4, 8), Double::new(limits()));
    let mut said = Vec::new();
    let mut hear = |token: u32| {
        said.push(token);
        Heard { stop: stop(&said), reasoning_open: open(&said) }
    };
    let spec = SequenceSpec::heard(request.clone(), &limits(), opened, &mut hear).unwrap();
    scheduler.submit(spec).unwrap();
    let mut run = Run::default();
    while let Some((_, out)) = turn_heard(&mut scheduler, &mut device, &mut |_, token| hear(token)) {
        for outcome in out {
            assert!(run.finish.is_none(), "nothing comes after the end");
            match outcome {
                SequenceEvent::Token { token, forced, .. } => {
                    run.said.push(token);
                    run.forced.extend(forced.then_some(token));
                }
                SequenceEvent::Finished { finish, usage, .. } => (run.finish, run.usage) = (Some(finish), usage),
                SequenceEvent::Progress { .. } => {}
                SequenceEvent::RawLogits { .. } => panic!("not asked for"),
            }
        }
    }
    assert!(scheduler.is_idle());
    run
}

fn never(_: &[u32]) -> bool {
    false
}

fn thinking(tokens: u32, close_ids: &[u32]) -> Option<ThinkingBudget> {
    Some(ThinkingBudget { tokens, close_ids: close_ids.to_vec() })
}

#[test]
fn the_thinking_budget_closes_the_reasoning() {
    for budget in [0u32, 1, 4] {
        let request = SequenceRequest { thinking: thinking(budget, &[65, 66]), ..SequenceRequest::greedy(vec![1, 2], 12) };
        // The reasoning begins after the third output and ends with its closing text.
        let run = run(&request, false, |said| said.len() >= 3 && !said.contains(&66), never);
        assert_eq!(run.forced, [65, 66]);
        let at = 3 + budget as usize;
        assert_eq!(run.said[..at], greedy(&[1, 2], at));
        assert_eq!(run.said[at..at + 2], [65, 66]);
        let before = [&[1, 2], &run.said[..at + 2]].concat();
        assert_eq!(run.said[at + 2..], greedy(&before, 12 - at - 2), "it goes on after what was fed");
        assert_eq!(run.usage, Usage { prompt_tokens: 2, output_tokens: 12, reasoning_tokens: budget + 2 });
    }
}

#[test]
fn closing_goes_on_to_its_end_once_begun() {
    let request = SequenceRequest { thinking: thinking(2, &[65, 66, 67]), ..SequenceRequest::greedy(vec![1, 2], 8) };
    // The text closes after the first close id already; at the sixth output it opens anew.
    let said = run(&request, true, |said| !said.contains(&65) || said.len() == 6, never).said;
    assert_eq!(said[2..5], [65, 66, 67]);
    assert!(said[5] < KNOWN);
    assert_eq!(said[6..], [65, 66], "the budget is spent: reasoning anew is closed at once");
}

#[test]
fn reasoning_that_closes_in_time_is_left_alone() {
    let request = SequenceRequest { thinking: thinking(4, &[65]), ..SequenceRequest::greedy(vec![1, 2], 12) };
    assert_eq!(run(&request, true, |said| said.len() < 4, never).said, greedy(&[1, 2], 12));
}

#[test]
fn a_stop_text_ends_it_at_every_length_also_at_the_last_token_and_with_a_stop_id() {
    let said = greedy(&[5, 6], 9);
    for length in 1..=said.len() {
        for at in 1..=length {
            for with_stop_id in [false, true] {
                let mut request = SequenceRequest::greedy(vec![5, 6], length as u32);
                request.stop_ids =
                    if with_stop_id && !said[..at - 1].contains(&said[at - 1]) { vec![said[at - 1]] } else { vec![] };
                let run = run(&request, false, never, |heard| heard.len() == at);
                assert_eq!((run.said.as_slice(), run.finish), (&said[..at], Some(Finish::Stop)), "token {at} of {length}");
            }
        }
    }
}

/// From every place on, a sequence goes on as it would have.
#[test]
fn a_resumed_sequence_goes_on_exactly_from_every_place() {
    let close = |said: &[u32]| said.len() >= 2 && !said.contains(&66);
    let stops = |said: &[u32]| said.len() == 17;
    for sampling in [Sampling::GREEDY, Sampling { temperature: 1.0, top_p: 0.9, seed: 11 }] {
        for budget in [None, Some(0), Some(3), Some(30)] {
            let thinking = budget.and_then(|tokens| thinking(tokens, &[65, 66]));
            let request = SequenceRequest { sampling, thinking, ..SequenceRequest::greedy(vec![4, 5, 6], 20) };
            let whole = run(&request, false, close, stops);
            assert_eq!((whole.said.len(), whole.finish.clone()), (17, Some(Finish::Stop)));
            for k in 0..whole.said.len() {
                for prefill_chunk in [0, 2] {
                    let resumed = SequenceRequest { said: whole.said[..k].to_vec(), prefill_chunk, ..request.clone() };
                    let rest = run(&resumed, false, close, stops);
                    assert_eq!(rest.said, whole.said[k..], "from {k} of {budget:?}");
                    assert_eq!((&rest.finish, rest.usage), (&whole.finish, whole.usage));
                }
            }
        }
    }
}

#[test]
fn what_was_said_counts_for_the_length() {
    let request = SequenceRequest { said: greedy(&[4, 5], 6), ..SequenceRequest::greedy(vec![4, 5], 7) };
    let run = run(&request, false, never, never);
    assert_eq!((run.said, run.finish), (greedy(&[4, 5], 7)[6..].to_vec(), Some(Finish::Length)));
    assert_eq!(run.usage, Usage { prompt_tokens: 2, output_tokens: 7, reasoning_tokens: 0 });
}
