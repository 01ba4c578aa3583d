//! The suite that every executor passes.

use m1_cpu::{CpuExecutor, CpuNetwork};
use m1_engine::Inline;
use m1_executor_suite::{Suite, suite};

/// None: the same bits in any company.
const COMPANY: f32 = 0.0;

fn executor() -> Suite<CpuExecutor> {
    Suite {
        load: |checkpoint, experts, size, progress| {
            CpuNetwork::load(checkpoint, experts, size, 2, progress).map(Inline::new).map_err(|error| error.reason())
        },
        company: COMPANY,
    }
}

suite!(executor());
