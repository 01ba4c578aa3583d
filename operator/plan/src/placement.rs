//! Which pod holds which expert of which layer, before any load is known.
//!
//! Linear: pod p gets the p-th contiguous range (the first ranges are one longer where pods do not divide the experts);
//! copy k of a range lies on the k-th next pod. Balanced: the first copy as in linear; the further copies of one pod's
//! range are dealt out over all other pods, so that its loss loads them alike. Copies of an expert never share a pod.

use std::ops::Range;

use m1_arch::{ExpertId, ExpertSet, LayerId, linear_share};
use m1_operator_api::Placement;

/// What each of `pods` pods holds. Needs `1 <= copies <= pods <= experts`.
pub fn place(layers: usize, experts: usize, pods: usize, copies: usize, placement: Placement) -> Vec<ExpertSet> {
    let mut holds = vec![ExpertSet::empty(layers, experts); pods];
    for owner in 0..pods {
        for (index, expert) in linear_share(experts, pods, owner).enumerate() {
            for layer in 0..layers {
                for copy in 0..copies.min(pods) {
                    let pod = (owner + offset(placement, pods, copy, index + layer)) % pods;
                    holds[pod].insert(LayerId(layer as u16), ExpertId(expert as u16));
                }
            }
        }
    }
    holds
}

/// How many pods behind its owner a copy lies: 0 for the first copy, then different values from 1 to pods - 1. `turn`
/// shifts them from expert to expert and from layer to layer.
fn offset(placement: Placement, pods: usize, copy: usize, turn: usize) -> usize {
    match (placement, copy) {
        (_, 0) => 0,
        (Placement::Linear, copy) => copy,
        (Placement::Balanced, copy) => 1 + (turn + copy - 1) % (pods - 1),
    }
}

/// Whether every pair is still held after the loss of any one pod.
pub(crate) fn survives_any_loss(holds: &[ExpertSet]) -> bool {
    (0..holds.len()).all(|lost| {
        let others = holds.iter().enumerate().filter(|(pod, _)| *pod != lost).map(|(_, set)| set);
        let left = others.fold(None, |sum: Option<ExpertSet>, set| Some(sum.map_or_else(|| set.clone(), |sum| sum.union(set))));
        left.is_some_and(|left| left.is_full())
    })
}

/// What a pod holds, for people: `experts 0-15 of every layer`, or the count per layer where layers differ.
pub fn range_words(holds: &ExpertSet) -> String {
    let of = |layer: usize| -> Vec<usize> { holds.experts_of(LayerId(layer as u16)).map(ExpertId::index).collect() };
    let first = of(0);
    if (1..holds.layers()).any(|layer| of(layer) != first) {
        return format!("{} (layer, expert) pairs, other experts in every layer", holds.len());
    }
    let ranges: Vec<String> = runs(&first)
        .into_iter()
        .map(|run| if run.len() == 1 { run.start.to_string() } else { format!("{}-{}", run.start, run.end - 1) })
        .collect();
    match ranges.is_empty() {
        true => "no expert".to_owned(),
        false => format!("experts {} of every layer", ranges.join(", ")),
    }
}

/// Ascending numbers as runs without gaps.
fn runs(numbers: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == *number => run.end += 1,
            _ => runs.push(*number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(holds: &[ExpertSet], layer: u16, expert: u16) -> usize {
        holds.iter().filter(|set| set.contains(LayerId(layer), ExpertId(expert))).count()
    }

    #[test]
    fn every_expert_has_its_copies_on_different_pods() {
        for placement in [Placement::Linear, Placement::Balanced] {
            for (experts, pods, copies) in
                [(32, 1, 1), (32, 2, 1), (32, 3, 2), (32, 4, 2), (32, 5, 5), (7, 3, 3), (32, 32, 2), (1, 1, 1)]
            {
                let holds = place(3, experts, pods, copies, placement);
                for expert in 0..experts as u16 {
                    for layer in 0..3 {
                        assert_eq!(holders(&holds, layer, expert), copies, "{placement} {experts} {pods} {copies}");
                    }
                }
                assert!(holds.iter().all(|set| !set.is_empty()));
                assert_eq!(survives_any_loss(&holds), copies > 1, "{placement} {experts} {pods} {copies}");
            }
        }
    }

    #[test]
    fn the_remainder_goes_to_the_first_pods() {
        let holds = place(2, 32, 3, 1, Placement::Linear);
        let words: Vec<String> = holds.iter().map(range_words).collect();
        assert_eq!(words, ["experts 0-10 of every layer", "experts 11-21 of every layer", "experts 22-31 of every layer"]);
    }

    #[test]
    fn linear_copies_lie_on_the_next_pod() {
        let holds = place(2, 8, 4, 2, Placement::Linear);
        assert_eq!(range_words(&holds[0]), "experts 0-1, 6-7 of every layer");
        assert_eq!(range_words(&holds[1]), "experts 0-3 of every layer");
    }

    #[test]
    fn balanced_copies_of_a_lost_pod_load_the_others_alike() {
        let holds = place(80, 32, 4, 2, Placement::Balanced);
        let lost = place(80, 32, 4, 1, Placement::Linear).remove(1);
        let taken: Vec<usize> = [0, 2, 3].map(|pod| holds[pod].intersection(&lost).len()).to_vec();
        assert_eq!(taken.iter().sum::<usize>(), 640);
        assert!(taken.iter().max().unwrap() - taken.iter().min().unwrap() <= 3, "{taken:?}");
        assert!(holds.iter().all(|set| set.len() == 1280));
    }

    #[test]
    fn without_further_copies_balanced_is_linear() {
        assert_eq!(place(8, 32, 5, 1, Placement::Balanced), place(8, 32, 5, 1, Placement::Linear));
    }
}
