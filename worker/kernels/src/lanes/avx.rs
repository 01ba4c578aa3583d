//! Lanes in 256-bit registers, and pairs of them in 512-bit ones.

use std::arch::x86_64::*;

use super::{LANES, Lanes, Pair};

/// A 256-bit register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(__m256);

/// A register's numbers in memory. A place rather than `_mm256_loadu_ps`, which is a function that large kernels were seen to call.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned(__m256);

// SAFETY of every block below: `Path::run` calls this where AVX2 and FMA are there, and pointers are as the trait asks.
impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { (*from.cast::<Unaligned>()).0 })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { *to.cast::<Unaligned>() = Unaligned(self.0) }
    }

    #[inline(always)]
    fn prefetch(place: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn sums(from: *const f32) -> Self {
        /// Both halves of a vector and of the one four further on: `[0+4, 1+5, 2+6, 3+7 | the same of the other]`.
        #[inline(always)]
        unsafe fn halves(from: *const f32) -> __m256 {
            unsafe {
                let (one, other) = (Avx2::load(from).0, Avx2::load(from.add(4 * LANES)).0);
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(one, other), _mm256_permute2f128_ps::<0x31>(one, other))
            }
        }
        unsafe {
            let (a, b) = (halves(from), halves(from.add(LANES)));
            let (c, d) = (halves(from.add(2 * LANES)), halves(from.add(3 * LANES)));
            let ab = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
            let cd = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(c, d), _mm256_shuffle_ps::<0xee>(c, d));
            Self(_mm256_add_ps(_mm256_shuffle_ps::<0x88>(ab, cd), _mm256_shuffle_ps::<0xdd>(ab, cd)))
        }
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        Self(unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
}

/// Two vectors in a 512-bit register; AVX-512 with its parts F, BW, DQ and VL, of which there are thirty-two registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// As [`Unaligned`].
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct UnalignedPair(__m512);

// SAFETY of every block below: `Path::run` calls this where these instructions are there, and pointers are as the trait asks.
impl Pair for Avx512 {
    type Half = Avx2;
    const WIDE: bool = true;

    #[inline(always)]
    fn join(low: Avx2, high: Avx2) -> Self {
        Self(unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low.0), high.0) })
    }

    #[inline(always)]
    fn halves(self) -> (Avx2, Avx2) {
        unsafe { (Avx2(_mm512_castps512_ps256(self.0)), Avx2(_mm512_extractf32x8_ps::<1>(self.0))) }
    }

    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, factor.0) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { (*from.cast::<UnalignedPair>()).0 })
    }

    #[inline(always)]
    unsafe fn load_bf16(low: *const u16, high: *const u16) -> Self {
        Self(unsafe {
            let stored =
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(_mm_loadu_si128(low.cast())), _mm_loadu_si128(high.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(stored)))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { *to.cast::<UnalignedPair>() = UnalignedPair(self.0) }
    }
}
