//! Tiles: a few rows of inputs meet a few rows of weights, and every pair has its sum in registers. What the sums' order is:
//! [`product`](crate::product).

use std::marker::PhantomData;

use crate::lanes::{LANES, Lanes, Pair};

/// Numbers as they are stored; little-endian, as this machine must be where they are used in place.
pub(crate) trait Stored: Copy {
    const BYTES: usize;

    /// Eight numbers of each of two places.
    ///
    /// # Safety
    /// Both are good for eight stored numbers.
    unsafe fn load<P: Pair>(low: *const u8, high: *const u8) -> P;

    /// The first numbers of each of two places, then zeros.
    ///
    /// # Safety
    /// Both are good for `count` stored numbers; `count` is below 8.
    #[inline(always)]
    unsafe fn load_first<P: Pair>(low: *const u8, high: *const u8, count: usize) -> P {
        let mut arrays = [[0u8; LANES * 4]; 2];
        // SAFETY: eight stored numbers fit an array, and the caller has `count` of them.
        unsafe {
            std::ptr::copy_nonoverlapping(low, arrays[0].as_mut_ptr(), count * Self::BYTES);
            std::ptr::copy_nonoverlapping(high, arrays[1].as_mut_ptr(), count * Self::BYTES);
            Self::load(arrays[0].as_ptr(), arrays[1].as_ptr())
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F32;
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Stored for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<P: Pair>(low: *const u8, high: *const u8) -> P {
        // SAFETY: as the caller promises; loads need no alignment.
        unsafe { P::join(P::Half::load(low.cast()), P::Half::load(high.cast())) }
    }
}

impl Stored for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<P: Pair>(low: *const u8, high: *const u8) -> P {
        // SAFETY: as the caller promises; loads need no alignment.
        unsafe { P::load_bf16(low.cast(), high.cast()) }
    }
}

/// Bytes that memory gives at a time.
pub(crate) const LINE: usize = 64;

/// Weights that a tile meets, two outputs in a pair of vectors.
pub(crate) trait Weights: Copy {
    /// Eight numbers of both outputs of the `n`-th pair, from the `k`-th on, or the first `count` of them and zeros.
    ///
    /// # Safety
    /// They are there; `k` is a multiple of 8, and `count` at most 8.
    unsafe fn pair<P: Pair>(self, n: usize, k: usize, count: usize) -> P;

    /// Has what the `n`-th pair has there brought into a cache, if it lies in memory; any place will do.
    fn prefetch<P: Pair>(self, _n: usize, _k: usize) {}
}

/// Rows of weights as they are stored.
#[derive(Clone, Copy)]
pub(crate) struct InRows<S> {
    pub start: *const u8,
    /// Bytes from one output to the next.
    pub stride: usize,
    /// From a pair's first output to its second: `stride`, or 0 for the last one alone, which then counts twice.
    pub second: usize,
    /// How numbers are stored.
    pub stored: PhantomData<S>,
}

impl<S: Stored> Weights for InRows<S> {
    #[inline(always)]
    unsafe fn pair<P: Pair>(self, n: usize, k: usize, count: usize) -> P {
        // SAFETY: as the caller promises.
        unsafe {
            let low = self.start.add(2 * n * self.stride + k * S::BYTES);
            let high = low.add(self.second);
            if count == LANES { S::load(low, high) } else { S::load_first(low, high, count) }
        }
    }

