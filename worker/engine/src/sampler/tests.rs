//! Checks of the sampler against plain formulas.

use std::sync::Arc;

use super::*;
use proptest::prelude::*;

fn choose(logits: &[f32], temperature: f32, top_p: f32, position: u32) -> u32 {
    let sampling = Sampling { temperature, top_p, seed: 7 };
    Sampler::default().choose(logits, &sampling, position, &AllowedIds::all(logits.len() as u32)).unwrap()
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], 0.0, 1.0, 0), 1);
}

#[test]
fn unknown_ids_are_never_drawn() {
    let logits = [9.0, 1.0, 8.0, 0.5];
    let (mut sampler, known) = (Sampler::default(), AllowedIds::from_ids(4, [1, 3]));
    for position in 0..200 {
        for (temperature, top_p) in [(0.0, 1.0), (5.0, 1.0), (5.0, 0.9)] {
            let id = sampler.choose(&logits, &Sampling { temperature, top_p, seed: 1 }, position, &known).unwrap();
            assert!(id == 1 || id == 3);
        }
    }
    assert_eq!(sampler.choose(&logits, &Sampling::GREEDY, 0, &AllowedIds::all(4)), Ok(0));
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [[f32::NAN, 1.0], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]] {
        let error = Sampler::default().choose(&bad, &Sampling::GREEDY, 5, &AllowedIds::all(2)).unwrap_err();
        assert_eq!(error.reason(), "NonFiniteLogits");
        assert_eq!(error.to_string(), "the logits at position 5 are not finite");
    }
    assert_eq!(choose(&[f32::NEG_INFINITY, 0.0], 1.0, 1.0, 3), 1);
}

#[test]
fn a_tiny_temperature_is_greedy() {
    assert_eq!(choose(&[1.0, 3.0, 2.999], f32::MIN_POSITIVE / 4.0, 1.0, 9), 1);
}

#[test]
fn a_tiny_nucleus_is_greedy() {
    for position in 0..100 {
        assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], 1.0, 1e-6, position), 1);
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let shares = [0.5f32, 0.25, 0.15, 0.1];
    let logits = shares.map(f32::ln);
    let draws = 20_000;
    for (top_p, expected) in [(1.0, [0.5, 0.25, 0.15, 0.1]), (0.7, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0])] {
        let mut seen = [0u32; 4];
        (0..draws).for_each(|position| seen[choose(&logits, 1.0, top_p, position) as usize] += 1);
        for (count, share) in seen.iter().zip(expected) {
            assert!((f64::from(*count) / f64::from(draws) - share).abs() < 0.015, "{seen:?} at top_p {top_p}");
        }
    }
}

#[test]
fn neighbouring_keys_are_independent() {
    let mean = |of: &dyn Fn(u64) -> f64| (0..4096).map(of).sum::<f64>() / 4096.0;
    assert!((mean(&|n| uniform(n, 0)) - 0.5).abs() < 0.02);
    assert!((mean(&|n| uniform(0, n as u32)) - 0.5).abs() < 0.02);
    let covariance = mean(&|n| (uniform(n, 3) - 0.5) * (uniform(n, 4) - 0.5));
    assert!(covariance.abs() < 0.005, "{covariance}");
}

#[test]
fn the_draw_of_a_key_never_changes() {
    // A release that changed these would break sequences resumed across it.
    assert_eq!((uniform(0, 0) * 1e6) as u32, 14_033);
    assert_eq!((uniform(7, 41) * 1e6) as u32, 644_062);
}

#[test]
fn a_flat_distribution_needs_a_wider_nucleus() {
    let logits = vec![0.0; 5000];
    let drawn: std::collections::BTreeSet<u32> = (0..3000).map(|position| choose(&logits, 1.0, 0.5, position)).collect();
    // Among equals the nucleus keeps the lowest ids.
    assert!(drawn.iter().all(|&id| id < 2501) && drawn.len() > 1500, "{}", drawn.len());
}

