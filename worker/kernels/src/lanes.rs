//! [`Lanes`]: eight fp32 numbers that are computed together, in AVX2 registers or in plain Rust. [`Pair`]: two of them, in one AVX-512 register
//! where there is one.

/// Numbers in one vector, on every path: the order of sums depends on it.
pub(crate) const LANES: usize = 8;
/// Numbers in a pair of vectors.
pub(crate) const PAIR: usize = 2 * LANES;

/// Eight fp32 numbers. Loads need no alignment.
///
/// # Safety
/// Whoever calls a method of an implementation other than [`Plain`] does so where its instructions are there:
/// [`Path::run`](crate::Path) sees to that.
pub(crate) trait Lanes: Copy {
    /// The same number eight times.
    fn splat(value: f32) -> Self;
    /// Eight numbers that lie side by side.
    ///
    /// # Safety
    /// `from` is good for 32 bytes.
    unsafe fn load(from: *const f32) -> Self;
    /// Eight bf16 numbers that lie side by side, widened (exactly).
    ///
    /// # Safety
    /// `from` is good for 16 bytes.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Writes eight numbers side by side.
    ///
    /// # Safety
    /// `to` may be written for 32 bytes.
    unsafe fn store(self, to: *mut f32);
    /// Has the line of memory there brought into a cache; any place will do.
    fn prefetch(_: *const u8) {}
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// The larger one of each; `other` where either is no number.
    fn max(self, other: Self) -> Self;
    /// The smaller one of each; `other` where either is no number.
    fn min(self, other: Self) -> Self;
    /// `self * factor + term`; rounded once where the path has such an instruction.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The nearest whole numbers.
    fn round(self) -> Self;
    /// `2^self` of whole numbers from -126 to 127.
    fn exp2_whole(self) -> Self;

    /// The eight numbers.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        // SAFETY: the array has eight places.
        unsafe { self.store(array.as_mut_ptr()) };
        array
    }

    /// The first `count` of eight numbers, the others `rest`.
    ///
    /// # Safety
    /// `from` is good for `count` numbers; `count` is at most 8.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize, rest: f32) -> Self {
        let mut array = [rest; LANES];
        // SAFETY: as the caller promises, and the array has eight places.
        unsafe {
            std::ptr::copy_nonoverlapping(from, array.as_mut_ptr(), count);
            Self::load(array.as_ptr())
        }
    }

    /// Writes the first `count` numbers.
    ///
    /// # Safety
    /// `to` may be written for `count` numbers; `count` is at most 8.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(self.to_array().as_ptr(), to, count) };
    }

    /// The sum of all eight: `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    #[inline(always)]
    fn sum(self) -> f32 {
        let a = self.to_array();
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    /// The sums of eight vectors that lie behind each other, each in the order of [`Lanes::sum`].
    ///
    /// # Safety
    /// `from` is good for 64 numbers.
    #[inline(always)]
    unsafe fn sums(from: *const f32) -> Self {
        let mut sums = [0.0; LANES];
        for (at, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            *sum = unsafe { Self::load(from.add(at * LANES)) }.sum();
        }
        // SAFETY: eight numbers.
        unsafe { Self::load(sums.as_ptr()) }
    }

    /// `e^self`, within 2 ulp from -87.3 to 88.3; beyond that it is as at the end of the range. What is no number stays none.
    ///
    /// `e^x = 2^n e^r` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`; `e^r` by its Taylor polynomial of degree 7, whose rest is
    /// below `2^-27` there.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = Self::splat(88.3).min(Self::splat(-87.3).max(self));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, so that `n ln 2` is exact enough: the first has 15 bits.
        let r = n.mul_add(Self::splat(-0.693_359_4), x);
        let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
        let mut e = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            e = e.mul_add(r, Self::splat(coefficient));
        }
        // 2^n in two steps: n is up to 127, and e below 1 times 2^127 is in range.
        e.mul(n.exp2_whole())
    }
}

