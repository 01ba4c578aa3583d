//! The suite that every executor passes.

use m1_cpu::{CpuError, CpuExecutor};
use m1_executor_suite::{Suite, suite};

/// None: the same bits in any company.
const COMPANY: f32 = 0.0;

fn executor() -> Suite<CpuExecutor> {
    Suite {
        load: |checkpoint, experts, size, progress| {
            CpuExecutor::load(checkpoint, experts, size, 2, progress).map_err(|error| error.reason())
        },
        update: |executor, checkpoint, experts, progress| {
            executor.update_experts(checkpoint, experts, progress).map_err(|error: CpuError| error.reason())
        },
        held: CpuExecutor::held,
        architecture: CpuExecutor::architecture,
        company: COMPANY,
    }
}

suite!(executor());
