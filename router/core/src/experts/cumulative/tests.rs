//! What is booked adds up to the last numbers of each incarnation, whatever order workers restart, connect anew and repeat themselves in.
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::experts::{Geometry, Ledger};

const SHAPE: Geometry = Geometry { layers: 2, experts: 3, top_k: 1 };

fn address(name: &str) -> Arc<str> {
    name.into()
}

/// Counts of tokens that all went to one expert, of which `skipped` were spared it.
fn counts(expert: usize, tokens: u64, skipped: u64) -> Counts {
    let per_layer = |n: u64| {
        let mut array = vec![0; SHAPE.pairs()];
        (0..SHAPE.layers).for_each(|layer| array[layer * SHAPE.experts + expert] = n);
        array
    };
    let layers = SHAPE.layers as u64;
    Counts {
        geometry: SHAPE,
        tokens,
        executed: (tokens - skipped) * layers,
        skipped: skipped * layers,
        lost: 0,
        expert_tokens: per_layer(tokens - skipped),
        expert_weight: Vec::new(),
        expert_skipped: per_layer(skipped),
        expert_lost: vec![0; SHAPE.pairs()],
    }
}

/// What both counted.
fn plus(a: &Counts, b: &Counts) -> Counts {
    let sum = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
    Counts {
        geometry: SHAPE,
        tokens: a.tokens + b.tokens,
        executed: a.executed + b.executed,
        skipped: a.skipped + b.skipped,
        lost: a.lost + b.lost,
        expert_tokens: sum(&a.expert_tokens, &b.expert_tokens),
        expert_weight: Vec::new(),
        expert_skipped: sum(&a.expert_skipped, &b.expert_skipped),
        expert_lost: sum(&a.expert_lost, &b.expert_lost),
    }
}

fn zero() -> Counts {
    counts(0, 0, 0)
}

#[test]
fn only_what_is_new_is_given() {
    let (mut told, a) = (Cumulative::new(), address("a:1"));
    let first = counts(1, 10, 2);
    assert_eq!(told.take(&a, 7, &first).unwrap(), Some(first.clone()));
    assert_eq!(told.take(&a, 7, &first).unwrap(), None, "said again after it connected anew");
    let more = counts(2, 5, 0);
    assert_eq!(told.take(&a, 7, &plus(&first, &more)).unwrap(), Some(more));
    assert_eq!((told.tokens("a:1"), told.tokens("b:1")), (15, 0));
    let restarted = counts(0, 3, 3);
    assert_eq!(told.take(&a, 8, &restarted).unwrap(), Some(restarted));
    assert_eq!(told.tokens("a:1"), 3);
    let elsewhere = counts(0, 20, 0);
    assert_eq!(told.take(&address("b:1"), 7, &elsewhere).unwrap(), Some(elsewhere));
}

#[test]
fn numbers_that_went_backwards_begin_again_from_nothing() {
    let (mut told, a) = (Cumulative::new(), address("a:1"));
    told.take(&a, 7, &counts(1, 10, 0)).unwrap();
    let anew = counts(1, 4, 0);
    assert_eq!(told.take(&a, 7, &anew).unwrap(), Some(anew.clone()));
    // More tokens, and yet not the same count going on: one expert has fewer.
    let other = counts(2, 6, 0);
    assert_eq!(told.take(&a, 7, &other).unwrap(), Some(other));
}

#[test]
fn the_last_word_of_a_process_may_come_after_the_first_of_the_next() {
    let (mut told, a) = (Cumulative::new(), address("a:1"));
    told.take(&a, 7, &counts(1, 10, 0)).unwrap();
    told.take(&a, 8, &counts(1, 2, 0)).unwrap();
    assert_eq!(told.take(&a, 7, &counts(1, 11, 0)).unwrap(), Some(counts(1, 1, 0)));
    assert_eq!(told.take(&a, 8, &counts(1, 5, 0)).unwrap(), Some(counts(1, 3, 0)));
}

#[test]
fn numbers_that_do_not_add_up_are_as_if_not_said() {
    let (mut told, a) = (Cumulative::new(), address("a:1"));
    told.take(&a, 7, &counts(1, 10, 0)).unwrap();
    let broken = Counts { tokens: 12, ..counts(1, 11, 0) };
    assert_eq!(told.take(&a, 7, &broken).unwrap_err().reason(), "RoutingSum");
    let short = Counts { expert_lost: vec![0], ..counts(1, 11, 0) };
    assert_eq!(told.take(&a, 7, &short).unwrap_err().reason(), "RoutingShape");
    assert_eq!(told.tokens("a:1"), 10);
    assert_eq!(told.take(&a, 7, &counts(1, 12, 0)).unwrap(), Some(counts(1, 2, 0)));
}

