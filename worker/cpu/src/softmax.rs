//! Softmax attention of one layer: projections, rotary channels, and the cache of keys and values. The mathematics of a head is in
//! `m1_kernels::softmax`.

use m1_arch::{Architecture, LayerId};
use m1_engine::KV_BLOCK_TOKENS;
use m1_kernels::softmax::{KvTile, Queries, attend};
use m1_kernels::{Path, Shared};
use m1_weights::TensorName;

use crate::compute::{Compute, room, with_scratch};
use crate::error::CpuError;
use crate::layout::{Layout, Span};
use crate::weights::{Loader, Weight};

/// Query tokens of one piece of work: enough that keys are used many times while they are in a cache, few enough that threads have
/// work alike.
const QUERY_TOKENS: usize = 16;

/// One softmax layer.
#[derive(Debug)]
pub(crate) struct Softmax {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// `[N, hidden]`, `[K, hidden]`, `[K, hidden]`.
    query: Weight,
    key: Weight,
    value: Weight,
    /// `[hidden, N]`.
    pub out: Weight,
    /// `[blocks, kv_heads, 2, 64, dim]`: rotated keys, then values; memory is touched as rows are written.
    cache: Vec<f32>,
}

/// Operations of one turn for each thread: some 5 ms. With a long context one layer takes seconds, and others want the device meanwhile.
const TURN: usize = 200_000_000;

/// One piece of a step's work: some tokens' queries of one KV head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Place of the span in the layout.
    span: usize,
    /// First of its tokens.
    first: usize,
    kv_head: usize,
}

/// Memory of a call, kept for its allocation.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    key: Vec<f32>,
    value: Vec<f32>,
}

impl Softmax {
    /// Takes the layer's weights and reserves its cache.
    pub fn load(arch: &Architecture, loader: &mut Loader<'_>, blocks: usize, layer: LayerId) -> Result<Self, CpuError> {
        Ok(Self {
            heads: arch.heads,
            kv_heads: arch.kv_heads,
            dim: arch.head_dim,
            query: loader.matrix(TensorName::Query(layer))?,
            key: loader.matrix(TensorName::Key(layer))?,
            value: loader.matrix(TensorName::Value(layer))?,
            out: loader.matrix(TensorName::SoftmaxOut(layer))?,
            // Zeroed memory of the operating system: not touched yet.
            cache: vec![0.0; blocks * arch.kv_heads * 2 * KV_BLOCK_TOKENS * arch.head_dim],
        })
    }

    /// Queries of all heads into `query`, `[rows, N]`, rotated and scaled; fills the cache. What is to be done then comes into `pieces`.
    pub fn prepare(
        &mut self,
        compute: &mut Compute,
        buffers: &mut Buffers,
        h: &[f32],
        layout: &Layout,
        (query, pieces): (&mut [f32], &mut Vec<Piece>),
    ) -> Result<(), CpuError> {
        let (rows, dim, width) = (layout.rows, self.dim, self.kv_heads * self.dim);
        let (key, value) = (room(&mut buffers.key, rows * width), room(&mut buffers.value, rows * width));
        let jobs = [(h, &self.query, &mut *query), (h, &self.key, &mut *key), (h, &self.value, &mut *value)];
        compute.products(jobs)?;
        rotate(query, layout, self.heads * dim, dim);
        rotate(key, layout, width, dim);
        let scale = (dim as f64).powf(-0.5) as f32;
        query.iter_mut().for_each(|number| *number *= scale);
        pieces.clear();
        for (place, span) in layout.spans.iter().enumerate() {
            self.keep(span, key, value);
            let firsts = (0..span.tokens).step_by(QUERY_TOKENS);
            pieces.extend(firsts.flat_map(|first| (0..self.kv_heads).map(move |kv_head| Piece { span: place, first, kv_head })));
        }
        Ok(())
    }

    /// The output of some of these pieces, as many as one turn takes, into `out`, `[rows, N]`; how many they were.
    pub fn attend_some(&self, compute: &mut Compute, layout: &Layout, queries: &[f32], pieces: &[Piece], out: &mut [f32]) -> usize {
        let most = TURN * compute.pool.shares();
        let mut operations = 0;
        let fits = |piece: &&Piece| {
            let begun = operations;
            let span = &layout.spans[piece.span];
            operations += 4 * QUERY_TOKENS.min(span.tokens - piece.first) * (span.position + piece.first) * self.heads
                / self.kv_heads
                * self.dim;
            begun < most
        };
        let count = pieces.iter().take_while(fits).count();
        let to = Shared::new(out);
        compute.each(count, |path, place| {
            let Piece { span, first, kv_head } = pieces[place];
            self.attend(path, (&layout.spans[span], first, kv_head), queries, &to);
        });
        count
    }

