//! Products with weights: `out[r, n] = sum over k of x[r, k] w[n, k]`, accumulated in fp32.
//!
//! The order of every sum is the same whatever is computed beside it: lane `l` adds `x[k] w[k]` for `k = l, l + 8, ..` ascending,
//! then the lanes are added in a tree: `((0+4)+(2+6)) + ((1+5)+(3+7))`. A row of fewer than eight numbers at the end counts as
//! filled up with zeros.
//!
//! Two ways through the same sums. *Few rows* (decode) read every weight once, from memory, and are bound by that: tiles of up to
//! 6 rows hold as many outputs as registers allow. *Many rows* (prefill) are bound by arithmetic: a panel of 24 outputs by
//! 512 numbers of K (48 outputs where K is long) is widened once into a cache, two outputs side by side, and meets all rows of a block.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::Path;
use crate::dispatch::Kernel;
use crate::lanes::{LANES, Lanes, PAIR, Pair};
use crate::matrix::{Dtype, Matrix};
use crate::pool::{Pool, Shared};
use crate::tile::{Bf16, F32, InRows, LINE, Meeting, Stored, Weights, tile};

/// Outputs of a panel at most.
const PANEL: usize = 48;
/// Rows of a tile at most.
const ROWS: usize = 6;
/// Numbers of K of a panel: 24 x 512 x 4 = 48 KiB, which a core's caches hold beside the rows that meet it.
const DEPTH: usize = 512;
/// Rows that meet a panel before the next one: 128 x 512 x 4 = 256 KiB of inputs.
const BLOCK: usize = 128;
/// From so many rows on, panels are widened: below, the widening costs more than it saves.
const MANY: usize = 12;

/// Memory of one thread's products.
#[derive(Default)]
struct Scratch {
    /// `[PANEL / 2, DEPTH / 8, 2, 8]`: see [`Packed`].
    panel: Vec<f32>,
    /// Lanes of unfinished sums, `[BLOCK, PANEL, 8]`.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One product: `x` is `[rows, inputs]`, `out` `[rows, outputs]`; both are packed.
#[derive(Debug)]
pub struct Product<'a> {
    /// Inputs.
    pub x: &'a [f32],
    /// Weights.
    pub weights: Matrix<'a>,
    /// Outputs.
    pub out: &'a mut [f32],
}

/// Outputs of a panel: whole tiles, of 2 or 8 outputs. With a long K, rows come from far for every panel, and larger ones have more of them.
fn panel_of(weights: &Matrix<'_>) -> usize {
    if weights.inputs() > 2 * DEPTH { PANEL } else { PANEL / 2 }
}

