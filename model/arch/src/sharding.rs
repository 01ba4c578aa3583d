//! What one GPU of a tensor-parallel pod holds. Heads, expert columns and vocabulary rows are cut over the pod's GPUs;
//! routers and norms over `hidden` are whole on every GPU; where there are more GPUs than KV heads, a KV head is held by
//! several.

use std::ops::Range;

use thiserror::Error;

use crate::architecture::{Architecture, AttentionKind};
use crate::bytes::Storage;
use crate::parameters::product;
use crate::units::Bytes;

/// A number of GPUs per pod that the network cannot be cut over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("tensor: {given} does not fit {field} {size}: allowed are {allowed}")]
pub struct ShardError {
    /// The size that cannot be cut.
    pub field: &'static str,
    /// Its value.
    pub size: usize,
    /// The number of GPUs asked for.
    pub given: usize,
    /// What would fit.
    pub allowed: &'static str,
}

impl ShardError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        "TensorParallelMisfit"
    }
}

/// One GPU's share of a model that is cut over `tensor` GPUs.
#[derive(Debug, Clone, Copy)]
pub struct GpuShare<'a> {
    arch: &'a Architecture,
    tensor: usize,
}

/// Weights of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuWeights {
    /// Its cut of every expert that its pod holds.
    pub experts: Bytes,
    /// Its cut of everything else.
    pub rest: Bytes,
    /// f32 scales of int8 experts, zero otherwise: 0.15 % of the experts at most for M1.
    pub scales: Bytes,
}

impl GpuWeights {
    /// Experts and rest, without scales: the figure that documents quote.
    pub fn weights(&self) -> Bytes {
        self.experts + self.rest
    }

    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights() + self.scales
    }
}

impl<'a> GpuShare<'a> {
    /// Cuts a model over `tensor` GPUs, if its sizes allow it.
    pub fn new(arch: &'a Architecture, tensor: usize) -> Result<Self, ShardError> {
        let fit = |field, size: usize, fits: bool, allowed| {
            if fits { Ok(()) } else { Err(ShardError { field, size, given: tensor, allowed }) }
        };
        fit("parallelism", tensor, tensor > 0, "numbers from 1")?;
        let divides = "divisors of it";
        fit("num_attention_heads", arch.heads, arch.heads.is_multiple_of(tensor), divides)?;
        fit("intermediate_size", arch.expert_hidden, arch.expert_hidden.is_multiple_of(tensor), divides)?;
        fit("vocab_size", arch.vocab, arch.vocab.is_multiple_of(tensor), divides)?;
        let kv = arch.kv_heads.is_multiple_of(tensor) || tensor.is_multiple_of(arch.kv_heads);
        fit("num_key_value_heads", arch.kv_heads, kv, "its divisors and its multiples")?;
        Ok(GpuShare { arch, tensor })
    }

    /// Number of GPUs of the pod.
    pub fn tensor(&self) -> usize {
        self.tensor
    }

    /// Its cut of everything but experts.
    pub fn rest_bytes(&self, storage: Storage) -> Bytes {
        let arch = self.arch;
        let attention: u64 = arch.layers.iter().map(|kind| self.attention_parameters(*kind)).sum();
        let cut = 2 * arch.embedding_parameters() / self.tensor as u64 + attention;
        let router = arch.all_router_parameters() * Storage::Float32.size();
        Bytes((cut + arch.all_norm_parameters()) * storage.size() + router)
    }

    /// Its cut of one expert of one layer, int8 scales not counted.
    pub fn expert_bytes(&self, storage: Storage) -> Bytes {
        Bytes(self.arch.expert_parameters() / self.tensor as u64 * storage.size())
    }

    /// Scales of its cut of one int8 expert: rows of w1 and w3 are cut, those of w2 are not (its columns are).
    pub fn scale_bytes(&self) -> Bytes {
        Bytes(4 * (2 * self.arch.expert_hidden / self.tensor + self.arch.hidden) as u64)
    }

    /// Weights of one GPU when its pod holds `held` (layer, expert) pairs.
    pub fn weights(&self, held: u64, experts: Storage, rest: Storage) -> GpuWeights {
        let scales = if experts == Storage::Int8 { self.scale_bytes() * held } else { Bytes(0) };
        GpuWeights { experts: self.expert_bytes(experts) * held, rest: self.rest_bytes(rest), scales }
    }

    /// Its cut of one sequence's lightning state, fp32.
    pub fn state_bytes_per_sequence(&self) -> Bytes {
        Bytes(self.arch.state_bytes_per_sequence().0 / self.tensor as u64)
    }

    /// Its cut of one token's KV cache: at least one KV head.
    pub fn kv_bytes_per_token(&self, storage: Storage) -> Bytes {
        let layers = self.arch.count(AttentionKind::Softmax);
        Bytes(product(&[layers, 2, self.kv_heads(), self.arch.head_dim]) * storage.size())
    }

