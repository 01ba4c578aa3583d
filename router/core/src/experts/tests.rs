//! The ledger of experts: counts that add up, balance, utilization.
use super::*;
use crate::rng::Rng;

const SHAPE: Geometry = Geometry { layers: 3, experts: 4, top_k: 2 };

/// Counts of `tokens` tokens thrown on random experts, some skipped, some lost.
fn random(seed: u64, tokens: u32) -> Counts {
    let mut rng = Rng::new(seed);
    let zero = vec![0u32; SHAPE.pairs()];
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
fn mean_weight_is_the_sum_over_the_tokens() {
    let counts = random(3, 40);
    for layer in 0..SHAPE.layers {
        assert_eq!(counts.mean_weight(layer), vec![0.25; SHAPE.experts]);
    }
}

#[test]
fn balancedness_is_mean_over_max_of_the_pods() {
    let mut ledger = Ledger::new(Geometry { layers: 2, experts: 4, top_k: 1 });
    assert_eq!(ledger.balancedness(2), [1.0, 1.0]);
    ledger.executed = vec![3, 1, 0, 0, 1, 1, 1, 1];
    assert_eq!(ledger.balancedness(2), [0.5, 1.0]);
    assert_eq!(ledger.balancedness(1), [1.0, 1.0]);
}

#[test]
fn linear_ranges_cover_every_expert_once() {
    let held = |pods: usize| (0..32).map(|expert| holder(expert, 32, pods)).collect::<Vec<_>>();
    assert_eq!(held(2), [vec![0; 16], vec![1; 16]].concat());
    assert_eq!(held(3), [vec![0; 11], vec![1; 11], vec![2; 10]].concat());
}
