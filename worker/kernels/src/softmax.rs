//! Softmax attention of queries that share one KV head, in tiles of [`TILE`] tokens at absolute multiples.
//!
//! ```text
//! of tile t    s_i = q . k_i     m_t = max s_i     p_i = e^{s_i - m_t}     l_t = sum p_i     o_t = sum p_i v_i
//! merged       m' = max(m, m_t)  l' = l e^{m - m'} + l_t e^{m_t - m'}      o' = o e^{m - m'} + o_t e^{m_t - m'}      o / l at the end
//! ```
//! Tiles are merged in order, so that a query's result depends on what it sees only.

use std::cell::RefCell;

use crate::Path;
use crate::dispatch::Kernel;
use crate::elementwise::{eights, put, take};
use crate::lanes::{LANES, Lanes, Pair};
use crate::outer::{Left, Rows, add_product};
use crate::tile::{Vectors, dots};

/// Tokens of one tile.
pub const TILE: usize = 64;

/// Keys and values of up to [`TILE`] tokens: token `i`'s lie at `i * stride`.
#[derive(Debug, Clone, Copy)]
pub struct KvTile<'a> {
    /// Rotated keys.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
    /// From one token to the next.
    pub stride: usize,
}

/// Queries of one KV head, rotated and scaled: `group` rows of `dim` numbers for each token, packed.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// `[tokens * group, dim]`.
    pub rows: &'a [f32],
    /// Channels.
    pub dim: usize,
    /// Query heads that share the KV head.
    pub group: usize,
    /// Tokens that the first token's queries see, itself among them; each next token sees one more.
    pub seen: usize,
}

impl Queries<'_> {
    fn count(&self) -> usize {
        self.rows.len() / self.dim.max(1)
    }

    /// Tokens of a tile, the `index`-th, that a row sees.
    #[inline(always)]
    fn seen_in(&self, row: usize, index: usize) -> usize {
        (self.seen + row / self.group).saturating_sub(index * TILE).min(TILE)
    }
}

/// Memory of one thread's attention.
#[derive(Default)]
struct Scratch {
    /// `[rows, TILE]`.
    scores: Vec<f32>,
    /// Of one tile, `[rows, dim]`.
    outputs: Vec<f32>,
    /// Of each row: the largest score and the sum so far, then those of the tile.
    sums: Vec<[f32; 4]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention of queries over all tokens that they see: `tiles[t]` holds tokens from `t * TILE` on. `out` is `[tokens * group, dim]`.
///
/// # Panics
/// Lengths that do not fit, or queries that see more than the tiles hold.
pub fn attend(path: Path, queries: Queries<'_>, tiles: &[KvTile<'_>], out: &mut [f32]) {
    let (rows, dim) = (queries.count(), queries.dim);
    assert!(dim > 0 && queries.group > 0 && queries.seen > 0 && rows > 0, "something to compute");
    assert!(rows * dim == queries.rows.len() && rows.is_multiple_of(queries.group), "whole tokens");
    assert_eq!(out.len(), queries.rows.len(), "a place for each number");
    let seen = queries.seen + rows / queries.group - 1;
    assert!(tiles.len() >= seen.div_ceil(TILE), "{} tiles for {seen} tokens", tiles.len());
    for (index, tile) in tiles.iter().enumerate() {
        let held = seen.saturating_sub(index * TILE).min(TILE);
        let needed = if held == 0 { 0 } else { (held - 1) * tile.stride + dim };
        assert!(tile.keys.len() >= needed && tile.values.len() >= needed, "{held} tokens in tile {index}");
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.scores.resize(rows * TILE, 0.0);
        scratch.outputs.resize(rows * dim, 0.0);
        scratch.sums.clear();
        scratch.sums.resize(rows, [f32::NEG_INFINITY, 0.0, 0.0, 0.0]);
        path.run(Attend { queries, tiles, out, scratch });
    });
}

struct Attend<'a> {
    queries: Queries<'a>,
    tiles: &'a [KvTile<'a>],
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(mut self) {
        let rows = self.queries.count();
        self.out.fill(0.0);
        let seen = self.queries.seen + rows / self.queries.group - 1;
        for index in 0..seen.div_ceil(TILE) {
            // Rows before see nothing of this tile.
            let first = (0..rows).step_by(self.queries.group).find(|row| self.queries.seen_in(*row, index) > 0).unwrap_or(rows);
            // SAFETY: `attend` has checked all lengths.
            unsafe {
                self.score::<P>(index, first);
                self.weigh::<P>(index, first);
                self.merge::<P::Half>(first);
            }
        }
        for (out, sums) in self.out.chunks_exact_mut(self.queries.dim).zip(&self.scratch.sums) {
            let whole = P::Half::splat(sums[1]);
            let out_at = out.as_mut_ptr();
            for (at, count) in eights(out.len()) {
                // SAFETY: within the row.
                unsafe { put(take::<P::Half>(out_at, at, count).div(whole), out_at, at, count) };
            }
        }
    }
}

