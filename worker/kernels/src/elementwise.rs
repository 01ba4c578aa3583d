//! What is computed number by number, and the norm.

use crate::Path;
use crate::dispatch::Kernel;
use crate::lanes::{LANES, Lanes, PAIR, Pair};

/// `out = weight * (x / sqrt(mean(x^2) + eps))` for each row of `x`, `[rows, weight.len()]`. The squares are added in eight lanes.
///
/// # Panics
/// Lengths that do not fit.
pub fn rms(path: Path, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(!weight.is_empty() && x.len().is_multiple_of(weight.len()), "whole rows");
    assert_eq!(x.len(), out.len(), "a place for each number");
    path.run(Rms { x, weight, eps, out });
}

/// `x / (1 + e^-x)`, in place.
pub fn silu(path: Path, x: &mut [f32]) {
    path.run(Silu(x));
}

/// `a = silu(a) * b`: an expert's gate and its values.
///
/// # Panics
/// Lengths that differ.
pub fn silu_gate(path: Path, a: &mut [f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "a gate for each number");
    path.run(SiluGate(a, b));
}

/// `x = x / (1 + e^-gate)`: the gate of lightning attention.
///
/// # Panics
/// Lengths that differ.
pub fn sigmoid_gate(path: Path, x: &mut [f32], gate: &[f32]) {
    assert_eq!(x.len(), gate.len(), "a gate for each number");
    path.run(SigmoidGate(x, gate));
}

/// The place of every eight numbers and how many they are: 8, or what is left at the end. An iterator and no function that is handed a closure: a
/// closure is compiled by itself where it is not inlined, without the path's instructions, and then calls each of them.
#[inline(always)]
pub(crate) fn eights(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(LANES).map(move |at| (at, LANES.min(len - at)))
}

/// Eight numbers, or fewer and zeros.
///
/// # Safety
/// `from` is good for `count` numbers from `at` on; `count` is at most 8.
#[inline(always)]
pub(crate) unsafe fn take<L: Lanes>(from: *const f32, at: usize, count: usize) -> L {
    // SAFETY: as the caller promises.
    unsafe { if count == LANES { L::load(from.add(at)) } else { L::load_first(from.add(at), count, 0.0) } }
}

/// Writes eight numbers, or fewer.
///
/// # Safety
/// `to` may be written for `count` numbers from `at` on; `count` is at most 8.
#[inline(always)]
pub(crate) unsafe fn put<L: Lanes>(numbers: L, to: *mut f32, at: usize, count: usize) {
    // SAFETY: as the caller promises.
    unsafe { if count == LANES { numbers.store(to.add(at)) } else { numbers.store_first(to.add(at), count) } }
}

/// Sixteen numbers, or fewer and zeros.
///
/// # Safety
/// `from` is good for `count` numbers from `at` on; `count` is at most 16.
#[inline(always)]
pub(crate) unsafe fn take_pair<P: Pair>(from: *const f32, at: usize, count: usize) -> P {
    let low = LANES.min(count);
    // SAFETY: as the caller promises.
    unsafe {
        match count == PAIR {
            true => P::load(from.add(at)),
            false => P::join(take(from, at, low), take(from, at + low, count - low)),
        }
    }
}

/// Writes sixteen numbers, or fewer.
///
/// # Safety
/// `to` may be written for `count` numbers from `at` on; `count` is at most 16.
#[inline(always)]
pub(crate) unsafe fn put_pair<P: Pair>(numbers: P, to: *mut f32, at: usize, count: usize) {
    let (low, halves) = (LANES.min(count), numbers.halves());
    // SAFETY: as the caller promises.
    unsafe {
        match count == PAIR {
            true => numbers.store(to.add(at)),
            false => {
                put(halves.0, to, at, low);
                put(halves.1, to, at + low, count - low);
            }
        }
    }
}

#[inline(always)]
fn logistic<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    one.div(one.add(L::splat(0.0).sub(x).exp()))
}

struct Rms<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Rms<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mut squares = P::Half::splat(0.0);
            // SAFETY: all three have `width` numbers.
            unsafe {
                for (at, count) in eights(width) {
                    let x = take::<P::Half>(x.as_ptr(), at, count);
                    squares = x.mul_add(x, squares);
                }
                let scale = P::Half::splat(1.0 / (squares.sum() / width as f32 + self.eps).sqrt());
                for (at, count) in eights(width) {
                    let normed = take::<P::Half>(x.as_ptr(), at, count).mul(scale);
                    put(take::<P::Half>(self.weight.as_ptr(), at, count).mul(normed), out.as_mut_ptr(), at, count);
                }
            }
        }
    }
}

struct Silu<'a>(&'a mut [f32]);

impl Kernel for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let x = self.0.as_mut_ptr();
        for (at, count) in eights(self.0.len()) {
            // SAFETY: within the slice.
            unsafe {
                let value = take::<P::Half>(x, at, count);
                put(value.mul(logistic(value)), x, at, count);
            }
        }
    }
}

struct SiluGate<'a>(&'a mut [f32], &'a [f32]);

impl Kernel for SiluGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let (a, b) = (self.0.as_mut_ptr(), self.1.as_ptr());
        for (at, count) in eights(self.0.len()) {
            // SAFETY: within both slices, which are as long.
            unsafe {
                let value = take::<P::Half>(a, at, count);
                put(value.mul(logistic(value)).mul(take(b, at, count)), a, at, count);
            }
        }
    }
}

struct SigmoidGate<'a>(&'a mut [f32], &'a [f32]);

impl Kernel for SigmoidGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let (x, gate) = (self.0.as_mut_ptr(), self.1.as_ptr());
        for (at, count) in eights(self.0.len()) {
            // SAFETY: within both slices, which are as long.
            unsafe { put(take::<P::Half>(x, at, count).mul(logistic(take::<P::Half>(gate, at, count))), x, at, count) };
        }
    }
}
