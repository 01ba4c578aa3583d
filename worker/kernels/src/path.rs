//! [`Path`]: which instructions the kernels use. Asked of the machine once; a path that it lacks cannot be had.

/// A set of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Avx2,
    Portable,
}

impl Path {
    /// What every machine has.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The fastest that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return Self(Kind::Avx2);
        }
        Self::PORTABLE
    }

    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self.0 {
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// Whether the machine was found to have AVX2 and FMA.
    pub(crate) fn is_avx2(self) -> bool {
        self.0 == Kind::Avx2
    }
}
