//! Checks of the threshold rule, the booking invariant and the refusals.

use super::*;
use crate::SlotId;
use proptest::prelude::*;

const SHAPE: RoutingShape = RoutingShape { layers: 3, experts: 4, top_k: 2 };

/// Rows with a threshold.
fn segment(start: usize, tokens: usize, threshold: f32) -> Segment {
    let (start, tokens) = (start as u32, tokens as u32);
    Segment { slot: SlotId(start), start, tokens, position: 0, prompt: tokens, fresh: 0, threshold }
}

fn routing(rows: &[(u16, u16, f32)]) -> LayerRouting {
    LayerRouting {
        tokens: rows.len(),
        top_k: 2,
        experts: rows.iter().flat_map(|row| [row.0, row.1]).collect(),
        weights: rows.iter().flat_map(|row| [row.2, 1.0 - row.2]).collect(),
    }
}

#[test]
fn the_threshold_keeps_a_sure_expert_alone() {
    let mut layer = routing(&[(0, 1, 0.8), (2, 3, 0.75), (3, 0, 0.74)]);
    apply_threshold(&mut layer, 0..3, 0.75);
    assert_eq!(layer.experts, [0, UNUSED, 2, UNUSED, 3, 0]);
    assert_eq!(layer.weights, [1.0, 0.0, 1.0, 0.0, 0.74, 1.0 - 0.74]);
}

#[test]
fn the_threshold_touches_its_rows_only() {
    let mut layer = routing(&[(0, 1, 0.9), (0, 1, 0.9), (0, 1, 0.9)]);
    apply_threshold(&mut layer, 1..2, 0.6);
    assert_eq!(layer.experts, [0, 1, 0, UNUSED, 0, 1]);
}

#[test]
fn a_threshold_of_one_is_off() {
    let mut layer = routing(&[(0, 1, 1.0)]);
    apply_threshold(&mut layer, 0..1, 1.0);
    assert_eq!(layer, routing(&[(0, 1, 1.0)]));
}

#[test]
fn a_lost_expert_leaves_its_weight_to_the_other() {
    let mut step = StepRouting::new(RoutingShape { layers: 1, ..SHAPE });
    step.begin(2);
    step.book(LayerId(0), &mut routing(&[(0, 1, 0.75), (1, 2, 0.6)]), &[]).unwrap();
    step.lose(LayerId(0), 0, ExpertId(0)).unwrap();
    assert_eq!(step.lose(LayerId(0), 0, ExpertId(0)).unwrap_err().reason(), "NotRouted");
    step.lose(LayerId(0), 1, ExpertId(1)).unwrap();
    step.lose(LayerId(0), 1, ExpertId(2)).unwrap();
    let mut counts = RoutingCounts::new(step.shape);
    step.count(0..2, &mut counts);
    assert_eq!((counts.executed, counts.skipped, counts.lost), (1, 0, 3));
    assert_eq!(counts.expert_lost, [1, 1, 1, 0]);
    assert_eq!(counts.expert_weight, [0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn refuses_what_does_not_fit_the_step() {
    let mut step = StepRouting::new(SHAPE);
    step.begin(1);
    let mut book = |layer, mut routing: LayerRouting| step.book(LayerId(layer), &mut routing, &[]).unwrap_err().to_string();
    assert_eq!(book(3, routing(&[(0, 1, 0.5)])), "layer is 3; the model has 3 layers");
    assert_eq!(book(0, routing(&[])), "layer 0: the routing's tokens is 0; the step needs 1");
    assert_eq!(book(1, routing(&[(0, 4, 0.5)])), "layer 1: the routing names expert 4; the model has 4 experts");
    assert_eq!(step.missing(), Some(0));
    assert!(step.lose(LayerId(0), 0, ExpertId(0)).is_err());
}

#[test]
fn counts_go_to_their_layer_and_expert() {
    let mut step = StepRouting::new(SHAPE);
    step.begin(2);
    for layer in 0..3u16 {
        let mut routed = routing(&[(layer, layer + 1, 0.75), (layer + 1, layer, 0.625)]);
        step.book(LayerId(layer), &mut routed, &[segment(0, 2, 0.7)]).unwrap();
    }
    let mut counts = RoutingCounts::new(SHAPE);
    step.count(0..2, &mut counts);
    // Row 0 keeps its first expert alone; row 1 keeps both.
    assert_eq!(counts.expert_tokens, [2, 1, 0, 0, 0, 2, 1, 0, 0, 0, 2, 1]);
    assert_eq!(counts.expert_skipped, [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
    assert_eq!(counts.expert_weight, [1.375, 0.625, 0.0, 0.0, 0.0, 1.375, 0.625, 0.0, 0.0, 0.0, 1.375, 0.625]);
    assert_eq!((counts.tokens, counts.executed, counts.skipped), (2, 9, 3));
}

proptest! {
    #[test]
    fn every_place_is_counted_once(
        rows in prop::collection::vec((0u16..4, 1u16..4, 0.5f32..1.0, prop::bool::ANY), 1..40),
        threshold in 0.51f32..=1.0,
        split in 0usize..40,
    ) {
        let split = split.min(rows.len());
        let mut step = StepRouting::new(SHAPE);
        step.begin(rows.len());
        for layer in 0..3u16 {
            let picks: Vec<_> = rows.iter().map(|r| ((r.0 + layer) % 4, (r.0 + layer + r.1) % 4, r.2)).collect();
            // Only rows from `split` on have the rule.
            step.book(LayerId(layer), &mut routing(&picks), &[segment(split, rows.len() - split, threshold)]).unwrap();
            for (row, pick) in picks.iter().enumerate().filter(|&(row, _)| rows[row].3) {
                step.lose(LayerId(layer), row as u32, ExpertId(pick.0)).unwrap();
            }
        }
        let mut parts = [RoutingCounts::new(SHAPE), RoutingCounts::new(SHAPE), RoutingCounts::new(SHAPE)];
        step.count(0..split, &mut parts[0]);
        step.count(split..rows.len(), &mut parts[1]);
        step.count(0..rows.len(), &mut parts[2]);
        for counts in &parts {
            prop_assert_eq!(counts.executed + counts.skipped + counts.lost, counts.tokens * 2 * 3);
            prop_assert_eq!(counts.executed, counts.expert_tokens.iter().sum::<u64>());
            prop_assert_eq!(counts.skipped, counts.expert_skipped.iter().sum::<u64>());
            prop_assert_eq!(counts.lost, counts.expert_lost.iter().sum::<u64>());
        }
        prop_assert_eq!(parts[0].skipped, 0);
        prop_assert_eq!(parts[0].lost + parts[1].lost, parts[2].lost);
        let sure = rows[split..].iter().filter(|r| threshold < 1.0 && r.2 >= threshold).count() as u64;
        prop_assert_eq!(parts[1].skipped, sure * 3);
    }
}
