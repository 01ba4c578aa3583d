//! Lightning attention of one head: a state `S`, `[key channel, value channel]`, that decays by `e^-s` a token.
//!
//! ```text
//! recurrence   S_t = e^-s S_{t-1} + k_t^T v_t                  o_t = q_t S_t
//! block of m   o_j = e^{-s j} q_j S + sum_{i<=j} e^{-s (j-i)} (q_j . k_i) v_i
//!              S'  = e^{-s m} S + sum_i e^{-s (m-i)} k_i^T v_i
//! ```
//! Only decays below 1 are formed: `e^{s i}` would overflow within a block.

use std::cell::RefCell;

use crate::Path;
use crate::dispatch::Kernel;
use crate::elementwise::{eights, put, put_pair, take, take_pair};
use crate::lanes::{Lanes, PAIR, Pair};
use crate::outer::{Left, Rows, add_product};
use crate::tile::{Vectors, dots};

/// Tokens of one block. Work per token is `4 d (block + d)`: at d = 128 less than with larger blocks, and each state is read
/// and written once in 64 tokens.
pub const BLOCK: usize = 64;

thread_local! {
    /// `[BLOCK, BLOCK]`, then `[BLOCK, dim]`.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `e^{-s j}` for j = 0 to [`BLOCK`], of one head.
#[derive(Debug, Clone)]
pub struct Decays([f32; BLOCK + 1]);

impl Decays {
    /// Of a slope `s`.
    pub fn of(slope: f32) -> Self {
        Self(std::array::from_fn(|j| (-slope * j as f32).exp()))
    }
}

/// Rows of one head: `q`, `k` and `v` of a token lie side by side, `dim` numbers each; the next token is `stride` numbers on.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// From the first token's `q` on.
    pub qkv: &'a [f32],
    /// From one token to the next.
    pub stride: usize,
    /// Channels.
    pub dim: usize,
}

impl Head<'_> {
    fn check(&self, tokens: usize, state: &[f32], out: usize, out_stride: usize) {
        let (dim, last) = (self.dim, tokens.saturating_sub(1));
        assert!(dim > 0 && tokens > 0, "something to compute");
        assert!(self.stride >= 3 * dim && out_stride >= dim, "tokens do not overlap");
        assert!(self.qkv.len() >= last * self.stride + 3 * dim, "queries, keys and values of {tokens} tokens");
        assert_eq!(state.len(), dim * dim, "a state");
        assert!(out >= last * out_stride + dim, "places for {tokens} tokens");
    }
}

/// One token by recurrence: the state goes on by it, and `out`, `[dim]`, is its output.
///
/// # Panics
/// Lengths that do not fit.
pub fn step(path: Path, head: Head<'_>, decays: &Decays, state: &mut [f32], out: &mut [f32]) {
    head.check(1, state, out.len(), head.dim);
    path.run(Step { head, decay: decays.0[1], state: state.as_mut_ptr(), out: out.as_mut_ptr() });
}

/// Up to [`BLOCK`] tokens in block form; output `j` lies at `out[j * stride..]`.
///
/// # Panics
/// Lengths that do not fit, or more tokens.
pub fn block(
    path: Path,
    (head, tokens): (Head<'_>, usize),
    decays: &Decays,
    state: &mut [f32],
    (out, stride): (&mut [f32], usize),
) {
    assert!(tokens <= BLOCK, "{tokens} tokens in a block of {BLOCK}");
    head.check(tokens, state, out.len(), stride);
    let (state, out) = (state.as_mut_ptr(), out.as_mut_ptr());
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(BLOCK * (BLOCK + head.dim), 0.0);
        path.run(Block { head, tokens, decays, state, out, stride, scratch });
    });
}

struct Step<'a> {
    head: Head<'a>,
    decay: f32,
    state: *mut f32,
    out: *mut f32,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let mut column = 0;
        // SAFETY: shapes were checked, and columns stay below `dim`.
        unsafe {
            while P::WIDE && column + 4 * PAIR <= self.head.dim {
                self.columns::<P, 4>(column, PAIR);
                column += 4 * PAIR;
            }
            while column + 2 * PAIR <= self.head.dim {
                self.columns::<P, 2>(column, PAIR);
                column += 2 * PAIR;
            }
            while column < self.head.dim {
                self.columns::<P, 1>(column, PAIR.min(self.head.dim - column));
                column += PAIR;
            }
        }
    }
}

