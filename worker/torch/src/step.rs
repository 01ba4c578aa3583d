//! [`Step`]: one step in flight.

use m1_engine::StepOrder;
use tch::Tensor;

use crate::layout::Layout;

/// One step in flight. Tensors are fp32 `[rows, hidden]`.
#[derive(Debug)]
pub(crate) struct Step {
    /// The batch.
    pub layout: Layout,
    /// Rows whose logits are wanted.
    pub logit_rows: Vec<i64>,
    /// What it waits for.
    pub order: StepOrder,
    /// The residual stream between layers; within the experts' phase the accumulator, which starts as the residual.
    pub x: Tensor,
    /// Input of the experts of the layer in flight; of no use in between.
    pub hidden: Tensor,
}
