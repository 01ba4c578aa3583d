//! Frequencies of the rotary position embedding.

use crate::Architecture;

/// `theta^(-2i / rotary)` for i below half the rotary channels, rounded to fp32. An angle is position times frequency in fp32, as every
/// reference has it: f64 would differ from them near position 1M.
pub fn rotary_frequencies(arch: &Architecture) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f64 / arch.rotary_dim as f64;
    (0..arch.rotary_dim / 2).map(|i| arch.rope_theta.powf(-exponent(i)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one() {
        let values = rotary_frequencies(&Architecture::minimax_m1());
        assert_eq!((values.len(), values[0]), (32, 1.0));
        assert!((f64::from(values[31]) / 1e7f64.powf(-62.0 / 64.0) - 1.0).abs() < 1e-6);
    }
}
