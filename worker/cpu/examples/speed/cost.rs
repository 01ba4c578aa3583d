//! What work costs at least: bytes of weights that a step reads, multiplications of a prompt, memory of caches.

use anyhow::Result;
use m1_arch::{Architecture, ExpertSet, Storage};
use m1_engine::{CacheSize, KV_BLOCK_TOKENS};
use m1_kernels::lightning::BLOCK;
use m1_weights::{Checkpoint, TensorName, plan_read};

/// Bytes of weights of a step of so many sequences in which so many experts, over all layers, have work: every other weight once, of the
/// embedding one row a sequence.
pub fn step_bytes(checkpoint: &Checkpoint, sequences: usize, experts: f64) -> Result<f64> {
    let arch = checkpoint.architecture();
    let (layers, all) = (arch.layers.len(), arch.experts);
    let fixed = plan_read(checkpoint, &ExpertSet::empty(layers, all)).bytes;
    let expert = (plan_read(checkpoint, &ExpertSet::full(layers, all)).bytes - fixed) as f64 / (layers * all) as f64;
    let embedding = checkpoint.tensor(&TensorName::Embedding)?.data.len() as f64;
    Ok(fixed as f64 - embedding * (1.0 - sequences as f64 / arch.vocab as f64) + experts * expert)
}

/// Floating-point operations of a prompt: products with weights, the head for the last token only, and attention, lightning attention in blocks.
pub fn prompt_flop(arch: &Architecture, tokens: f64) -> f64 {
    let head = 2.0 * (arch.vocab * arch.hidden) as f64;
    let each = arch.matmul_flops_per_token() - head + arch.lightning_flops_in_blocks(BLOCK);
    // A token sees itself and those before it.
    tokens * each + head + arch.softmax_flops_per_token(1) * tokens * (tokens + 1.0) / 2.0
}

/// Bytes of states and KV when all is in use.
pub fn caches(arch: &Architecture, size: CacheSize) -> f64 {
    let states = arch.state_bytes_per_sequence() * u64::from(size.slots);
    let kv = arch.kv_bytes_per_token(Storage::Float32) * (u64::from(size.kv_blocks) * KV_BLOCK_TOKENS as u64);
    (states + kv).0 as f64
}
