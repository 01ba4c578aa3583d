//! Tiles: a few rows of inputs meet a few rows of weights, and every pair has its sum in registers. What the sums' order is:
//! [`product`](crate::product).

use crate::lanes::{LANES, Lanes};

/// Numbers as they are stored; little-endian, as this machine must be where they are used in place.
pub(crate) trait Stored {
    const BYTES: usize;

    /// # Safety
    /// `from` is good for eight stored numbers.
    unsafe fn load<L: Lanes>(from: *const u8) -> L;

    /// The first numbers, then zeros.
    ///
    /// # Safety
    /// `from` is good for `count` stored numbers; `count` is below 8.
    #[inline(always)]
    unsafe fn load_first<L: Lanes>(from: *const u8, count: usize) -> L {
        let mut array = [0u8; LANES * 4];
        // SAFETY: eight stored numbers fit the array, and the caller has `count` of them.
        unsafe {
            std::ptr::copy_nonoverlapping(from, array.as_mut_ptr(), count * Self::BYTES);
            Self::load(array.as_ptr())
        }
    }
}

pub(crate) struct F32;
pub(crate) struct Bf16;

impl Stored for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: as the caller promises; loads need no alignment.
        unsafe { L::load(from.cast()) }
    }
}

impl Stored for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: as the caller promises; loads need no alignment.
        unsafe { L::load_bf16(from.cast()) }
    }
}

/// Bytes that memory gives at a time.
const LINE: usize = 64;

/// Rows of inputs and of weights that meet in a tile, from one place of K on.
#[derive(Clone, Copy)]
pub(crate) struct Meeting {
    /// The first row of inputs, and numbers from one to the next.
    pub x: *const f32,
    pub x_stride: usize,
    /// The first row of weights, and bytes from one to the next.
    pub w: *const u8,
    pub w_stride: usize,
    /// Numbers of K.
    pub depth: usize,
}

/// Sums of `R` rows and `N` outputs go on by `depth` numbers.
///
/// # Safety
/// All rows are good for `depth` numbers.
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, W: Stored, const R: usize, const N: usize>(meeting: Meeting, sums: &mut [[L; N]; R]) {
    let Meeting { x, x_stride, w, w_stride, depth } = meeting;
    let whole = depth / LANES * LANES;
    // SAFETY: `k + 8 <= depth` in the loop, and the rest is `depth - whole` numbers.
    unsafe {
        let mut k = 0;
        while k < whole {
            // One or two rows take weights as fast as memory gives them. The next tile's lie behind this one's, and a machine does not foresee
            // that many short rows.
            if R <= 2 && (k * W::BYTES).is_multiple_of(LINE) {
                for n in 0..N {
                    L::prefetch(w.wrapping_add((n + N) * w_stride + k * W::BYTES));
                }
            }
            let mut weights = [L::splat(0.0); N];
            for (n, weight) in weights.iter_mut().enumerate() {
                *weight = W::load::<L>(w.add(n * w_stride + k * W::BYTES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let input = L::load(x.add(r * x_stride + k));
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = input.mul_add(weight, *sum);
                }
            }
            k += LANES;
        }
        if whole < depth {
            for (r, sums) in sums.iter_mut().enumerate() {
                let input = L::load_first(x.add(r * x_stride + whole), depth - whole, 0.0);
                for (n, sum) in sums.iter_mut().enumerate() {
                    let weight = W::load_first::<L>(w.add(n * w_stride + whole * W::BYTES), depth - whole);
                    *sum = input.mul_add(weight, *sum);
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
pub(crate) unsafe fn dots<L: Lanes>(
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
            dots_of::<L, 4>((row, depth), x, w, upto(row + 3), &mut put);
            row += 4;
        }
        while row < rows {
            dots_of::<L, 1>((row, depth), x, w, upto(row), &mut put);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn dots_of<L: Lanes, const R: usize>(
    (row, depth): (usize, usize),
    x: Vectors,
    w: Vectors,
    columns: usize,
    put: &mut impl FnMut(usize, usize, f32),
) {
    let mut column = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while column + 3 <= columns {
            dots_at::<L, R, 3>((row, column, depth), x, w, put);
            column += 3;
        }
        while column < columns {
            dots_at::<L, R, 1>((row, column, depth), x, w, put);
            column += 1;
        }
    }
}

#[inline(always)]
unsafe fn dots_at<L: Lanes, const R: usize, const N: usize>(
    (row, column, depth): (usize, usize, usize),
    x: Vectors,
    w: Vectors,
    put: &mut impl FnMut(usize, usize, f32),
) {
    let mut sums = [[L::splat(0.0); N]; R];
    // SAFETY: as the caller promises.
    unsafe {
        let (from, weights) = (x.start.add(row * x.stride), w.start.add(column * w.stride).cast());
        tile::<L, F32, R, N>(Meeting { x: from, x_stride: x.stride, w: weights, w_stride: 4 * w.stride, depth }, &mut sums);
    }
    for (r, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            put(row + r, column + n, sum.sum());
        }
    }
}

/// # Safety
/// `from` is good for `to.len()` bf16 numbers.
#[inline(always)]
pub(crate) unsafe fn widen_row<L: Lanes>(from: *const u8, to: &mut [f32]) {
    let whole = to.len() / LANES * LANES;
    // SAFETY: within both.
    unsafe {
        for k in (0..whole).step_by(LANES) {
            Bf16::load::<L>(from.add(2 * k)).store(to.as_mut_ptr().add(k));
        }
        if whole < to.len() {
            let rest = to.len() - whole;
            Bf16::load_first::<L>(from.add(2 * whole), rest).store_first(to.as_mut_ptr().add(whole), rest);
        }
    }
}