#[test]
fn garbage_overflows_nothing() {
    let most = u64::MAX;
    let huge = Counts {
        geometry: Geometry { layers: 1, experts: 2, top_k: 2 },
        tokens: most,
        executed: most,
        skipped: most,
        lost: most,
        expert_tokens: vec![most; 2],
        expert_weight: Vec::new(),
        expert_skipped: vec![most; 2],
        expert_lost: vec![most; 2],
    };
    let mut ledger = Ledger::new(huge.geometry);
    for _ in 0..2 {
        // Whether it adds up is of no matter, as long as it says so or books it.
        drop(Cumulative::new().take(&address("a:1"), 1, &huge));
        drop(ledger.book(&huge));
    }
    assert!(ledger.utilization().all(f64::is_finite));
}

#[test]
fn what_is_remembered_is_bounded_and_the_longest_silent_go_first() {
    let (mut told, keeps_talking) = (Cumulative::new(), address("a:1"));
    for n in 0..2 * ADDRESSES as u64 {
        told.take(&keeps_talking, 1, &counts(0, n + 1, 0)).unwrap();
        told.take(&address(&format!("w{n}:1")), n, &counts(0, 1, 0)).unwrap();
    }
    assert_eq!((told.workers.len(), told.tokens("a:1"), told.tokens("w0:1")), (ADDRESSES, 2 * ADDRESSES as u64, 0));
    for incarnation in 0..20 {
        told.take(&keeps_talking, 100 + incarnation, &counts(0, 1, 0)).unwrap();
    }
    assert_eq!(told.workers[&keeps_talking].by.len(), INCARNATIONS);
}

/// What a worker of three does.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// It serves tokens with one expert.
    Serve(usize, usize, u64),
    /// It says what it has counted; twice, where a stream was made anew.
    Say(usize, bool),
    /// It restarts. Its last word comes only now, after the new process has spoken, or never.
    Restart(usize, bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0usize..3, 0usize..3, 1u64..9).prop_map(|(worker, expert, tokens)| Act::Serve(worker, expert, tokens)),
        4 => (0usize..3, any::<bool>()).prop_map(|(worker, twice)| Act::Say(worker, twice)),
        1 => (0usize..3, any::<bool>()).prop_map(|(worker, late)| Act::Restart(worker, late)),
    ];
    prop::collection::vec(act, 1..150)
}

proptest! {
    #[test]
    fn what_is_booked_is_the_last_word_of_each_incarnation(acts in acts()) {
        let mut told = Cumulative::new();
        let mut ledger = Ledger::new(SHAPE);
        let mut counting = vec![(1u64, zero()); 3];
        let mut last_words: BTreeMap<(usize, u64), Counts> = BTreeMap::new();
        let mut say = |worker: usize, incarnation: u64, counts: &Counts| {
            let new = told.take(&address(&format!("w{worker}:1")), incarnation, counts).unwrap();
            if let Some(new) = new {
                ledger.book(&new).unwrap();
            }
            last_words.insert((worker, incarnation), counts.clone());
        };
        for act in acts {
            match act {
                Act::Serve(worker, expert, tokens) => {
                    let (_, counted) = &mut counting[worker];
                    *counted = plus(counted, &counts(expert, tokens, tokens / 2));
                }
                Act::Say(worker, twice) => {
                    let (incarnation, counted) = &counting[worker];
                    (0..=usize::from(twice)).for_each(|_| say(worker, *incarnation, counted));
                }
                Act::Restart(worker, late) => {
                    let (incarnation, counted) = std::mem::replace(&mut counting[worker], (0, zero()));
                    // A clock that was set back gives an earlier start.
                    counting[worker] = (incarnation * 7919 % 104_729, zero());
                    say(worker, counting[worker].0, &zero());
                    if late {
                        say(worker, incarnation, &counted);
                    }
                }
            }
        }
        let wanted = last_words.values().fold(zero(), |sum, counts| plus(&sum, counts));
        prop_assert_eq!(ledger.tokens, wanted.tokens);
        prop_assert_eq!(ledger.executed, wanted.expert_tokens);
    }
}
