//! `C = C * keep + A B` for small matrices of one head, where B's rows are the vectors: terms are added one after another,
//! ascending, so that each number's sum has one order however it is tiled.

use crate::elementwise::{put_pair, take_pair};
use crate::lanes::{PAIR, Pair};

/// The left factor: number (m, k) lies at `start + m * row + k * step`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub start: *const f32,
    pub row: usize,
    pub step: usize,
}

/// A matrix by rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub start: *mut f32,
    pub stride: usize,
}

/// `c[m, :] = keep[m] * c[m, :] + sum over k of a[m, k] b[k, :]`, for `m` rows of `n` numbers and `k` terms. Where `keep` is 0 what
/// was there does not count, not even if it is no number.
///
/// # Safety
/// All places are there, and nobody else uses those of `c`; `c` overlaps neither factor.
#[inline(always)]
pub(crate) unsafe fn add_product<P: Pair>(
    (m, n, k): (usize, usize, usize),
    a: Left,
    b: Rows,
    c: Rows,
    keep: impl Fn(usize) -> f32,
) {
    let mut column = 0;
    // SAFETY: tiles stay within `m` rows and `n` columns.
    unsafe {
        while P::WIDE && column + 4 * PAIR <= n {
            columns::<P, 4>((m, k), (column, PAIR), a, b, c, &keep);
            column += 4 * PAIR;
        }
        while column < n {
            columns::<P, 1>((m, k), (column, PAIR.min(n - column)), a, b, c, &keep);
            column += PAIR;
        }
    }
}

/// `V` pairs of vectors of every row, each of `count` numbers.
#[inline(always)]
unsafe fn columns<P: Pair, const V: usize>(
    (m, k): (usize, usize),
    column: (usize, usize),
    a: Left,
    b: Rows,
    c: Rows,
    keep: &impl Fn(usize) -> f32,
) {
    let mut row = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while row + 4 <= m {
            tile::<P, 4, V>(k, row, column, a, b, c, keep);
            row += 4;
        }
        while row < m {
            tile::<P, 1, V>(k, row, column, a, b, c, keep);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<P: Pair, const R: usize, const V: usize>(
    k: usize,
    row: usize,
    (column, count): (usize, usize),
    a: Left,
    b: Rows,
    c: Rows,
    keep: &impl Fn(usize) -> f32,
) {
    let mut sums = [[P::splat(0.0); V]; R];
    // SAFETY: as the caller promises.
    unsafe {
        let place = |r: usize, v: usize| (row + r) * c.stride + column + v * PAIR;
        for (r, sums) in sums.iter_mut().enumerate() {
            let kept = keep(row + r);
            if kept != 0.0 {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = P::splat(kept).mul(take_pair(c.start, place(r, v), count));
                }
            }
        }
        for term in 0..k {
            let mut others = [P::splat(0.0); V];
            for (v, other) in others.iter_mut().enumerate() {
                *other = take_pair(b.start, term * b.stride + column + v * PAIR, count);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = P::splat(*a.start.add((row + r) * a.row + term * a.step));
                for (sum, other) in sums.iter_mut().zip(others) {
                    *sum = factor.mul_add(other, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                put_pair(*sum, c.start, place(r, v), count);
            }
        }
    }
}