impl Attend<'_> {
    /// Scores of a tile become weights; `-inf` where a row does not see.
    ///
    /// # Safety
    /// Lengths fit.
    #[inline(always)]
    unsafe fn score<P: Pair>(&mut self, index: usize, first: usize) {
        let (queries, tile, dim) = (self.queries, self.tiles[index], self.queries.dim);
        let rows = queries.count() - first;
        let scores = &mut self.scratch.scores;
        let from = Vectors { start: queries.rows[first * dim..].as_ptr(), stride: dim };
        let keys = Vectors { start: tile.keys.as_ptr(), stride: tile.stride };
        // SAFETY: as the caller promises; rows ascend, so the last of four sees most.
        unsafe {
            dots::<P>(
                (rows, dim),
                from,
                keys,
                |row| queries.seen_in(first + row, index),
                |row, i, dot| {
                    scores[(first + row) * TILE + i] = dot;
                },
            );
        }
        for row in first..first + rows {
            let seen = queries.seen_in(row, index);
            let scores = &mut scores[row * TILE..(row + 1) * TILE];
            scores[seen..].fill(f32::NEG_INFINITY);
            // SAFETY: a row has `TILE` scores.
            let (largest, sum) = unsafe {
                let mut largest = P::Half::splat(f32::NEG_INFINITY);
                for at in (0..TILE).step_by(LANES) {
                    largest = P::Half::load(scores.as_ptr().add(at)).max(largest);
                }
                let largest = largest.to_array().into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
                let shift = P::Half::splat(largest);
                for at in (0..TILE).step_by(LANES) {
                    P::Half::load(scores.as_ptr().add(at)).sub(shift).exp().store(scores.as_mut_ptr().add(at));
                }
                // What is not seen weighs nothing: `exp` ends above 0.
                scores[seen..].fill(0.0);
                let mut sum = P::Half::splat(0.0);
                for at in (0..TILE).step_by(LANES) {
                    sum = sum.add(P::Half::load(scores.as_ptr().add(at)));
                }
                (largest, sum.sum())
            };
            self.scratch.sums[row][2..].copy_from_slice(&[largest, sum]);
        }
    }

    /// The tile's values, weighted.
    ///
    /// # Safety
    /// Lengths fit.
    #[inline(always)]
    unsafe fn weigh<P: Pair>(&mut self, index: usize, first: usize) {
        let (queries, tile, dim) = (self.queries, self.tiles[index], self.queries.dim);
        let values = Rows { start: tile.values.as_ptr().cast_mut(), stride: tile.stride };
        let rows = queries.count();
        for row in (first..rows).step_by(4) {
            let count = 4.min(rows - row);
            // Four rows go as far as their last: the others have zeros there.
            let seen = queries.seen_in(row + count - 1, index);
            let weights = Left { start: self.scratch.scores[row * TILE..].as_ptr(), row: TILE, step: 1 };
            let out = Rows { start: self.scratch.outputs[row * dim..].as_mut_ptr(), stride: dim };
            // SAFETY: as the caller promises.
            unsafe { add_product::<P>((count, dim, seen), weights, values, out, |_| 0.0) };
        }
    }

    /// Adds the tile to what was before it.
    ///
    /// # Safety
    /// Lengths fit.
    #[inline(always)]
    unsafe fn merge<L: Lanes>(&mut self, first: usize) {
        let dim = self.queries.dim;
        for row in first..self.queries.count() {
            let [before, sum, largest, tile_sum] = self.scratch.sums[row];
            let now = if largest > before { largest } else { before };
            let both = [before - now, largest - now, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
            // SAFETY: eight numbers.
            let scaled = unsafe { L::load(both.as_ptr()) }.exp().to_array();
            // Nothing was before the first tile.
            let (old, new) = (if before == f32::NEG_INFINITY { 0.0 } else { scaled[0] }, scaled[1]);
            self.scratch.sums[row] = [now, sum * old + tile_sum * new, 0.0, 0.0];
            let (out, tile) = (self.out[row * dim..].as_mut_ptr(), self.scratch.outputs[row * dim..].as_ptr());
            let (old, new) = (L::splat(old), L::splat(new));
            for (at, count) in eights(dim) {
                // SAFETY: rows of `dim` numbers.
                unsafe { put(new.mul_add(take(tile, at, count), old.mul(take(out, at, count))), out, at, count) };
            }
        }
    }
}