#[test]
fn logprobs_are_a_log_softmax_over_the_allowed() {
    let allowed = AllowedIds::from_ids(4, [0, 1, 3]);
    let logits = [1.0f32, 2.0, 50.0, 2.0];
    let found = Sampler::default().logprobs(&logits, 0, 2, &allowed).unwrap();
    let log_sum = (1.0f64.exp() + 2.0 * 2.0f64.exp()).ln();
    assert!((f64::from(found.logprob) - (1.0 - log_sum)).abs() < 1e-6);
    assert_eq!(found.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3]);
    assert!((f64::from(found.top[0].1) - (2.0 - log_sum)).abs() < 1e-6);
    assert_eq!(Sampler::default().logprobs(&logits, 0, 0, &allowed).unwrap().top, []);
}

#[test]
fn biases_move_what_is_drawn_and_forced_ids_are_not_drawn() {
    let draw = |bias: &[(u32, f32)], forced| Draw {
        row: 0,
        position: 3,
        sampling: Sampling::GREEDY,
        allowed: Arc::new(AllowedIds::all(4)),
        bias: bias.to_vec(),
        forced,
        logprobs: 2,
    };
    let logits = [1.0f32, 2.0, 3.0, 2.5];
    let mut sampler = Sampler::default();
    let mut drawn = |bias: &[(u32, f32)], forced| sampler.draw(&logits, &draw(bias, forced));
    assert_eq!(drawn(&[], None).id, Ok(2));
    let pushed = drawn(&[(2, -1.0), (0, 9.0), (7, 99.0)], None);
    assert_eq!((pushed.id, pushed.logprobs.unwrap().top[0].0), (Ok(0), 0));
    let forced = drawn(&[], Some(3));
    assert_eq!((forced.id, forced.logprobs.unwrap().top[0].0), (Ok(3), 2));
    assert_eq!(drawn(&[], None).id, Ok(2), "a bias is gone with its draw");
}

proptest! {
    #[test]
    fn top_logprobs_are_the_sorted_head(logits in prop::collection::vec(-5i8..5, 1..200), top in 0usize..25) {
        let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
        let found = Sampler::default().logprobs(&logits, 0, top, &AllowedIds::all(logits.len() as u32)).unwrap();
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        order.truncate(top);
        prop_assert_eq!(found.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), order);
    }

    /// Whatever is drawn is what going through all ids, sorted, would have drawn.
    #[test]
    fn a_draw_is_that_of_the_sorted_ids(
        logits in prop::collection::vec(prop_oneof![8 => -30f32..30.0, 1 => Just(3.0f32), 1 => Just(f32::NEG_INFINITY)], 1..3000),
        (temperature, top_p) in (0.05f32..3.0, prop_oneof![0.001f32..1.0, Just(1.0f32)]),
        forbidden in prop::collection::btree_set(0u32..3000, 0..20),
        seed: u64,
    ) {
        let vocab = logits.len() as u32;
        let allowed = AllowedIds::from_ids(vocab, (0..vocab).filter(|id| !forbidden.contains(id)));
        let peak = (0..vocab).filter(|id| allowed.contains(*id)).map(|id| logits[id as usize]).fold(f32::NEG_INFINITY, f32::max);
        let sampling = Sampling { temperature, top_p, seed };
        let drawn = Sampler::default().choose(&logits, &sampling, 5, &allowed);
        if peak == f32::NEG_INFINITY {
            prop_assert!(drawn.is_err());
            return Ok(());
        }
        let likelihood = |id: u32| f64::from((logits[id as usize] - peak) / temperature).exp();
        let mut order: Vec<u32> = (0..vocab).filter(|id| allowed.contains(*id)).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        let total: f64 = order.iter().map(|id| likelihood(*id)).sum();
        // Both sums may be off by a millionth: where that decides, two answers are right.
        let nucleus = |slack: f64| {
            let mut sum = 0.0;
            order.iter().map(|id| { sum += likelihood(*id); sum }).find(|sum| top_p < 1.0 && *sum >= (f64::from(top_p) + slack) * total).unwrap_or(total)
        };
        let pick = |slack: f64| {
            let (mut sum, target) = (0.0, uniform(seed, 5) * nucleus(slack) + slack * total);
            order.iter().find(|id| { sum += likelihood(**id); sum > target }).or(order.last()).copied()
        };
        let right = [-1e-5, -1e-6, 0.0, 1e-6, 1e-5].map(pick);
        prop_assert!(right.contains(&drawn.ok()), "{:?} is none of {:?}", drawn, right);
    }
}
