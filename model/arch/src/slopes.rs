//! Decay slopes of lightning attention: `S_t = exp(-slope) * S_{t-1} + k_t^T v_t`.
//!
//! Head h of n has the ALiBi slope `2^(-8(h+1)/n)`; where n is no power of two, the slopes of the next lower power p come
//! first, then every other slope of 2p. Layer i of L, counted over all layers, scales them by `1 - i/(L-1) + 1e-5`.

use crate::architecture::Architecture;
use crate::units::LayerId;

/// Slopes of one layer, one per head. The head's slope and the layer's factor are rounded to f32 and multiplied in f32,
/// as MiniMax's code does.
pub fn slopes(arch: &Architecture, layer: LayerId) -> Vec<f32> {
    let last = arch.layers.len().saturating_sub(1);
    let depth = if last == 0 { 0.0 } else { layer.index() as f64 / last as f64 };
    let factor = (1.0 - depth + 1e-5) as f32;
    head_slopes(arch.heads).into_iter().map(|slope| slope as f32 * factor).collect()
}

fn head_slopes(heads: usize) -> Vec<f64> {
    let power = if heads == 0 { 1 } else { 1 << heads.ilog2() };
    let alibi = |index: usize, of: usize| 2f64.powf(-8.0 * (index + 1) as f64 / of as f64);
    let first = (0..power).map(|h| alibi(h, power));
    first.chain((0..power).map(|h| alibi(2 * h, 2 * power))).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(given: f32, wanted: f64, within: f64) {
        assert!((f64::from(given) / wanted - 1.0).abs() < within, "{given} is not near {wanted}");
    }

    #[test]
    fn ranges_of_minimax_m1() {
        let m1 = Architecture::minimax_m1();
        let first = slopes(&m1, LayerId(0));
        let last = slopes(&m1, LayerId(78));
        assert_eq!((first.len(), last.len()), (64, 64));
        near(first[0], 0.917, 1e-3);
        near(first[63], 0.0039, 5e-3);
        near(last[0], 0.0116, 5e-3);
        near(last[63], 4.9e-5, 2e-2);
        near(first[0], std::f64::consts::LN_2 / 0.756, 1e-3);
    }

    #[test]
    fn a_head_count_between_powers_takes_every_other_slope_of_the_next() {
        let slopes = head_slopes(6);
        assert_eq!(slopes[..4], [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(slopes[4..], [0.5, 0.125]);
    }

    #[test]
    fn a_single_layer_is_not_scaled_to_nothing() {
        let mut arch = Architecture::minimax_m1();
        arch.layers.truncate(1);
        near(slopes(&arch, LayerId(0))[7], 0.5, 2e-5);
    }
}