    fn kv_heads(&self) -> usize {
        (self.arch.kv_heads / self.tensor).max(1)
    }

    fn attention_parameters(&self, kind: AttentionKind) -> u64 {
        let n = self.arch.attention_dim() / self.tensor;
        let kv = self.kv_heads() * self.arch.head_dim;
        match kind {
            AttentionKind::Lightning => product(&[5, n, self.arch.hidden]) + n as u64,
            AttentionKind::Softmax => product(&[2, n + kv, self.arch.hidden]),
        }
    }
}

/// Experts of pod `pod` of `pods` under linear placement: equal runs, the remainder to the first pods. Empty where there
/// is no such pod.
pub fn linear_share(experts: usize, pods: usize, pod: usize) -> Range<usize> {
    if pod >= pods {
        return 0..0;
    }
    let (base, rest) = (experts / pods, experts % pods);
    let start = pod * base + pod.min(rest);
    start..start + base + usize::from(pod < rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_gpu(pods: u64, copies: u64, experts: Storage) -> GpuWeights {
        let m1 = Architecture::minimax_m1();
        let held = m1.expert_count() * copies / pods;
        GpuShare::new(&m1, 8).unwrap().weights(held, experts, Storage::BFloat16)
    }

    #[test]
    fn two_pods_in_bf16_is_the_smallest_shape() {
        let gpu = per_gpu(2, 1, Storage::BFloat16);
        assert_eq!(gpu.experts.to_string(), "54.4 GB");
        assert_eq!(gpu.weights().to_string(), "59.7 GB");
        assert_eq!(gpu.scales, Bytes(0));
        assert!((gpu.rest.gb() - 5.3).abs() < 0.1);
    }

    #[test]
    fn four_pods_with_two_copies_cost_the_same() {
        assert_eq!(per_gpu(4, 2, Storage::BFloat16), per_gpu(2, 1, Storage::BFloat16));
    }

    #[test]
    fn one_pod_needs_int8_experts() {
        assert_eq!(per_gpu(1, 1, Storage::BFloat16).weights().to_string(), "114.1 GB");
        let int8 = per_gpu(1, 1, Storage::Int8);
        assert_eq!(int8.weights().to_string(), "59.7 GB");
        assert_eq!(int8.scales, Bytes(2560 * 33_792));
        assert_eq!(int8.total(), int8.weights() + int8.scales);
    }

    #[test]
    fn state_and_cache_are_cut_by_head() {
        let m1 = Architecture::minimax_m1();
        let eight = GpuShare::new(&m1, 8).unwrap();
        assert_eq!(eight.state_bytes_per_sequence(), Bytes(36_700_160));
        assert_eq!(eight.kv_bytes_per_token(Storage::BFloat16), Bytes(5_120));
        let sixteen = GpuShare::new(&m1, 16).unwrap();
        assert_eq!(sixteen.kv_bytes_per_token(Storage::BFloat16), Bytes(5_120), "a KV head is never cut");
    }

    #[test]
    fn one_gpu_holds_the_whole_model() {
        let m1 = Architecture::minimax_m1();
        let one = GpuShare::new(&m1, 1).unwrap();
        assert_eq!(one.rest_bytes(Storage::BFloat16), m1.rest_bytes(Storage::BFloat16));
        assert_eq!(one.scale_bytes(), m1.scale_bytes());
        assert_eq!(one.tensor(), 1);
        let all = one.weights(2560, Storage::BFloat16, Storage::BFloat16).total();
        assert_eq!(all, m1.total_bytes(Storage::BFloat16));
    }

    #[test]
    fn misfits_name_the_size() {
        let m1 = Architecture::minimax_m1();
        let refused = |tensor| GpuShare::new(&m1, tensor).unwrap_err();
        assert_eq!(refused(0).field, "parallelism");
        assert_eq!(refused(3).field, "num_attention_heads");
        assert_eq!(refused(3).to_string(), "tensor: 3 does not fit num_attention_heads 64: allowed are divisors of it");
        let odd = Architecture { vocab: 1001, ..Architecture::minimax_m1() };
        assert_eq!(GpuShare::new(&odd, 2).unwrap_err().field, "vocab_size");
        let few = Architecture { kv_heads: 3, ..Architecture::minimax_m1() };
        assert_eq!(GpuShare::new(&few, 2).unwrap_err().field, "num_key_value_heads");
    }

    #[test]
    fn linear_shares_cover_every_expert_once() {
        assert_eq!([0, 1, 2].map(|pod| linear_share(32, 3, pod)), [0..11, 11..22, 22..32]);
        assert_eq!(linear_share(32, 2, 2), 0..0);
        for pods in 1..=32 {
            let all: Vec<usize> = (0..pods).flat_map(|pod| linear_share(32, pods, pod)).collect();
            assert_eq!(all, (0..32).collect::<Vec<_>>());
        }
    }
}
