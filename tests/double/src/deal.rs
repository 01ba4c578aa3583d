//! Which experts a double's tokens went to: dealt out in turn, layer l beginning at expert l. So the counts of any number of tokens are a formula, and counting
//! costs nothing while tokens are said.

use m1_proto::worker::Routing;

use crate::Settings;

/// How much of the counts is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The sums alone.
    Sums,
    /// Arrays without weights, as a status stream has them.
    Counts,
    /// Every array, as the end of a sequence has them.
    All,
}

/// The counts of so many tokens. With `skip` every fourth use of an expert is skipped.
pub fn deal(settings: &Settings, tokens: u64, skip: bool, detail: Detail) -> Routing {
    let (layers, experts, top_k) = (u64::from(settings.layers), u64::from(settings.experts.max(1)), u64::from(settings.top_k));
    let uses = tokens * top_k;
    let skipped = if skip { uses / 4 } else { 0 };
    let mut routing = Routing {
        tokens,
        layers: settings.layers,
        experts: settings.experts,
        top_k: settings.top_k,
        executed: (uses - skipped) * layers,
        skipped: skipped * layers,
        ..Routing::default()
    };
    if detail == Detail::Sums {
        return routing;
    }
    let pairs = (layers * experts) as usize;
    routing.expert_tokens = Vec::with_capacity(pairs);
    routing.expert_skipped = Vec::with_capacity(pairs);
    routing.expert_lost = vec![0; pairs];
    for (layer, expert) in (0..layers).flat_map(|layer| (0..experts).map(move |expert| (layer, expert))) {
        // What is skipped is dealt out apart from what is executed, each in turn.
        let turn = (expert + experts - layer % experts) % experts;
        routing.expert_tokens.push(share(uses - skipped, turn, experts));
        routing.expert_skipped.push(share(skipped, turn, experts));
    }
    if detail == Detail::All {
        routing.expert_weight = routing.expert_tokens.iter().map(|tokens| *tokens as f32 * 0.5).collect();
    }
    routing
}

/// How many of `uses` fall to the one whose turn it is `turn` places after the first.
fn share(uses: u64, turn: u64, experts: u64) -> u64 {
    uses / experts + u64::from(turn < uses % experts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_in_every_layer() {
        let settings = Settings { layers: 3, experts: 5, ..Settings::default() };
        for (tokens, skip) in [(0, false), (1, false), (7, true), (1001, true)] {
            let routing = deal(&settings, tokens, skip, Detail::All);
            assert_eq!(routing.executed + routing.skipped, tokens * 2 * 3);
            assert_eq!(routing.skipped > 0, skip);
            for layer in 0..3 {
                let of = |array: &[u64]| array[layer * 5..][..5].iter().sum::<u64>();
                assert_eq!(of(&routing.expert_tokens) + of(&routing.expert_skipped), tokens * 2, "layer {layer}");
            }
        }
    }

    #[test]
    fn layers_begin_at_different_experts() {
        let settings = Settings { layers: 2, experts: 4, ..Settings::default() };
        assert_eq!(deal(&settings, 1, false, Detail::Counts).expert_tokens, [1, 1, 0, 0, 0, 1, 1, 0]);
    }
}
