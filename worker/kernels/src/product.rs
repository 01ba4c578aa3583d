//! Products with weights: `out[r, n] = sum over k of x[r, k] w[n, k]`, accumulated in fp32.
//!
//! The order of every sum is the same whatever is computed beside it: lane `l` adds `x[k] w[k]` for `k = l, l + 8, ..` ascending,
//! then the lanes are added in a tree: `((0+4)+(2+6)) + ((1+5)+(3+7))`. A row of fewer than eight numbers at the end counts as
//! filled up with zeros.
//!
//! Two ways through the same sums. *Few rows* (decode) read every weight once, from memory, and are bound by that: tiles of up to
//! 4 rows hold as many outputs as registers allow. *Many rows* (prefill) are bound by arithmetic: a panel of 24 outputs by
//! 512 numbers of K is widened once into a cache and meets all rows of a block.

use std::cell::RefCell;
use std::ops::Range;

use crate::Path;
use crate::dispatch::Kernel;
use crate::lanes::{LANES, Lanes};
use crate::matrix::{Dtype, Matrix};
use crate::pool::{Pool, Shared};
use crate::tile::{Bf16, F32, Meeting, Stored, tile, widen_row};

/// Outputs of a panel: a multiple of the outputs of every tile.
const PANEL: usize = 24;
/// Numbers of K of a panel: 24 x 512 x 4 = 48 KiB, which a core's caches hold beside the rows that meet it.
const DEPTH: usize = 512;
/// Rows that meet a panel before the next one: 128 x 512 x 4 = 256 KiB of inputs.
const BLOCK: usize = 128;
/// From so many rows on, panels are widened: below, the widening costs more than it saves.
const MANY: usize = 12;

