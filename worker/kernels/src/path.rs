//! [`Path`]: which instructions the kernels use. Asked of the machine once; a path that it lacks cannot be had.

/// A set of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Path {
    /// What every machine has.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The fastest that this machine has.
    pub fn detect() -> Self {
        Self::all().next().unwrap_or(Self::PORTABLE)
    }

    /// All that this machine has, the fastest first.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let kinds = {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            [avx512.then_some(Kind::Avx512), avx2.then_some(Kind::Avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let kinds = [None; 2];
        kinds.into_iter().flatten().chain([Kind::Portable]).map(Self)
    }

    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// The machine was found to have its instructions.
    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}
