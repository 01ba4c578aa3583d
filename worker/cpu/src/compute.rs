//! [`Compute`]: instructions and threads, and the loops over rows that several parts share.

use std::cell::RefCell;

use m1_kernels::product::{Product, products};
use m1_kernels::{Path, Pool, Shared};

use crate::error::CpuError;
use crate::weights::Weight;

/// Numbers that a thread takes at least of an elementwise loop: some 10 µs, what it takes to wake it.
const GRAIN: usize = 8192;

/// What computes.
#[derive(Debug)]
pub(crate) struct Compute {
    pub path: Path,
    pub pool: Pool,
}

impl Compute {
    /// `threads` threads, the caller's among them.
    pub fn new(threads: usize) -> Result<Self, CpuError> {
        Ok(Self { path: Path::detect(), pool: Pool::new(threads)? })
    }

    /// Rows of `x` times weights, several products side by side.
    pub fn products<const N: usize>(&mut self, jobs: [(&[f32], &Weight, &mut [f32]); N]) -> Result<(), CpuError> {
        let mut all = Vec::with_capacity(N);
        for (x, weight, out) in jobs {
            all.push(Product { x, weights: weight.matrix()?, out });
        }
        products(self.path, &mut self.pool, &mut all);
        Ok(())
    }

    /// Norms of rows of `weight.len()` numbers.
    pub fn rms(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let (path, width) = (self.path, weight.len());
        let out = Shared::new(out);
        self.pool.share(x.len() / width, GRAIN.div_ceil(width), |rows| {
            let places = rows.start * width..rows.end * width;
            // SAFETY: parts of the rows do not overlap.
            m1_kernels::rms(path, &x[places.clone()], weight, eps, unsafe { out.piece(places) });
        });
    }

    /// Calls `each` with a part of `out` and the same part of `other`.
    pub fn zip(&mut self, out: &mut [f32], other: &[f32], each: impl Fn(Path, &mut [f32], &[f32]) + Sync) {
        assert_eq!(out.len(), other.len(), "as many numbers");
        let path = self.path;
        let out = Shared::new(out);
        self.pool.share(out.len(), GRAIN, |places| {
            // SAFETY: parts do not overlap.
            each(path, unsafe { out.piece(places.clone()) }, &other[places]);
        });
    }

    /// Calls `each` for every number below `items`; threads take them in turn.
    pub fn each(&mut self, items: usize, each: impl Fn(Path, usize) + Sync) {
        let path = self.path;
        self.pool.each(items, |item| each(path, item));
    }
}

/// Memory of a thread, at least so long, for the time of a call. What is in it is of no meaning.
pub(crate) fn with_scratch<T>(len: usize, call: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        call(&mut scratch[..len])
    })
}

/// `x = alpha * x + beta * y`: a residual.
pub(crate) fn residual(compute: &mut Compute, x: &mut [f32], alpha: f32, y: &[f32], beta: f32) {
    compute.zip(x, y, |_, x, y| {
        for (x, y) in x.iter_mut().zip(y) {
            *x = alpha * *x + beta * *y;
        }
    });
}

/// Makes room for `len` numbers; what is in it is of no meaning.
pub(crate) fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
