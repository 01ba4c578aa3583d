//! The suite that every executor passes.

use m1_engine::Inline;
use m1_executor_suite::{Suite, suite};
use m1_torch::{TorchExecutor, TorchNetwork};

/// Rounding: products over other shapes sum in another order.
const COMPANY: f32 = 5e-5;

fn executor() -> Suite<TorchExecutor> {
    Suite {
        load: |checkpoint, experts, size, progress| {
            TorchNetwork::load(checkpoint, experts, size, progress).map(Inline::new).map_err(|error| error.reason())
        },
        company: COMPANY,
    }
}

suite!(executor());