/// Computes products side by side. Threads take panels of outputs in turn, so that each has its share of every product.
///
/// # Panics
/// Lengths that do not fit.
pub fn products(path: Path, pool: &mut Pool, products: &mut [Product<'_>]) {
    let jobs: Vec<_> = products.iter_mut().map(|Product { x, weights, out }| (*x, *weights, Shared::new(out))).collect();
    let panels = |weights: &Matrix<'_>| weights.outputs().div_ceil(panel_of(weights));
    let all = jobs.iter().map(|(_, weights, _)| panels(weights)).sum();
    pool.each(all, |mut panel| {
        for (x, weights, out) in &jobs {
            let count = panels(weights);
            if panel < count {
                let size = panel_of(weights);
                let outputs = panel * size..((panel + 1) * size).min(weights.outputs());
                // SAFETY: each panel is one thread's, and its columns of every row are nobody else's.
                return unsafe { columns(path, x, weights, outputs, out) };
            }
            panel -= count;
        }
    });
}

/// Some outputs of a product, for all rows. `out` is `[rows, weights.outputs()]`.
///
/// # Safety
/// Nobody else reads or writes these columns of `out` meanwhile.
///
/// # Panics
/// Lengths that do not fit.
unsafe fn columns(path: Path, x: &[f32], weights: &Matrix<'_>, outputs: Range<usize>, out: &Shared<'_>) {
    let rows = x.len() / weights.inputs().max(1);
    assert!(outputs.start <= outputs.end && outputs.end <= weights.outputs(), "outputs that the matrix has");
    assert!(outputs.len() <= PANEL, "a panel of outputs");
    assert_eq!(x.len(), rows * weights.inputs(), "whole rows");
    assert_eq!(out.len(), rows * weights.outputs(), "a place for each output");
    if rows == 0 || outputs.is_empty() {
        return;
    }
    let out = out.place(0);
    SCRATCH.with_borrow_mut(|scratch| path.run(Columns { x, weights, outputs, out, rows, scratch }));
}

/// See [`columns`]. The outputs are a panel at most.
struct Columns<'a> {
    x: &'a [f32],
    weights: &'a Matrix<'a>,
    outputs: Range<usize>,
    out: *mut f32,
    rows: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(mut self) {
        let (rows, dtype) = (self.rows, self.weights.dtype());
        // SAFETY: `columns` has checked that rows, outputs and places fit each other.
        unsafe {
            match (rows >= MANY, dtype) {
                (true, Dtype::F32) => self.many::<P, F32>(),
                (true, Dtype::Bf16) => self.many::<P, Bf16>(),
                (false, Dtype::F32) => self.few::<P, F32>(),
                (false, Dtype::Bf16) => self.few::<P, Bf16>(),
            }
        }
    }
}

/// A piece of a panel, widened: eight numbers of a pair's first output, eight of its second, the next eight of the first, and so on; zeros fill up
/// the last eight.
#[derive(Clone, Copy)]
struct Packed(*const f32);

impl Weights for Packed {
    #[inline(always)]
    unsafe fn pair<P: Pair>(self, n: usize, k: usize, _: usize) -> P {
        // SAFETY: as the caller promises.
        unsafe { P::load(self.0.add(n * 2 * DEPTH + 2 * k)) }
    }
}

/// Calls a method for so many rows, at most [`ROWS`], and the pairs of outputs for which there are registers beside them, both as constants.
macro_rules! for_rows {
    ($count:expr, $self:ident.$method:ident::<$pair:ty $(, $more:ty)?>($($argument:expr),*)) => {
        match ($count, <$pair>::WIDE) {
            (1, _) => $self.$method::<$pair, $($more,)? 1, 4>($($argument),*),
            (2, true) => $self.$method::<$pair, $($more,)? 2, 4>($($argument),*),
            (2, false) => $self.$method::<$pair, $($more,)? 2, 3>($($argument),*),
            (3, true) => $self.$method::<$pair, $($more,)? 3, 4>($($argument),*),
            (3, false) => $self.$method::<$pair, $($more,)? 3, 2>($($argument),*),
            (4, true) => $self.$method::<$pair, $($more,)? 4, 4>($($argument),*),
            (4, false) => $self.$method::<$pair, $($more,)? 4, 1>($($argument),*),
            (5, true) => $self.$method::<$pair, $($more,)? 5, 4>($($argument),*),
            (5, false) => $self.$method::<$pair, $($more,)? 5, 1>($($argument),*),
            (_, true) => $self.$method::<$pair, $($more,)? 6, 4>($($argument),*),
            (_, false) => $self.$method::<$pair, $($more,)? 6, 1>($($argument),*),
        }
    };
}

/// Rows in groups of nearly the same size, at most [`ROWS`].
#[inline(always)]
fn groups(rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let (mut row, count) = (rows.start, rows.len().div_ceil(ROWS));
    (0..count).map(move |group| {
        let size = (rows.end - row).div_ceil(count - group);
        row += size;
        (row - size, size)
    })
}