impl Step<'_> {
    /// # Safety
    /// `V` pairs of vectors from this column on are there, each of `count` numbers.
    #[inline(always)]
    unsafe fn columns<P: Pair, const V: usize>(&self, column: usize, count: usize) {
        let (dim, qkv) = (self.head.dim, self.head.qkv.as_ptr());
        let decay = P::splat(self.decay);
        let (mut values, mut sums) = ([P::splat(0.0); V], [P::splat(0.0); V]);
        // SAFETY: as the caller promises; the state is this call's alone.
        unsafe {
            for (v, value) in values.iter_mut().enumerate() {
                *value = take_pair(qkv.add(2 * dim), column + v * PAIR, count);
            }
            for channel in 0..dim {
                let (query, key) = (P::splat(*qkv.add(channel)), P::splat(*qkv.add(dim + channel)));
                for (v, (value, sum)) in values.iter().zip(&mut sums).enumerate() {
                    let place = channel * dim + column + v * PAIR;
                    let now = key.mul_add(*value, decay.mul(take_pair(self.state, place, count)));
                    put_pair(now, self.state, place, count);
                    *sum = query.mul_add(now, *sum);
                }
            }
            for (v, sum) in sums.iter().enumerate() {
                put_pair(*sum, self.out, column + v * PAIR, count);
            }
        }
    }
}

struct Block<'a> {
    head: Head<'a>,
    tokens: usize,
    decays: &'a Decays,
    state: *mut f32,
    out: *mut f32,
    stride: usize,
    scratch: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let Self { head: Head { qkv, stride, dim }, tokens, decays: Decays(decays), state, out, stride: out_stride, scratch } =
            self;
        let (query, key, value) = (qkv.as_ptr(), qkv[dim..].as_ptr(), qkv[2 * dim..].as_ptr());
        let values = Rows { start: value.cast_mut(), stride };
        let (out, state) = (Rows { start: out, stride: out_stride }, Rows { start: state, stride: dim });
        let (within, left) = scratch.split_at_mut(BLOCK * BLOCK);
        // SAFETY: shapes were checked; outputs, state, scratch memory and inputs are different memory.
        unsafe {
            // Scores of this block, decayed; zeros above the diagonal.
            let (queries, keys) = (Vectors { start: query, stride }, Vectors { start: key, stride });
            let upto = |j: usize| (j + 1).min(tokens);
            dots::<P>((tokens, dim), queries, keys, upto, |j, i, dot| {
                within[j * BLOCK + i] = if i <= j { decays[j - i] * dot } else { 0.0 };
            });
            // Token j stands at place j + 1 of its block: the state before it has decayed so often.
            add_product::<P>((tokens, dim, dim), Left { start: query, row: stride, step: 1 }, state, out, |_| 0.0);
            // Four rows go as far as their last: what lies above the diagonal was zeroed for them.
            let weights = Left { start: within.as_ptr(), row: BLOCK, step: 1 };
            for first in (0..tokens).step_by(4) {
                let rows = 4.min(tokens - first);
                let weights = Left { start: weights.start.add(first * BLOCK), ..weights };
                let out = Rows { start: out.start.add(first * out_stride), ..out };
                add_product::<P>((rows, dim, first + rows), weights, values, out, |j| decays[first + j + 1]);
            }
            for (i, left) in left.chunks_exact_mut(dim).enumerate().take(tokens) {
                let decay = P::Half::splat(decays[tokens - 1 - i]);
                for (at, count) in eights(dim) {
                    put(decay.mul(take(key.add(i * stride), at, count)), left.as_mut_ptr(), at, count);
                }
            }
            add_product::<P>((dim, dim, tokens), Left { start: left.as_ptr(), row: 1, step: dim }, values, state, |_| {
                decays[tokens]
            });
        }
    }
}
