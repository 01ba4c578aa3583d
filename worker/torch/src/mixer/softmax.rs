//! Softmax attention with grouped KV heads: query head h uses KV head `h / (heads / kv_heads)`.
//!
//! Keys are cached rotated. The cache is a pool of rows, `[blocks * 64, 2 * kv_heads, dim]`, keys before values; a
//! sequence's blocks are read in place where they lie side by side, else copied together. Only the first `rotary_dim`
//! channels of a head are rotated (rotate-half); the rest pass through.

use m1_arch::{Architecture, LayerId};
use m1_engine::{CacheSize, KV_BLOCK_TOKENS};
use m1_weights::TensorName;
use tch::{TchError, Tensor};

use crate::error::TorchError;
use crate::layout::{Layout, Span};
use crate::load::Reader;
use crate::ops::options;

/// Bytes that the scores of one tile may take; two such buffers live at a time.
const TILE_BYTES: i64 = 32 << 20;

/// Query tokens of one tile at most: a tile computes the scores of its last token for all its tokens, so large tiles
/// waste work above the diagonal.
const TILE_TOKENS: i64 = 128;

/// One softmax layer.
pub(crate) struct Softmax {
    heads: i64,
    kv_heads: i64,
    dim: i64,
    rotary: i64,
    /// `[hidden, N + 2K]`: queries, keys, values.
    qkv: Tensor,
    /// `[N, hidden]`.
    pub out: Tensor,
    /// `-inf` above the diagonal, `[TILE_TOKENS, TILE_TOKENS]`.
    mask: Tensor,
    /// `[kv_blocks * 64, 2 * kv_heads, dim]`; memory is touched as rows are written.
    pool: Tensor,
}

impl Softmax {
    /// Reads the layer's weights and reserves its cache.
    pub fn load(arch: &Architecture, reader: &mut Reader<'_>, size: CacheSize, layer: LayerId) -> Result<Self, TorchError> {
        let options = reader.options();
        let (kv_heads, dim) = (arch.kv_heads as i64, arch.head_dim as i64);
        let rows = i64::from(size.kv_blocks) * KV_BLOCK_TOKENS as i64;
        Ok(Softmax {
            heads: arch.heads as i64,
            kv_heads,
            dim,
            rotary: arch.rotary_dim as i64,
            qkv: reader.stacked(&[TensorName::Query(layer), TensorName::Key(layer), TensorName::Value(layer)])?.f_tr()?,
            out: reader.tensor(TensorName::SoftmaxOut(layer))?.f_tr()?,
            mask: Tensor::f_full([TILE_TOKENS, TILE_TOKENS], f64::NEG_INFINITY, options)?.f_triu(1)?,
            pool: Tensor::f_empty([rows, 2 * kv_heads, dim], options)?,
        })
    }

    /// A block, `[64, 2 * kv_heads, dim]`: a view.
    pub fn block(&self, block: u32) -> Result<Tensor, TchError> {
        let tokens = KV_BLOCK_TOKENS as i64;
        self.pool.f_narrow(0, i64::from(block) * tokens, tokens)
    }

    /// Copies a block to another.
    pub fn copy(&mut self, from: u32, to: u32) -> Result<(), TchError> {
        self.block(to)?.f_copy_(&self.block(from)?).map(drop)
    }

    /// Output of all heads, `[rows, N]`.
    pub fn heads(&mut self, h: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
        let (heads, kv) = (self.heads, self.kv_heads);
        let qkv = h.f_mm(&self.qkv)?.f_view([layout.rows, heads + 2 * kv, self.dim])?;
        self.rotate_(&qkv.f_narrow(1, 0, heads + kv)?, layout)?;
        let queries = qkv.f_narrow(1, 0, heads)?.f_mul_scalar_((self.dim as f64).powf(-0.5))?;
        layout.kv_rows.put(&mut self.pool, &qkv.f_narrow(1, heads, 2 * kv)?)?;
        let o = Tensor::f_empty([layout.rows, heads * self.dim], options(&qkv))?;
        for span in &layout.spans {
            self.attend(&queries, span, &o)?;
        }
        Ok(o)
    }

    /// `(a, b) -> (a cos - b sin, b cos + a sin)` on the two halves of the rotary channels.
    fn rotate_(&self, x: &Tensor, layout: &Layout) -> Result<(), TchError> {
        let half = self.rotary / 2;
        let (mut a, mut b) = (x.f_narrow(2, 0, half)?, x.f_narrow(2, half, half)?);
        let turned = a.f_mul(&layout.sin)?;
        let crossed = b.f_mul(&layout.sin)?;
        let _ = a.f_mul_(&layout.cos)?.f_sub_(&crossed)?;
        let _ = b.f_mul_(&layout.cos)?.f_add_(&turned)?;
        Ok(())
    }

    /// Attention of one sequence's new tokens over its whole context; writes its rows of `o`.
    fn attend(&self, queries: &Tensor, span: &Span, o: &Tensor) -> Result<(), TchError> {
        let blocks = self.pool.f_view([-1, KV_BLOCK_TOKENS as i64, 2 * self.kv_heads, self.dim])?;
        let cached = span.blocks.pick(&blocks)?.f_view([-1, 2 * self.kv_heads, self.dim])?.f_transpose(0, 1)?;
        let (keys, values) = (cached.f_narrow(0, 0, self.kv_heads)?, cached.f_narrow(0, self.kv_heads, self.kv_heads)?);
        let fitting = TILE_BYTES / (4 * self.heads * span.context());
        let tile = fitting.clamp(1, TILE_TOKENS);
        for start in (0..span.tokens).step_by(tile as usize) {
            let m = tile.min(span.tokens - start);
            let seen = span.position + start + m;
            let rows = span.start + start;
            let of_tile = self.tile(&queries.f_narrow(0, rows, m)?, &keys.f_narrow(1, 0, seen)?, &values.f_narrow(1, 0, seen)?)?;
            o.f_narrow(0, rows, m)?.f_view([m, self.kv_heads, -1, self.dim])?.f_copy_(&of_tile)?;
        }
        Ok(())
    }

    /// `m` queries that are the last of `seen` tokens -> `[m, kv_heads, group, dim]`.
    fn tile(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, TchError> {
        let (m, seen) = (queries.size()[0], keys.size()[1]);
        let group = self.heads / self.kv_heads;
        let queries = queries.f_reshape([m, self.kv_heads, group, self.dim])?.f_permute([1, 2, 0, 3])?;
        let queries = queries.f_reshape([self.kv_heads, group * m, self.dim])?;
        let scores = queries.f_bmm(&keys.f_transpose(1, 2)?)?;
        if m > 1 {
            let diagonal = scores.f_view([self.kv_heads * group, m, seen])?.f_narrow(2, seen - m, m)?;
            let _ = { diagonal }.f_add_(&self.mask.f_narrow(0, 0, m)?.f_narrow(1, 0, m)?)?;
        }
        let o = scores.f_softmax(-1, None)?.f_bmm(values)?;
        o.f_view([self.kv_heads, group, m, self.dim])?.f_permute([2, 0, 1, 3])
    }
}
