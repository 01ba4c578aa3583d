//! [`Kernel`]: a computation over lanes, compiled once for every path.

use crate::Path;
use crate::lanes::{Lanes, Plain};

/// A computation that is written once and run on the path's lanes. `run` must be `#[inline(always)]`, and so must all it calls
/// that touches lanes: it is compiled into functions that have the path's instructions.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// Computes.
    fn run<L: Lanes>(self) -> Self::Output;
}

impl Path {
    /// Runs a kernel on this path's lanes.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if self.is_avx2() {
            // SAFETY: a path is AVX2 only where the machine was found to have AVX2 and FMA.
            return unsafe { with_avx2(kernel) };
        }
        kernel.run::<Plain>()
    }
}

/// # Safety
/// The machine has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<crate::lanes::Avx2>()
}
