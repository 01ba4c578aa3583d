//! The suite that every executor passes.

use m1_executor_suite::{Suite, suite};
use m1_torch::{TorchError, TorchExecutor};

/// Rounding: products over other shapes sum in another order.
const COMPANY: f32 = 5e-5;

fn executor() -> Suite<TorchExecutor> {
    Suite {
        load: |checkpoint, experts, size, progress| {
            TorchExecutor::load(checkpoint, experts, size, progress).map_err(|error| error.reason())
        },
        update: |executor, checkpoint, experts, progress| {
            executor.update_experts(checkpoint, experts, progress).map_err(|error: TorchError| error.reason())
        },
        held: TorchExecutor::held,
        architecture: TorchExecutor::architecture,
        company: COMPANY,
    }
}

suite!(executor());
