//! `C = C * keep + A B` for small matrices of one head, where B's rows are the vectors: terms are added one after another,
//! ascending, so that each number's sum has one order however it is tiled.

use crate::lanes::{LANES, Lanes};

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
pub(crate) unsafe fn add_product<L: Lanes>(
    (m, n, k): (usize, usize, usize),
    a: Left,
    b: Rows,
    c: Rows,
    keep: impl Fn(usize) -> f32,
) {
    let mut column = 0;
    // SAFETY: tiles stay within `m` rows and `n` columns.
    unsafe {
        while column + 3 * LANES <= n {
            columns::<L, 3>((m, k), column, a, b, c, &keep);
            column += 3 * LANES;
        }
        while column + LANES <= n {
            columns::<L, 1>((m, k), column, a, b, c, &keep);
            column += LANES;
        }
        while column < n {
            for row in 0..m {
                let to = c.start.add(row * c.stride + column);
                let mut sum = if keep(row) == 0.0 { 0.0 } else { keep(row) * *to };
                for term in 0..k {
                    // As the lanes do it, so that a column's sum does not depend on where it lies.
                    let factor = L::splat(*a.start.add(row * a.row + term * a.step));
                    let other = L::splat(*b.start.add(term * b.stride + column));
                    sum = factor.mul_add(other, L::splat(sum)).to_array()[0];
                }
                *to = sum;
            }
            column += 1;
        }
    }
}

/// `V` vectors of every row.
#[inline(always)]
unsafe fn columns<L: Lanes, const V: usize>(
    (m, k): (usize, usize),
    column: usize,
    a: Left,
    b: Rows,
    c: Rows,
    keep: &impl Fn(usize) -> f32,
) {
    let mut row = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while row + 4 <= m {
            tile::<L, 4, V>(k, (row, column), a, b, c, keep);
            row += 4;
        }
        while row < m {
            tile::<L, 1, V>(k, (row, column), a, b, c, keep);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const V: usize>(
    k: usize,
    (row, column): (usize, usize),
    a: Left,
    b: Rows,
    c: Rows,
    keep: &impl Fn(usize) -> f32,
) {
    let mut sums = [[L::splat(0.0); V]; R];
    // SAFETY: as the caller promises.
    unsafe {
        let place = |r: usize, v: usize| c.start.add((row + r) * c.stride + column + v * LANES);
        for (r, sums) in sums.iter_mut().enumerate() {
            let kept = keep(row + r);
            if kept != 0.0 {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = L::splat(kept).mul(L::load(place(r, v)));
                }
            }
        }
        for term in 0..k {
            let mut others = [L::splat(0.0); V];
            for (v, other) in others.iter_mut().enumerate() {
                *other = L::load(b.start.add(term * b.stride + column + v * LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = L::splat(*a.start.add((row + r) * a.row + term * a.step));
                for (sum, other) in sums.iter_mut().zip(others) {
                    *sum = factor.mul_add(other, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(place(r, v));
            }
        }
    }
}
