//! What work costs at least: bytes of weights that a step reads, multiplications of a prompt, memory of caches.

use anyhow::Result;
use m1_arch::{Architecture, AttentionKind, ExpertSet};
use m1_engine::{CacheSize, KV_BLOCK_TOKENS};
use m1_weights::{Checkpoint, TensorName, plan_read};

/// Tokens of a block of lightning attention; a token meets half a block and itself, and the state of what was before.
const LIGHTNING_BLOCK: f64 = 64.0;

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

/// Floating-point operations of a prompt, a multiplication and its addition counted as two: products with weights, the head for the last
/// token only, and attention. Norms and the like are left out.
pub fn prompt_flop(arch: &Architecture, tokens: f64) -> f64 {
    let (hidden, heads, dim) = (arch.hidden as f64, arch.heads as f64, arch.head_dim as f64);
    let width = heads * dim;
    let experts = (arch.experts + 3 * arch.top_k * arch.expert_hidden) as f64 * hidden;
    let layer = |kind: &AttentionKind| match kind {
        // q, k, v, gate, out; then per head q with the state, the state's growth, and keys and values of the block.
        AttentionKind::Lightning => tokens * (5.0 * hidden * width + width * (2.0 * dim + LIGHTNING_BLOCK + 1.0)),
        // q, out, k, v; then keys and values up to each token.
        AttentionKind::Softmax => {
            tokens * (2.0 * hidden * width + 2.0 * hidden * arch.kv_heads as f64 * dim) + width * tokens * (tokens + 1.0)
        }
    };
    let layers: f64 = arch.layers.iter().map(|kind| layer(kind) + tokens * experts).sum();
    2.0 * (layers + hidden * arch.vocab as f64)
}

/// Bytes of states and KV when all is in use.
pub fn caches(arch: &Architecture, size: CacheSize) -> f64 {
    let count = |kind| arch.layers.iter().filter(|layer| **layer == kind).count();
    let states = size.slots as usize * count(AttentionKind::Lightning) * arch.heads * arch.head_dim * arch.head_dim;
    let kv = size.kv_blocks as usize * KV_BLOCK_TOKENS * count(AttentionKind::Softmax) * 2 * arch.kv_heads * arch.head_dim;
    ((states + kv) * size_of::<f32>()) as f64
}
