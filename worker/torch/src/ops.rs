//! The few formulas that several parts share.

use tch::{Device, Kind, TchError, Tensor};

/// RMSNorm over the last dimension: `w * x * rsqrt(mean(x^2) + eps)`.
pub(crate) fn rms(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    let mut scale = x.f_square()?.f_mean_dim([-1i64].as_slice(), true, None)?;
    let mut scale = scale.f_add_scalar_(eps)?;
    let mut normed = x.f_mul(&scale.f_rsqrt_()?)?;
    normed.f_mul_(weight)
}

/// `x * factor` in place; nothing for the factor 1 that every published beta is.
pub(crate) fn scale_(x: &mut Tensor, factor: f64) -> Result<(), TchError> {
    if factor == 1.0 { Ok(()) } else { x.f_mul_scalar_(factor).map(drop) }
}

/// What a tensor that lies beside `x` is made of.
pub(crate) fn options(x: &Tensor) -> (Kind, Device) {
    (x.kind(), x.device())
}