/// Plain Rust, for machines without anything better.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl Lanes for Plain {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: as the caller promises.
        let stored = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(stored.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a call for each number.
        self.mul(factor).add(term)
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
}

/// Sixteen fp32 numbers: two vectors that are computed together, in one register where the path has such. Every number is what it would be in
/// its own vector.
pub(crate) trait Pair: Copy {
    /// Either vector.
    type Half: Lanes;
    /// Whether there are registers for four times as many sums as with two vectors in two of sixteen.
    const WIDE: bool;

    /// Two vectors as one.
    fn join(low: Self::Half, high: Self::Half) -> Self;
    /// Both vectors.
    fn halves(self) -> (Self::Half, Self::Half);
    /// `self * factor`.
    fn mul(self, factor: Self) -> Self;
    /// `self * factor + term`, as [`Lanes::mul_add`].
    fn mul_add(self, factor: Self, term: Self) -> Self;

    /// The same number sixteen times.
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self::join(Self::Half::splat(value), Self::Half::splat(value))
    }

    /// Eight numbers, twice.
    ///
    /// # Safety
    /// `from` is good for 32 bytes.
    #[inline(always)]
    unsafe fn twice(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        let half = unsafe { Self::Half::load(from) };
        Self::join(half, half)
    }

    /// Sixteen numbers that lie side by side.
    ///
    /// # Safety
    /// `from` is good for 64 bytes.
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::join(Self::Half::load(from), Self::Half::load(from.add(LANES))) }
    }

    /// Eight bf16 numbers of each of two places, widened.
    ///
    /// # Safety
    /// Both are good for 16 bytes.
    #[inline(always)]
    unsafe fn load_bf16(low: *const u16, high: *const u16) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::join(Self::Half::load_bf16(low), Self::Half::load_bf16(high)) }
    }

    /// Writes sixteen numbers side by side.
    ///
    /// # Safety
    /// `to` may be written for 64 bytes.
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        let (low, high) = self.halves();
        // SAFETY: as the caller promises.
        unsafe {
            low.store(to);
            high.store(to.add(LANES));
        }
    }
}

/// Two vectors in two registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Two<L>(L, L);

impl<L: Lanes> Pair for Two<L> {
    type Half = L;
    const WIDE: bool = false;

    #[inline(always)]
    fn join(low: L, high: L) -> Self {
        Self(low, high)
    }

    #[inline(always)]
    fn halves(self) -> (L, L) {
        (self.0, self.1)
    }

    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        Self(self.0.mul(factor.0), self.1.mul(factor.1))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(self.0.mul_add(factor.0, term.0), self.1.mul_add(factor.1, term.1))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod avx;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Path;
    use crate::dispatch::Kernel;

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<P: Pair>(self) -> [f32; LANES] {
            // SAFETY: the array has eight places.
            unsafe { P::Half::load(self.0.as_ptr()) }.exp().to_array()
        }
    }

    #[test]
    fn exponentials_are_right_over_the_whole_range() {
        for path in Path::all() {
            for step in 0..200_000 {
                let x = -87.3 + step as f32 * (175.5 / 200_000.0);
                let given = path.run(Exp([x; LANES]))[3];
                let right = f64::from(x).exp();
                let error = (f64::from(given) - right).abs() / right;
                assert!(error < 2.0 * f64::from(f32::EPSILON), "e^{x} = {given}, not {right} ({})", path.as_str());
            }
            let ends = path.run(Exp([-1e30, -87.4, -0.0, 0.0, 88.4, 1e30, f32::INFINITY, f32::NEG_INFINITY]));
            assert!(ends.iter().all(|e| e.is_finite()) && ends[0] < 1.3e-38 && ends[2] == 1.0 && ends[3] == 1.0, "{ends:?}");
        }
    }

    #[test]
    fn a_nan_stays_one() {
        for path in Path::all() {
            let given = path.run(Exp([f32::NAN; LANES]));
            assert!(given.iter().all(|e| e.is_nan()), "{given:?}");
        }
    }
}
