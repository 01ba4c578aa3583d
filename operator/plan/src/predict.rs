//! The time per token to be expected from a measured link:
//! `compute + layers * (round trip + bytes / bandwidth)`, where every layer waits for one exchange, and the bytes are the
//! hidden state out and the fp32 sum back, once for each pod that can hold one of the token's experts.

use m1_arch::{Architecture, Storage};

use crate::shape::Shape;
use crate::{Environment, Predicted};

/// Predicts one sequence's decode; none where nothing was measured.
pub(crate) fn predict(shape: &Shape, environment: &Environment) -> Option<Predicted> {
    let arch = &environment.architecture;
    let compute = environment.compute_per_token.map(|time| time.as_secs_f64() * 1e3);
    let waits = match (shape.pods, environment.link) {
        (1, _) => None,
        (_, None) => return None,
        (_, Some(link)) => Some(link),
    };
    let computed = match compute {
        Some(compute) => format!("{compute:.1} ms of compute as measured"),
        None => "compute not measured, counted as 0".to_owned(),
    };
    let Some(link) = waits else {
        return compute
            .map(|compute| Predicted { ms_per_token: compute, from: format!("{computed}; one pod, nothing waits for another") });
    };
    let bytes = exchanged(arch, shape);
    let round_trip = link.round_trip.as_secs_f64() * 1e3;
    let transfer = bytes as f64 / link.bandwidth.0.max(1) as f64 * 1e3;
    let layers = arch.layers.len();
    let ms_per_token = compute.unwrap_or(0.0) + layers as f64 * (round_trip + transfer);
    let from = format!(
        "{layers} layers x ({round_trip:.3} ms round trip + {} at {}/s = {transfer:.3} ms), {computed}",
        m1_arch::Bytes(bytes),
        link.bandwidth,
    );
    Some(Predicted { ms_per_token, from })
}

/// Bytes of one token in one layer, out and back, over the line of its pod.
fn exchanged(arch: &Architecture, shape: &Shape) -> u64 {
    let out: Storage = shape.dtype;
    let others = u64::from(shape.pods - 1).min(arch.top_k as u64);
    (arch.dispatch_bytes_out(out).0 + arch.dispatch_bytes_back().0) * others
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use m1_arch::Bytes;
    use m1_operator_api::Placement;

    use super::*;
    use crate::Link;

    fn shape(pods: u32) -> Shape {
        Shape {
            tensor: 8,
            pods,
            copies: 1,
            placement: Placement::Linear,
            redundant_slots: 0,
            dtype: Storage::BFloat16,
            expert_dtype: Storage::BFloat16,
            window: 4096,
        }
    }

    fn measured(bandwidth: u64) -> Environment {
        let link = Some(Link { round_trip: Duration::from_micros(300), bandwidth: Bytes(bandwidth) });
        Environment { link, ..Environment::new(Architecture::minimax_m1()) }
    }

    #[test]
    fn eighty_layers_wait_for_eighty_round_trips() {
        let predicted = predict(&shape(2), &measured(u64::MAX)).unwrap();
        assert!((predicted.ms_per_token - 24.0).abs() < 1e-6);
        let predicted = predict(&shape(2), &measured(1_000_000_000)).unwrap();
        assert!((predicted.ms_per_token - (24.0 + 80.0 * 0.036864)).abs() < 1e-6);
        assert_eq!(
            predicted.from,
            "80 layers x (0.300 ms round trip + 36.9 kB at 1.0 GB/s = 0.037 ms), compute not measured, counted as 0"
        );
    }

    #[test]
    fn compute_is_added_when_it_was_measured() {
        let environment = Environment { compute_per_token: Some(Duration::from_millis(20)), ..measured(u64::MAX) };
        assert!((predict(&shape(2), &environment).unwrap().ms_per_token - 44.0).abs() < 1e-6);
        assert_eq!(predict(&shape(1), &environment).unwrap().ms_per_token, 20.0);
    }

    #[test]
    fn nothing_is_predicted_from_nothing() {
        let unknown = Environment::new(Architecture::minimax_m1());
        assert_eq!((predict(&shape(2), &unknown), predict(&shape(1), &unknown)), (None, None));
    }
}
