//! Likelihoods of one row of logits, `e^{(x - peak) / temperature}`, and their sums by size: what a draw from the most likely needs without
//! sorting a vocabulary.

use crate::Path;
use crate::dispatch::Kernel;
use crate::lanes::{LANES, Lanes, Pair};

/// Numbers that are computed at once.
const PIECE: usize = 64;
/// Bits of an fp32 number that its size class leaves out: 64 classes for each power of two.
const SHIFT: u32 = 17;
/// Classes of numbers from 0 to 1, and as many again as a mask takes.
const CLASSES: usize = 8192;
/// The class of the smallest likelihood that counts: below `2^-125` the kernel's `e^x` has ended.
const SMALLEST: usize = ((127 - 125) << 23 >> SHIFT) as usize;

/// The size class of a likelihood: larger ones have larger classes.
#[inline(always)]
fn class(likelihood: f32) -> usize {
    (likelihood.to_bits() >> SHIFT) as usize & (CLASSES - 1)
}

/// Likelihoods that lie close to each other, as the bits of fp32 numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClass(u32);

impl SizeClass {
    /// Whether a likelihood is in it.
    #[inline(always)]
    pub fn has(self, likelihood: f32) -> bool {
        likelihood.to_bits() >> SHIFT == self.0
    }
}

/// Sums of likelihoods by size class.
#[derive(Debug)]
pub struct Sizes(Box<[f64; CLASSES]>);

impl Default for Sizes {
    fn default() -> Self {
        Self(Box::new([0.0; CLASSES]))
    }
}

impl Sizes {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.fill(0.0);
    }

    /// Classes that have likelihoods, the largest first, and the sum of each. Those that are as good as 0 are left out.
    pub fn descending(&self) -> impl Iterator<Item = (SizeClass, f64)> {
        let sums = self.0[SMALLEST..].iter().enumerate().rev();
        sums.filter(|(_, sum)| **sum > 0.0).map(|(at, sum)| (SizeClass((SMALLEST + at) as u32), *sum))
    }
}

/// The largest of some logits; not a number where one is none, `-inf` of nothing.
pub fn largest(path: Path, logits: &[f32]) -> f32 {
    path.run(Largest(logits))
}

/// `likelihoods = e^{(logits - peak) / temperature}`, added to `sizes` too. No logit is larger than `peak`, which is finite.
///
/// # Panics
/// Lengths that differ.
pub fn weigh(path: Path, logits: &[f32], (peak, temperature): (f32, f32), likelihoods: &mut [f32], sizes: &mut Sizes) {
    assert_eq!(logits.len(), likelihoods.len(), "a place for each number");
    path.run(Weigh { logits, peak, temperature, likelihoods, sizes });
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<P: Pair>(self) -> f32 {
        let (pieces, rest) = self.0.as_chunks::<PIECE>();
        let (mut largest, mut differences) = ([P::Half::splat(f32::NEG_INFINITY); 2], [P::Half::splat(0.0); 2]);
        for piece in pieces {
            for at in (0..PIECE).step_by(2 * LANES) {
                for (side, (largest, differences)) in largest.iter_mut().zip(&mut differences).enumerate() {
                    // SAFETY: within the piece.
                    let numbers = unsafe { P::Half::load(piece.as_ptr().add(at + side * LANES)) };
                    *largest = numbers.max(*largest);
                    // 0, or no number where there is none: infinities are put aside before.
                    let finite = P::Half::splat(f32::MAX).min(P::Half::splat(f32::MIN).max(numbers));
                    *differences = differences.add(finite.sub(finite));
                }
            }
        }
        let found = largest.iter().flat_map(|lanes| lanes.to_array()).chain(rest.iter().copied());
        let found = found.fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let none = differences[0].add(differences[1]).sum() != 0.0 || rest.iter().any(|x| x.is_nan());
        if none { f32::NAN } else { found }
    }
}

struct Weigh<'a> {
    logits: &'a [f32],
    peak: f32,
    temperature: f32,
    likelihoods: &'a mut [f32],
    sizes: &'a mut Sizes,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pair>(self) {
        let (kind, sums) = ((self.peak, self.temperature), &mut *self.sizes.0);
        let (pieces, rest) = self.logits.as_chunks::<PIECE>();
        let (to, rest_to) = self.likelihoods.as_chunks_mut::<PIECE>();
        for (logits, to) in pieces.iter().zip(to) {
            weigh_piece::<P::Half>(logits, kind, to, sums);
        }
        if rest.is_empty() {
            return;
        }
        // What fills it up is as good as 0, and in no class that counts.
        let (mut last, mut to) = ([f32::NEG_INFINITY; PIECE], [0.0; PIECE]);
        last[..rest.len()].copy_from_slice(rest);
        weigh_piece::<P::Half>(&last, kind, &mut to, sums);
        rest_to.copy_from_slice(&to[..rest.len()]);
    }
}

#[inline(always)]
fn weigh_piece<L: Lanes>(logits: &[f32; PIECE], (peak, temperature): (f32, f32), to: &mut [f32; PIECE], sums: &mut [f64; CLASSES]) {
    // Divided, not multiplied by the inverse: the inverse of a tiny temperature is infinite, and 0 * inf is no number.
    let (peak, temperature) = (L::splat(peak), L::splat(temperature));
    for at in (0..PIECE).step_by(LANES) {
        // SAFETY: within both.
        unsafe { L::load(logits.as_ptr().add(at)).sub(peak).div(temperature).exp().store(to.as_mut_ptr().add(at)) };
    }
    // Many at once: a sum waits for the one before it only where both are of one size.
    for likelihood in to {
        sums[class(*likelihood)] += f64::from(*likelihood);
    }
}
