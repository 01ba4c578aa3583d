//! Bytes of weights, of per-sequence memory and of expert dispatch, for one whole model. What one GPU of a
//! tensor-parallel pod holds of it is `sharding.rs`.

use serde::Serialize;

use crate::architecture::{Architecture, AttentionKind};
use crate::parameters::product;
use crate::units::Bytes;

/// How a weight or a cache entry is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Storage {
    /// 4 bytes.
    Float32,
    /// 2 bytes.
    BFloat16,
    /// 1 byte, symmetric, one f32 scale per output row (see [`Architecture::scale_bytes`]); experts only.
    Int8,
}

impl Storage {
    /// Bytes of one element, scales not counted.
    pub fn size(self) -> u64 {
        match self {
            Storage::Float32 => 4,
            Storage::BFloat16 => 2,
            Storage::Int8 => 1,
        }
    }

    /// The word used in logs and plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Storage::Float32 => "fp32",
            Storage::BFloat16 => "bf16",
            Storage::Int8 => "int8",
        }
    }
}

impl Architecture {
    /// One expert of one layer. Int8 scales are apart: [`Architecture::scale_bytes`].
    pub fn expert_bytes(&self, storage: Storage) -> Bytes {
        Bytes(self.expert_parameters() * storage.size())
    }

    /// The f32 scales of one int8 expert of one layer: one per output row, `2I + H` rows.
    pub fn scale_bytes(&self) -> Bytes {
        Bytes(4 * (2 * self.expert_hidden + self.hidden) as u64)
    }

    /// Everything but experts. The router is fp32 whatever the rest is.
    pub fn rest_bytes(&self, storage: Storage) -> Bytes {
        let router = self.all_router_parameters();
        Bytes((self.rest_parameters() - router) * storage.size() + router * Storage::Float32.size())
    }

    /// The whole checkpoint in one storage, router fp32.
    pub fn total_bytes(&self, storage: Storage) -> Bytes {
        self.rest_bytes(storage) + self.expert_bytes(storage) * self.expert_count()
    }

    /// Lightning state of one sequence, fp32, whatever its length: layers * heads * head_dim^2 * 4.
    pub fn state_bytes_per_sequence(&self) -> Bytes {
        let layers = self.count(AttentionKind::Lightning);
        Bytes(product(&[layers, self.heads, self.head_dim, self.head_dim, 4]))
    }

    /// KV cache of one token: softmax layers * (key + value) * kv_heads * head_dim.
    pub fn kv_bytes_per_token(&self, storage: Storage) -> Bytes {
        let layers = self.count(AttentionKind::Softmax);
        Bytes(product(&[layers, 2, self.kv_dim()]) * storage.size())
    }

    /// What goes to a pod for one token in one layer: its hidden state.
    pub fn dispatch_bytes_out(&self, storage: Storage) -> Bytes {
        Bytes(self.hidden as u64 * storage.size())
    }

    /// What comes back for one token in one layer: one weighted sum in fp32, however many of its experts the pod holds.
    pub fn dispatch_bytes_back(&self) -> Bytes {
        Bytes(self.hidden as u64 * Storage::Float32.size())
    }

    /// Chance that a token uses at least one of `held` experts of a layer, were all experts equally likely:
    /// `1 - C(E - held, k) / C(E, k)`. Times layers and bytes it is a pod's expected share of the dispatch traffic.
    pub fn chance_used(&self, held: usize) -> f64 {
        let others = self.experts.saturating_sub(held);
        let none = (0..self.top_k).map(|i| others.saturating_sub(i) as f64 / (self.experts - i) as f64).product::<f64>();
        1.0 - none
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_minimax_m1() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(m1.total_bytes(Storage::BFloat16), Bytes(912_210_767_872), "the published index's total_size");
        assert_eq!(m1.expert_bytes(Storage::BFloat16), Bytes(339_738_624));
        assert_eq!(m1.expert_bytes(Storage::Int8), Bytes(169_869_312));
        assert_eq!(m1.scale_bytes(), Bytes(98_304));
        assert_eq!((m1.expert_bytes(Storage::BFloat16) * 80).to_string(), "27.2 GB");
        assert_eq!(format!("{:.1}", m1.rest_bytes(Storage::BFloat16).gb()), "42.5");
        let int8 = m1.rest_bytes(Storage::BFloat16) + m1.expert_bytes(Storage::Int8) * 2560;
        assert_eq!(format!("{:.0}", int8.gb()), "477");
    }

    #[test]
    fn memory_of_a_sequence() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(m1.state_bytes_per_sequence(), Bytes(293_601_280));
        assert_eq!(m1.kv_bytes_per_token(Storage::BFloat16), Bytes(40_960));
        assert_eq!(m1.softmax_twin().kv_bytes_per_token(Storage::BFloat16), Bytes(327_680));
        assert_eq!(m1.softmax_twin().state_bytes_per_sequence(), Bytes(0));
        assert_eq!((m1.kv_bytes_per_token(Storage::BFloat16) * 1_000_000).to_string(), "41.0 GB");
    }

    #[test]
    fn dispatch_between_two_pods() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(m1.dispatch_bytes_out(Storage::BFloat16), Bytes(12_288));
        assert_eq!(m1.dispatch_bytes_back(), Bytes(24_576));
        let per_token = |bytes: Bytes| bytes.0 as f64 * 80.0 * m1.chance_used(16) / 1e3;
        assert_eq!(per_token(m1.dispatch_bytes_out(Storage::BFloat16)).round(), 745.0);
        assert_eq!(per_token(m1.dispatch_bytes_back()).round(), 1490.0);
        assert_eq!((m1.chance_used(0), m1.chance_used(32)), (0.0, 1.0));
        assert_eq!(m1.chance_used(31), 1.0, "one expert elsewhere cannot be both of a token's");
    }
}