impl Columns<'_> {
    /// Rows of weights from an output on, in pairs.
    ///
    /// # Safety
    /// The output is there.
    #[inline(always)]
    unsafe fn in_rows<S: Stored>(&self, output: usize, alone: bool) -> InRows<S> {
        let stride = self.weights.inputs() * S::BYTES;
        // SAFETY: as the caller promises.
        let start = unsafe { self.weights.start().add(output * stride) };
        InRows { start, stride, second: if alone { 0 } else { stride }, stored: PhantomData }
    }

    /// A tile over all of K, written out: `count` outputs.
    ///
    /// # Safety
    /// Rows and outputs from these on are there.
    #[inline(always)]
    unsafe fn finished<P: Pair, S: Stored, const R: usize, const N: usize>(&self, row: usize, output: usize, count: usize) {
        let depth = self.weights.inputs();
        let mut sums = [[P::splat(0.0); N]; R];
        // SAFETY: as the caller promises.
        unsafe {
            let (x, w) = (self.x.as_ptr().add(row * depth), self.in_rows::<S>(output, count == 1));
            tile::<P, _, R, N>(Meeting { x, x_stride: depth, w, depth }, &mut sums);
            for (r, sums) in sums.iter().enumerate() {
                let mut lanes = [[0.0; PAIR]; N];
                for (sum, lanes) in sums.iter().zip(&mut lanes) {
                    sum.store(lanes.as_mut_ptr());
                }
                add_lanes::<P::Half>(lanes.as_ptr().cast(), count, self.out.add((row + r) * self.weights.outputs() + output));
            }
        }
    }

    /// All outputs of `R` rows, `N` pairs at a time, and the last ones a pair at a time.
    ///
    /// # Safety
    /// The rows are there.
    #[inline(always)]
    unsafe fn row_tiles<P: Pair, S: Stored, const R: usize, const N: usize>(&self, row: usize, outputs: Range<usize>) {
        let mut output = outputs.start;
        // SAFETY: as the caller promises, and outputs stay in their range.
        unsafe {
            while output + 2 * N <= outputs.end {
                self.finished::<P, S, R, N>(row, output, 2 * N);
                output += 2 * N;
            }
            while output < outputs.end {
                self.finished::<P, S, R, 1>(row, output, 2.min(outputs.end - output));
                output += 2;
            }
        }
    }

    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn few<P: Pair, S: Stored>(&self) {
        // Outputs in panels, so that the rows after the first ones find the weights in a cache.
        for (row, count) in groups(0..self.rows) {
            // SAFETY: as the caller promises.
            unsafe { for_rows!(count, self.row_tiles::<P, S>(row, self.outputs.clone())) }
        }
    }

    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn many<P: Pair, S: Stored>(&mut self) {
        let depth = self.weights.inputs();
        let mut scratch = std::mem::take(self.scratch);
        scratch.panel.resize(PANEL * DEPTH, 0.0);
        scratch.sums.resize(BLOCK * PANEL * LANES, 0.0);
        for first in (0..self.rows).step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(self.rows);
            for k in (0..depth).step_by(DEPTH) {
                let piece = k..(k + DEPTH).min(depth);
                // SAFETY: as the caller promises; the scratch memory holds a panel, and the sums of a block.
                unsafe {
                    self.pack::<P, S>(piece.clone(), &mut scratch.panel);
                    for (row, count) in groups(rows.clone()) {
                        self.prefetch::<P>(piece.clone(), row - first..row - first + count, rows.len());
                        // All rows of the block meet the piece, and are written out after the last one.
                        for_rows!(count, self.meet::<P>((row, row - first), &piece, &mut scratch));
                    }
                }
            }
        }
        *self.scratch = scratch;
    }

    /// Copies a piece of the panel's rows, widened.
    ///
    /// # Safety
    /// The piece is there.
    #[inline(always)]
    unsafe fn pack<P: Pair, S: Stored>(&self, piece: Range<usize>, to: &mut [f32]) {
        for (output, to) in self.outputs.clone().step_by(2).zip(to.chunks_exact_mut(2 * DEPTH)) {
            // SAFETY: as the caller promises.
            let rows = unsafe { self.in_rows::<S>(output, output + 1 == self.outputs.end) };
            for k in (0..piece.len()).step_by(LANES) {
                // SAFETY: as the caller promises; a piece begins at a multiple of eight, and is at most `DEPTH` long.
                unsafe {
                    let eight: P = rows.pair(0, piece.start + k, LANES.min(piece.len() - k));
                    eight.store(to.as_mut_ptr().add(2 * k));
                }
            }
        }
    }

    /// Has what is packed after a piece brought into a cache while rows meet this one: a share of it for these of all rows.
    #[inline(always)]
    fn prefetch<P: Pair>(&self, piece: Range<usize>, rows: Range<usize>, all: usize) {
        let (depth, count, bytes) = (self.weights.inputs(), self.outputs.len(), self.weights.dtype().bytes());
        let (output, k) = if piece.end < depth { (self.outputs.start, piece.end) } else { (self.outputs.end, 0) };
        for output in output + rows.start * count / all..output + rows.end * count / all {
            let row = self.weights.start().wrapping_add((output * depth + k) * bytes);
            for line in (0..DEPTH.min(depth - k) * bytes).step_by(LINE) {
                P::Half::prefetch(row.wrapping_add(line));
            }
        }
    }

    /// `R` rows, the first of them `nth` in its block, meet a piece of a panel, `N` pairs of outputs at a time, and the last ones one by one.
    ///
    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn meet<P: Pair, const R: usize, const N: usize>(
        &self,
        (row, nth): (usize, usize),
        piece: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let depth = self.weights.inputs();
        // Sums wait there for the next piece of K, or for their eight lanes to be added, which goes faster for eight outputs at once.
        let sums = scratch.sums[nth * PANEL * LANES..][..R * PANEL * LANES].as_mut_ptr();
        let x = self.x[row * depth + piece.start..].as_ptr();
        let (mut n, outputs) = (0, self.outputs.len());
        let pairs = outputs.div_ceil(2);
        // SAFETY: as the caller promises.
        unsafe {
            while n + N <= pairs {
                self.meet_tile::<P, R, N>((x, sums), n, piece, &scratch.panel);
                n += N;
            }
            while n < pairs {
                self.meet_tile::<P, R, 1>((x, sums), n, piece, &scratch.panel);
                n += 1;
            }
            if piece.end == depth {
                for r in 0..R {
                    let out = self.out.add((row + r) * self.weights.outputs() + self.outputs.start);
                    add_lanes::<P::Half>(sums.add(r * PANEL * LANES), outputs, out);
                }
            }
        }
    }

    /// One tile of a panel, from the `n`-th pair on: goes on with its sums from the piece before.
    ///
    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn meet_tile<P: Pair, const R: usize, const N: usize>(
        &self,
        (x, kept): (*const f32, *mut f32),
        n: usize,
        piece: &Range<usize>,
        panel: &[f32],
    ) {
        let place = |r: usize, at: usize| (r * PANEL + 2 * (n + at)) * LANES;
        let mut sums = [[P::splat(0.0); N]; R];
        // SAFETY: as the caller promises.
        unsafe {
            if piece.start > 0 {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        *sum = P::load(kept.add(place(r, at)));
                    }
                }
            }
            let w = Packed(panel.as_ptr().add(n * 2 * DEPTH));
            tile::<P, _, R, N>(Meeting { x, x_stride: self.weights.inputs(), w, depth: piece.len() }, &mut sums);
            for (r, sums) in sums.iter().enumerate() {
                for (at, sum) in sums.iter().enumerate() {
                    sum.store(kept.add(place(r, at)));
                }
            }
        }
    }
}

/// Writes the sums of so many vectors.
///
/// # Safety
/// The vectors are there, and as many places.
#[inline(always)]
unsafe fn add_lanes<L: Lanes>(vectors: *const f32, count: usize, out: *mut f32) {
    let mut at = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while at + LANES <= count {
            L::sums(vectors.add(at * LANES)).store(out.add(at));
            at += LANES;
        }
        while at < count {
            *out.add(at) = L::load(vectors.add(at * LANES)).sum();
            at += 1;
        }
    }
}
