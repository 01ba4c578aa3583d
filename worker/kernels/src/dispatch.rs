//! [`Kernel`]: a computation over lanes, compiled once for every path.

use crate::Path;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{Pair, Plain, Two};
use crate::path::Kind;

/// A computation that is written once and run on the path's pairs of lanes. `run` must be `#[inline(always)]`, and so must all it calls
/// that touches lanes: it is compiled into functions that have the path's instructions.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// Computes.
    fn run<P: Pair>(self) -> Self::Output;
}

impl Path {
    /// Runs a kernel on this path's lanes.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.kind() {
            // SAFETY: a path is this one only where the machine was found to have its instructions.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { with_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { with_avx2(kernel) },
            Kind::Portable => kernel.run::<Two<Plain>>(),
        }
    }
}

/// # Safety
/// The machine has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Two<Avx2>>()
}

/// # Safety
/// The machine has AVX2, FMA, and of AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}
