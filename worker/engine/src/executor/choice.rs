//! The router's choice, for executors whose router logits come to the host: 32 for each token are few.
//!
//! `p = softmax(logits)` over all experts, the `top_k` most probable, weights `p / sum of the chosen p`. The softmax's own
//! denominator cancels, so weights are computed as `exp(l - max) / sum over the chosen`, in fp32.

use super::LayerRouting;

/// Fills `routing` from `logits`, `[tokens, experts]`. Of equal logits the lower expert wins.
pub fn choose_experts(logits: &[f32], experts: usize, top_k: usize, routing: &mut LayerRouting) {
    let tokens = logits.len() / experts.max(1);
    routing.reset(tokens, top_k);
    let places = routing.experts.chunks_exact_mut(top_k).zip(routing.weights.chunks_exact_mut(top_k));
    for (row, (chosen, weights)) in logits.chunks_exact(experts).zip(places) {
        choose(row, chosen, weights);
    }
}

fn choose(logits: &[f32], chosen: &mut [u16], weights: &mut [f32]) {
    for (place, weight) in weights.iter_mut().enumerate() {
        let (taken, rest) = chosen.split_at_mut(place);
        let free = (0..logits.len()).filter(|expert| !taken.contains(&(*expert as u16)));
        let best = free.reduce(|best, expert| if logits[expert] > logits[best] { expert } else { best });
        let (Some(best), Some(next)) = (best, rest.first_mut()) else { break };
        *next = best as u16;
        *weight = (logits[best] - logits[usize::from(chosen[0])]).exp();
    }
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first_and_sum_to_one() {
        let mut routing = LayerRouting::default();
        choose_experts(&[0.0, 2.0, -1.0, 3.0, 5.0, 5.0, 0.0, 0.0], 4, 2, &mut routing);
        assert_eq!((routing.tokens, routing.top_k), (2, 2));
        assert_eq!(routing.experts, [3, 1, 0, 1]);
        let full: f64 = [0f64, 2.0, -1.0, 3.0].iter().map(|l| l.exp()).sum();
        let (first, second) = (3f64.exp() / full, 2f64.exp() / full);
        assert!((f64::from(routing.weights[0]) - first / (first + second)).abs() < 1e-6);
        assert_eq!(routing.weights[2..], [0.5, 0.5]);
    }

    #[test]
    fn huge_and_broken_logits_still_name_distinct_experts() {
        let mut routing = LayerRouting::default();
        choose_experts(&[1e30, -1e30, f32::NAN, 0.0], 4, 2, &mut routing);
        assert_eq!(routing.experts[0], 0);
        assert_ne!(routing.experts[0], routing.experts[1]);
    }
}
