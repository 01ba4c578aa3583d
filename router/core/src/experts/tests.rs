//! The ledger of experts: counts that add up, balance, utilization.
use super::*;
use crate::rng::Rng;

const SHAPE: Geometry = Geometry { layers: 3, experts: 4, top_k: 2 };

/// Counts of `tokens` tokens thrown on random experts, some skipped, some lost.
fn random(seed: u64, tokens: u32) -> Counts {
    let mut rng = Rng::new(seed);
    let zero = vec![0u64; SHAPE.pairs()];
    let mut counts = Counts {
        geometry: SHAPE,
        tokens: u64::from(tokens),
        executed: 0,
        skipped: 0,
        lost: 0,
        expert_tokens: zero.clone(),
        expert_weight: vec![0.0; SHAPE.pairs()],
        expert_skipped: zero.clone(),
        expert_lost: zero,
    };
    for layer in 0..SHAPE.layers {
        for _ in 0..tokens as usize * SHAPE.top_k {
            let pair = layer * SHAPE.experts + rng.below(SHAPE.experts);
            match rng.below(10) {
                0 => (counts.expert_skipped[pair] += 1, counts.skipped += 1),
                1 => (counts.expert_lost[pair] += 1, counts.lost += 1),
                _ => (counts.expert_tokens[pair] += 1, counts.executed += 1),
            };
            counts.expert_weight[pair] = counts.expert_tokens[pair] as f32 / 4.0;
        }
    }
    counts
}

#[test]
fn counts_add_up_and_are_booked_whole() {
    let mut ledger = Ledger::new(SHAPE);
    let mut executed = 0;
    for seed in 0..50 {
        let counts = random(seed, 20);
        assert_eq!(counts.executed + counts.skipped + counts.lost, counts.tokens * 2 * 3);
        executed += counts.executed;
        ledger.book(&counts).unwrap();
    }
    assert_eq!(ledger.executed.iter().sum::<u64>(), executed);
    let mean = ledger.utilization().sum::<f64>() / SHAPE.pairs() as f64;
    assert!((mean - executed as f64 / (50.0 * 20.0 * 6.0)).abs() < 1e-9);
}

#[test]
fn counts_that_do_not_add_up_book_nothing() {
    let good = random(1, 5);
    let mut cases = [good.clone(), good.clone(), good.clone(), good];
    cases[0].tokens += 1;
    cases[1].expert_lost[2] += 1;
    cases[2].expert_weight.pop();
    cases[3].geometry.layers = 2;
    let reasons = ["RoutingSum", "RoutingSum", "RoutingShape", "RoutingGeometry"];
    let mut ledger = Ledger::new(SHAPE);
    for (case, reason) in cases.iter().zip(reasons) {
        assert_eq!(ledger.book(case).unwrap_err().reason(), reason);
    }
    assert_eq!(ledger.executed.iter().sum::<u64>(), 0);
    let text = cases[0].check().unwrap_err().to_string();
    assert_eq!(text, "routing counts: executed, skipped and lost of layer 0 add up to 10, not to 12");
}

#[test]
fn weights_may_be_missing_but_not_short() {
    let without = Counts { expert_weight: Vec::new(), ..random(1, 5) };
    assert_eq!(without.check(), Ok(()));
    assert!(without.mean_weight(0).is_empty());
    Ledger::new(SHAPE).book(&without).unwrap();
}

#[test]
fn mean_weight_is_the_sum_over_the_tokens() {
    let counts = random(3, 40);
    for layer in 0..SHAPE.layers {
        assert_eq!(counts.mean_weight(layer), vec![0.25; SHAPE.experts]);
    }
}

/// Sets of a model of 2 x 4, as objects write them: one hex digit a layer.
fn sets<const N: usize>(texts: [&str; N]) -> [Arc<ExpertSet>; N] {
    texts.map(|text| Arc::new(ExpertSet::from_hex(2, 4, text).unwrap()))
}

fn ledger(executed: [u64; 8]) -> Ledger {
    let mut ledger = Ledger::new(Geometry { layers: 2, experts: 4, top_k: 1 });
    ledger.executed = executed.to_vec();
    ledger
}

#[test]
fn balancedness_is_mean_over_max_of_the_pods() {
    let shape = Geometry { layers: 2, experts: 4, top_k: 1 };
    assert_eq!(ledger([0; 8]).balancedness(&linear(shape, 2)), [1.0, 1.0]);
    let ledger = ledger([3, 1, 0, 0, 1, 1, 1, 1]);
    assert_eq!(ledger.balancedness(&linear(shape, 2)), [0.5, 1.0]);
    assert_eq!(ledger.balancedness(&linear(shape, 1)), [1.0, 1.0]);
    assert_eq!(ledger.balancedness(&[]), [1.0, 1.0]);
}

#[test]
fn balancedness_goes_by_what_is_held() {
    let ledger = ledger([3, 1, 0, 0, 1, 1, 1, 1]);
    // Expert 0 on one pod, all others on the other one.
    assert_eq!(ledger.balancedness(&sets(["88", "77"])), [2.0 / 3.0, 2.0 / 3.0]);
    // Expert 0 on both: its tokens count half for each.
    assert_eq!(ledger.balancedness(&sets(["88", "ff"])), [2.0 / 2.5, 2.0 / 3.5]);
    // Nobody holds expert 0 of layer 0 any more.
    assert_eq!(ledger.balancedness(&sets(["4c", "33"])), [0.5, 1.0]);
}

#[test]
fn copies_are_counted_by_pair() {
    let shape = Geometry { layers: 2, experts: 4, top_k: 1 };
    assert_eq!(copies(shape, &sets(["c0", "4f"])), [1, 2, 0, 0, 1, 1, 1, 1]);
    let other = Geometry { layers: 1, experts: 2, top_k: 1 };
    assert_eq!(copies(other, &sets(["ff", "ff"])), [2, 2], "what the model lacks is left out");
}

#[test]
fn linear_sets_cover_every_expert_once() {
    let shape = Geometry { layers: 3, experts: 32, top_k: 2 };
    for pods in 1..=5 {
        assert_eq!(copies(shape, &linear(shape, pods)), vec![1; shape.pairs()]);
    }
    let sizes: Vec<usize> = linear(shape, 3).iter().map(|set| set.len() / 3).collect();
    assert_eq!(sizes, [11, 11, 10]);
}
