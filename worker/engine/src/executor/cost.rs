//! What a piece of work costs in floating-point operations, for whoever has to say beforehand how long it may take.

use m1_arch::{Architecture, AttentionKind, LayerId};

use super::batch::Batch;

/// Kinds of pieces, each of which keeps its own pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Piece {
    /// Lightning attention of a layer, with its router.
    Lightning,
    /// Softmax attention of a layer, with its router.
    Softmax,
    /// Experts.
    Experts,
    /// The head, and drawing.
    Head,
    /// Bytes from here to there.
    Copy,
}

impl Piece {
    /// How many kinds there are.
    pub const KINDS: usize = 5;
}

/// What the next turn would compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Due {
    /// Of which kind.
    pub piece: Piece,
    /// Floating-point operations; of a copy, bytes.
    pub operations: f64,
}

/// Operations of one row in one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Products with weights, in either kind of attention.
    dense: f64,
    /// Of each token that softmax attention looks at.
    score: f64,
    /// State of lightning attention.
    state: f64,
    expert: f64,
    head: f64,
}

/// What a batch costs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    rows: f64,
    /// Pairs of a row and a token that it may look at.
    looks: f64,
    /// Rows whose logits are computed.
    heads: f64,
}

impl Load {
    pub(super) fn of(batch: &Batch) -> Self {
        let looks = |tokens: u32, position: u32| f64::from(tokens) * (f64::from(position) + f64::from(tokens));
        Self {
            rows: batch.ids.len() as f64,
            looks: batch.segments.iter().map(|segment| looks(segment.tokens, segment.position)).sum(),
            heads: batch.logit_rows.len().max(batch.draws.len()) as f64,
        }
    }
}

impl Costs {
    pub(super) fn of(arch: &Architecture) -> Self {
        let layers = |kind| arch.count(kind).max(1) as f64;
        let (expert, head) = (arch.expert_flops_per_token(), 2.0 * (arch.vocab * arch.hidden) as f64);
        let all = arch.layers.len().max(1) as f64;
        Self {
            dense: (arch.matmul_flops_per_token() - head) / all - expert * arch.top_k as f64,
            score: arch.softmax_flops_per_token(1) / layers(AttentionKind::Softmax),
            state: arch.lightning_flops_recurrent() / layers(AttentionKind::Lightning),
            expert,
            head,
        }
    }

    pub(super) fn attention(&self, arch: &Architecture, layer: LayerId, load: Load) -> Due {
        let (piece, more) = match arch.kind(layer) {
            Some(AttentionKind::Softmax) => (Piece::Softmax, load.looks * self.score),
            _ => (Piece::Lightning, load.rows * self.state),
        };
        Due { piece, operations: load.rows * self.dense + more }
    }

    pub(super) fn experts(&self, uses: usize) -> Due {
        Due { piece: Piece::Experts, operations: uses as f64 * self.expert }
    }

    pub(super) fn head(&self, load: Load) -> Due {
        Due { piece: Piece::Head, operations: load.heads * self.head }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;
    use crate::executor::{Segment, SlotId};

    fn batch(tokens: u32, position: u32) -> Batch {
        let segment = Segment { slot: SlotId(0), start: 0, tokens, position, prompt: position + tokens, fresh: 0, threshold: 1.0 };
        Batch { ids: vec![1; tokens as usize], segments: vec![segment], logit_rows: vec![0], ..Batch::default() }
    }

    #[test]
    fn pieces_of_m1_cost_what_its_numbers_say() {
        let m1 = Architecture::minimax_m1();
        let (costs, load) = (Costs::of(&m1), Load::of(&batch(512, 400_000)));
        let within =
            |due: Due, piece, range: RangeInclusive<f64>| assert!(due.piece == piece && range.contains(&due.operations), "{due:?}");
        // 2 x 2 products of 64 heads x 128 with some 400,000 tokens each for 512 rows, and the weights.
        within(costs.attention(&m1, LayerId(7), load), Piece::Softmax, 6.7e12..=7.5e12);
        within(costs.attention(&m1, LayerId(0), load), Piece::Lightning, 1e11..=4e11);
        // Three products of 6,144 x 9,216.
        within(costs.experts(1), Piece::Experts, 3.3e8..=3.5e8);
        within(costs.head(load), Piece::Head, 2.4e9..=2.5e9);
        assert_eq!(costs.experts(0).operations, 0.0, "places that are not used cost nothing");
    }
}
