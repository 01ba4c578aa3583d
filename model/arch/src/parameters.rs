//! Numbers of parameters by part. H = hidden, N = heads * head_dim, K = kv_heads * head_dim, I = expert_hidden,
//! E = experts, V = vocab; no part has a bias.

use crate::architecture::{Architecture, AttentionKind};

impl Architecture {
    /// Embedding, and as many again in the head: V*H.
    pub fn embedding_parameters(&self) -> u64 {
        product(&[self.vocab, self.hidden])
    }

    /// Attention of one layer of this kind. Lightning: `qkv` 3N*H, gate N*H, out H*N, norm N; softmax: q and out 2N*H, k
    /// and v 2K*H.
    pub fn attention_parameters(&self, kind: AttentionKind) -> u64 {
        let n = self.attention_dim();
        match kind {
            AttentionKind::Lightning => product(&[5, n, self.hidden]) + n as u64,
            AttentionKind::Softmax => product(&[2, n + self.kv_dim(), self.hidden]),
        }
    }

    /// One expert of one layer, the unit of placement: 3*H*I.
    pub fn expert_parameters(&self) -> u64 {
        product(&[3, self.hidden, self.expert_hidden])
    }

    /// Router of one layer: E*H.
    pub fn router_parameters(&self) -> u64 {
        product(&[self.experts, self.hidden])
    }

    /// The two norms of one layer: 2H.
    pub fn norm_parameters(&self) -> u64 {
        product(&[2, self.hidden])
    }

    /// Number of (layer, expert) pairs.
    pub fn expert_count(&self) -> u64 {
        product(&[self.layers.len(), self.experts])
    }

    /// Attention of all layers.
    pub fn all_attention_parameters(&self) -> u64 {
        self.layers.iter().map(|kind| self.attention_parameters(*kind)).sum()
    }

    /// Experts of all layers.
    pub fn all_expert_parameters(&self) -> u64 {
        self.expert_count() * self.expert_parameters()
    }

    /// Routers of all layers.
    pub fn all_router_parameters(&self) -> u64 {
        self.layers.len() as u64 * self.router_parameters()
    }

    /// Norms of all layers and the final one.
    pub fn all_norm_parameters(&self) -> u64 {
        self.layers.len() as u64 * self.norm_parameters() + self.hidden as u64
    }

    /// Everything but experts.
    pub fn rest_parameters(&self) -> u64 {
        2 * self.embedding_parameters()
            + self.all_attention_parameters()
            + self.all_router_parameters()
            + self.all_norm_parameters()
    }

    /// The whole network.
    pub fn total_parameters(&self) -> u64 {
        self.rest_parameters() + self.all_expert_parameters()
    }

    /// What one token passes through, without embedding and head (the published "45.9 B active").
    pub fn active_parameters(&self) -> u64 {
        let experts = product(&[self.layers.len(), self.top_k]) * self.expert_parameters();
        self.rest_parameters() - 2 * self.embedding_parameters() + experts
    }
}

/// Product of sizes. A checked architecture's products stay below 2^63: its config limits see to that.
pub(crate) fn product(sizes: &[usize]) -> u64 {
    sizes.iter().fold(1u64, |all, size| all.saturating_mul(*size as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimax_m1_by_part() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(m1.embedding_parameters(), 1_229_193_216);
        assert_eq!(m1.attention_parameters(AttentionKind::Lightning), 251_666_432);
        assert_eq!(m1.attention_parameters(AttentionKind::Softmax), 113_246_208);
        assert_eq!(m1.expert_parameters(), 169_869_312);
        assert_eq!(m1.router_parameters(), 196_608);
        assert_eq!(m1.norm_parameters(), 12_288);
        assert_eq!(m1.expert_count(), 2_560);
    }

    #[test]
    fn minimax_m1_in_all() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(m1.total_parameters(), 456_089_655_296);
        assert_eq!(m1.all_expert_parameters(), 434_865_438_720);
        assert_eq!(m1.rest_parameters(), 21_224_216_576);
        assert_eq!(m1.active_parameters(), 45_944_920_064);
        let with_head = m1.active_parameters() + m1.embedding_parameters();
        assert_eq!(with_head / 10_000_000, 4717);
        let share = m1.all_expert_parameters() as f64 / m1.total_parameters() as f64;
        assert!((share - 0.953).abs() < 5e-4);
    }
}