/// Memory of one thread's products.
#[derive(Default)]
struct Scratch {
    /// `[PANEL, DEPTH]`.
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

/// Computes products side by side. Threads take panels of outputs in turn, so that each has its share of every product.
///
/// # Panics
/// Lengths that do not fit.
pub fn products(path: Path, pool: &mut Pool, products: &mut [Product<'_>]) {
    let jobs: Vec<_> = products.iter_mut().map(|Product { x, weights, out }| (*x, *weights, Shared::new(out))).collect();
    let panels = |weights: &Matrix<'_>| weights.outputs().div_ceil(PANEL);
    let all = jobs.iter().map(|(_, weights, _)| panels(weights)).sum();
    pool.each(all, |mut panel| {
        for (x, weights, out) in &jobs {
            let count = panels(weights);
            if panel < count {
                let outputs = panel * PANEL..((panel + 1) * PANEL).min(weights.outputs());
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
    assert_eq!(x.len(), rows * weights.inputs(), "whole rows");
    assert_eq!(out.len(), rows * weights.outputs(), "a place for each output");
    if rows == 0 || outputs.is_empty() {
        return;
    }
    let out = out.place(0);
    SCRATCH.with_borrow_mut(|scratch| path.run(Columns { x, weights, outputs, out, rows, scratch }));
}

/// See [`columns`].
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
    fn run<L: Lanes>(mut self) {
        let (rows, dtype) = (self.rows, self.weights.dtype());
        // SAFETY: `columns` has checked that rows, outputs and places fit each other.
        unsafe {
            match (rows >= MANY, dtype) {
                (true, _) => self.many::<L>(),
                (false, Dtype::F32) => self.few::<L, F32>(),
                (false, Dtype::Bf16) => self.few::<L, Bf16>(),
            }
        }
    }
}

impl Columns<'_> {
    /// A tile over all of K, written out.
    ///
    /// # Safety
    /// Rows and outputs from these on are there.
    #[inline(always)]
    unsafe fn finished<L: Lanes, W: Stored, const R: usize, const N: usize>(&self, row: usize, output: usize) {
        let depth = self.weights.inputs();
        let mut sums = [[L::splat(0.0); N]; R];
        // SAFETY: as the caller promises.
        unsafe {
            let x = self.x.as_ptr().add(row * depth);
            let w_stride = depth * W::BYTES;
            let w = self.weights.start().add(output * w_stride);
            tile::<L, W, R, N>(Meeting { x, x_stride: depth, w, w_stride, depth }, &mut sums);
            for (r, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    *self.out.add((row + r) * self.weights.outputs() + output + n) = sum.sum();
                }
            }
        }
    }

    /// All outputs of `R` rows, `N` at a time.
    ///
    /// # Safety
    /// The rows are there.
    #[inline(always)]
    unsafe fn row_tiles<L: Lanes, W: Stored, const R: usize, const N: usize>(&self, row: usize, outputs: Range<usize>) {
        let mut output = outputs.start;
        // SAFETY: as the caller promises, and outputs stay in their range.
        unsafe {
            while output + N <= outputs.end {
                self.finished::<L, W, R, N>(row, output);
                output += N;
            }
            while output < outputs.end {
                self.finished::<L, W, R, 1>(row, output);
                output += 1;
            }
        }
    }

    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn few<L: Lanes, W: Stored>(&self) {
        // Outputs in panels, so that the rows after the first four find the weights in a cache.
        let mut start = self.outputs.start;
        while start < self.outputs.end {
            let panel = start..(start + PANEL).min(self.outputs.end);
            let mut row = 0;
            // SAFETY: as the caller promises.
            unsafe {
                while row + 4 <= self.rows {
                    self.row_tiles::<L, W, 4, 3>(row, panel.clone());
                    row += 4;
                }
                match self.rows - row {
                    3 => self.row_tiles::<L, W, 3, 4>(row, panel),
                    2 => self.row_tiles::<L, W, 2, 6>(row, panel),
                    1 => self.row_tiles::<L, W, 1, 8>(row, panel),
                    _ => {}
                }
            }
            start += PANEL;
        }
    }

    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn many<L: Lanes>(&mut self) {
        let depth = self.weights.inputs();
        let mut scratch = std::mem::take(self.scratch);
        scratch.panel.resize(PANEL * DEPTH, 0.0);
        scratch.sums.resize(BLOCK * PANEL * LANES, 0.0);
        for first in (0..self.rows).step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(self.rows);
            for start in self.outputs.clone().step_by(PANEL) {
                let panel = start..(start + PANEL).min(self.outputs.end);
                for k in (0..depth).step_by(DEPTH) {
                    let piece = k..(k + DEPTH).min(depth);
                    // SAFETY: as the caller promises; the scratch memory holds a panel, and the sums of a block.
                    unsafe {
                        self.widen::<L>(panel.clone(), piece.clone(), &mut scratch.panel);
                        self.meet::<L>(rows.clone(), panel.clone(), piece, &mut scratch);
                    }
                }
            }
        }
        *self.scratch = scratch;
    }

    /// Copies a piece of the panel's rows, widened: `[PANEL, DEPTH]`.
    ///
    /// # Safety
    /// The piece is there.
    #[inline(always)]
    unsafe fn widen<L: Lanes>(&self, panel: Range<usize>, piece: Range<usize>, to: &mut [f32]) {
        let (depth, bytes) = (self.weights.inputs(), self.weights.dtype().bytes());
        for (n, output) in panel.enumerate() {
            // SAFETY: as the caller promises.
            let from = unsafe { self.weights.start().add((output * depth + piece.start) * bytes) };
            let to = &mut to[n * DEPTH..n * DEPTH + piece.len()];
            // SAFETY: the row's piece is there.
            unsafe {
                match self.weights.dtype() {
                    Dtype::F32 => std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().cast(), to.len() * 4),
                    Dtype::Bf16 => widen_row::<L>(from, to),
                }
            }
        }
    }

    /// All rows of a block meet a piece of a panel, and are written out after the last one.
    ///
    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn meet<L: Lanes>(&self, rows: Range<usize>, panel: Range<usize>, piece: Range<usize>, scratch: &mut Scratch) {
        let mut row = rows.start;
        // SAFETY: as the caller promises.
        unsafe {
            while row + 4 <= rows.end {
                self.meet_rows::<L, 4>((row, row - rows.start), &panel, &piece, scratch);
                row += 4;
            }
            while row < rows.end {
                self.meet_rows::<L, 1>((row, row - rows.start), &panel, &piece, scratch);
                row += 1;
            }
        }
    }

    /// `R` rows, the first of them `nth` in its block, meet a piece of a panel, three outputs at a time.
    ///
    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn meet_rows<L: Lanes, const R: usize>(
        &self,
        (row, nth): (usize, usize),
        panel: &Range<usize>,
        piece: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let depth = self.weights.inputs();
        // Sums wait there for the next piece of K, or for their eight lanes to be added, which goes faster for eight outputs at once.
        let sums = scratch.sums[nth * PANEL * LANES..][..R * PANEL * LANES].as_mut_ptr();
        let x = &self.x[row * depth + piece.start..];
        let mut n = 0;
        // SAFETY: as the caller promises; a panel's outputs are a multiple of three, or are taken one by one at its end.
        unsafe {
            let place = (x.as_ptr(), sums);
            while n + 3 <= panel.len() {
                self.meet_tile::<L, R, 3>(place, n, piece, &scratch.panel);
                n += 3;
            }
            while n < panel.len() {
                self.meet_tile::<L, R, 1>(place, n, piece, &scratch.panel);
                n += 1;
            }
            if piece.end == depth {
                for r in 0..R {
                    let out = self.out.add((row + r) * self.weights.outputs() + panel.start);
                    add_lanes::<L>(sums.add(r * PANEL * LANES), panel.len(), out);
                }
            }
        }
    }

    /// One tile of a panel: goes on with its sums from the piece before.
    ///
    /// # Safety
    /// Shapes fit.
    #[inline(always)]
    unsafe fn meet_tile<L: Lanes, const R: usize, const N: usize>(
        &self,
        (x, kept): (*const f32, *mut f32),
        n: usize,
        piece: &Range<usize>,
        panel: &[f32],
    ) {
        let place = |r: usize, at: usize| (r * PANEL + n + at) * LANES;
        let mut sums = [[L::splat(0.0); N]; R];
        // SAFETY: as the caller promises.
        unsafe {
            if piece.start > 0 {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(kept.add(place(r, at)));
                    }
                }
            }
            let w = panel.as_ptr().add(n * DEPTH).cast();
            let meeting = Meeting { x, x_stride: self.weights.inputs(), w, w_stride: DEPTH * 4, depth: piece.len() };
            tile::<L, F32, R, N>(meeting, &mut sums);
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