    #[inline(always)]
    fn prefetch<P: Pair>(self, n: usize, k: usize) {
        if (k * S::BYTES).is_multiple_of(LINE) {
            for output in [2 * n, 2 * n + 1] {
                P::Half::prefetch(self.start.wrapping_add(output * self.stride + k * S::BYTES));
            }
        }
    }
}

/// Rows of inputs that meet weights in a tile.
#[derive(Clone, Copy)]
pub(crate) struct Meeting<W> {
    /// The first row of inputs, and numbers from one to the next.
    pub x: *const f32,
    pub x_stride: usize,
    /// The weights.
    pub w: W,
    /// Numbers of K.
    pub depth: usize,
}

/// Sums of `R` rows and `N` pairs of outputs go on by `depth` numbers.
///
/// # Safety
/// All rows are good for `depth` numbers.
#[inline(always)]
pub(crate) unsafe fn tile<P: Pair, W: Weights, const R: usize, const N: usize>(meeting: Meeting<W>, sums: &mut [[P; N]; R]) {
    let Meeting { x, x_stride, w, depth } = meeting;
    let whole = depth / LANES * LANES;
    // SAFETY: `k + 8 <= depth` in the loop, and the rest is `depth - whole` numbers.
    unsafe {
        let mut k = 0;
        while k < whole {
            // Few rows take weights as fast as memory gives them. The next tile's lie behind this one's, and a machine does not foresee that many short
            // rows.
            for n in 0..N {
                w.prefetch::<P>(n + N, k);
            }
            let mut weights = [P::splat(0.0); N];
            for (n, weight) in weights.iter_mut().enumerate() {
                *weight = w.pair(n, k, LANES);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let input = P::twice(x.add(r * x_stride + k));
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = input.mul_add(weight, *sum);
                }
            }
            k += LANES;
        }
        if whole < depth {
            let rest = depth - whole;
            for (r, sums) in sums.iter_mut().enumerate() {
                let input = P::Half::load_first(x.add(r * x_stride + whole), rest, 0.0);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = P::join(input, input).mul_add(w.pair(n, whole, rest), *sum);
                }
            }
        }
    }
}

/// Rows of fp32 numbers; `stride` from one to the next.
#[derive(Clone, Copy)]
pub(crate) struct Vectors {
    pub start: *const f32,
    pub stride: usize,
}

/// The products of every row of `x` with the first `upto(row)` rows of `w`, and with some more: `put(row, column, product)`.
/// Rows are taken four at a time, and all four as far as the last one goes.
///
/// # Safety
/// `rows` rows of `x`, and as many of `w` as the last of four rows asks for, are good for `depth` numbers.
#[inline(always)]
pub(crate) unsafe fn dots<P: Pair>(
    (rows, depth): (usize, usize),
    x: Vectors,
    w: Vectors,
    upto: impl Fn(usize) -> usize,
    mut put: impl FnMut(usize, usize, f32),
) {
    let mut row = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while row + 4 <= rows {
            dots_of::<P, 4>((row, depth), x, w, upto(row + 3), &mut put);
            row += 4;
        }
        while row < rows {
            dots_of::<P, 1>((row, depth), x, w, upto(row), &mut put);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn dots_of<P: Pair, const R: usize>(
    (row, depth): (usize, usize),
    x: Vectors,
    w: Vectors,
    columns: usize,
    put: &mut impl FnMut(usize, usize, f32),
) {
    let mut column = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while P::WIDE && column + 8 <= columns {
            dots_at::<P, R, 4>((row, column, depth), 8, x, w, put);
            column += 8;
        }
        while column < columns {
            dots_at::<P, R, 1>((row, column, depth), columns - column, x, w, put);
            column += 2;
        }
    }
}

/// `N` pairs of columns, or the `left` that there are.
#[inline(always)]
unsafe fn dots_at<P: Pair, const R: usize, const N: usize>(
    (row, column, depth): (usize, usize, usize),
    left: usize,
    x: Vectors,
    w: Vectors,
    put: &mut impl FnMut(usize, usize, f32),
) {
    let mut sums = [[P::splat(0.0); N]; R];
    let stride = 4 * w.stride;
    // SAFETY: as the caller promises.
    unsafe {
        let (x_start, start) = (x.start.add(row * x.stride), w.start.add(column * w.stride).cast());
        let w = InRows { start, stride, second: if left == 1 { 0 } else { stride }, stored: PhantomData::<F32> };
        tile::<P, _, R, N>(Meeting { x: x_start, x_stride: x.stride, w, depth }, &mut sums);
    }
    for (r, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            let (first, second) = sum.halves();
            put(row + r, column + 2 * n, first.sum());
            if left > 1 {
                put(row + r, column + 2 * n + 1, second.sum());
            }
        }
    }
}