    /// Where a block's keys of a KV head begin; its values follow them.
    fn place(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * 2 * KV_BLOCK_TOKENS * self.dim
    }

    /// Where a block lies.
    fn places(&self, block: usize) -> std::ops::Range<usize> {
        self.place(block, 0)..self.place(block + 1, 0)
    }

    /// A block, `[kv_heads, 2, 64, dim]`.
    pub fn block(&self, block: usize) -> &[f32] {
        &self.cache[self.places(block)]
    }

    /// The same, to be written.
    pub fn block_mut(&mut self, block: usize) -> &mut [f32] {
        let places = self.places(block);
        &mut self.cache[places]
    }

    /// Copies a block to another.
    pub fn copy(&mut self, from: usize, to: usize) {
        let (from, to) = (self.places(from), self.places(to).start);
        self.cache.copy_within(from, to);
    }

    /// Writes a span's keys and values into the cache.
    fn keep(&mut self, span: &Span, key: &[f32], value: &[f32]) {
        let (dim, width) = (self.dim, self.kv_heads * self.dim);
        for token in 0..span.tokens {
            let (row, position) = (span.start + token, span.position + token);
            let Some(block) = span.blocks.get(position / KV_BLOCK_TOKENS) else { continue };
            for kv_head in 0..self.kv_heads {
                let from = row * width + kv_head * dim..row * width + (kv_head + 1) * dim;
                let keys = self.place(*block, kv_head) + position % KV_BLOCK_TOKENS * dim;
                let values = keys + KV_BLOCK_TOKENS * dim;
                self.cache[keys..keys + dim].copy_from_slice(&key[from.clone()]);
                self.cache[values..values + dim].copy_from_slice(&value[from]);
            }
        }
    }

    /// Some tokens' queries of one KV head over all that they see; writes their part of `to`, `[rows, N]`.
    fn attend(&self, path: Path, (span, first, kv_head): (&Span, usize, usize), queries: &[f32], to: &Shared<'_>) {
        let (dim, group) = (self.dim, self.heads / self.kv_heads);
        let (tokens, part) = (QUERY_TOKENS.min(span.tokens - first), group * dim);
        let place = |token: usize| (span.start + first + token) * self.heads * dim + kv_head * part;
        let tiles: Vec<KvTile<'_>> = span
            .blocks
            .iter()
            .map(|block| {
                let (keys, values) = self.cache[self.place(*block, kv_head)..].split_at(KV_BLOCK_TOKENS * dim);
                KvTile { keys, values: &values[..KV_BLOCK_TOKENS * dim], stride: dim }
            })
            .collect();
        with_scratch(2 * tokens * part, |scratch| {
            let (rows, out) = scratch.split_at_mut(tokens * part);
            for (token, rows) in rows.chunks_exact_mut(part).enumerate() {
                rows.copy_from_slice(&queries[place(token)..place(token) + part]);
            }
            attend(path, Queries { rows, dim, group, seen: span.position + first + 1 }, &tiles, out);
            for (token, out) in out.chunks_exact(part).enumerate() {
                // SAFETY: this KV head's part of this row is nobody else's.
                unsafe { to.piece(place(token)..place(token) + part) }.copy_from_slice(out);
            }
        });
    }
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` on the two halves of the rotary channels of every head; `x` is `[rows, width]`.
fn rotate(x: &mut [f32], layout: &Layout, width: usize, dim: usize) {
    let half = layout.angles.len() / layout.rows.max(1);
    if half == 0 {
        return;
    }
    for (row, angles) in x.chunks_exact_mut(width).zip(layout.angles.chunks_exact(half)) {
        for head in row.chunks_exact_mut(dim) {
            let (a, b) = head.split_at_mut(half);
            for ((a, b), (cosine, sine)) in a.iter_mut().zip(b).zip(angles) {
                (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
            }
        }
    }
}
