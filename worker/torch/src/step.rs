//! [`Step`]: one step in flight, and the order that its calls must come in.

use m1_arch::LayerId;
use m1_engine::ExecutorError;
use tch::Tensor;

use crate::layout::Layout;

/// What a step waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Attention of this layer; after the last layer, the end.
    Attention(LayerId),
    /// The experts of this layer, or its end.
    Experts(LayerId),
}

/// One step in flight. Tensors are fp32 `[rows, hidden]`.
#[derive(Debug)]
pub(crate) struct Step {
    /// The batch.
    pub layout: Layout,
    /// Rows whose logits are wanted.
    pub logit_rows: Vec<i64>,
    /// What it waits for.
    pub phase: Phase,
    /// The residual stream between layers; within the experts' phase the accumulator, which starts as the residual.
    pub x: Tensor,
    /// Input of the experts of the layer in flight; of no use in between.
    pub hidden: Tensor,
}

impl Step {
    /// Whether `attention` of `layer` may come.
    pub fn expect_attention(&self, layer: LayerId) -> Result<(), ExecutorError> {
        self.require("attention", self.phase == Phase::Attention(layer))
    }

    /// Whether a call on the experts of the layer in flight may come.
    pub fn expect_experts(&self, call: &'static str) -> Result<(), ExecutorError> {
        self.require(call, matches!(self.phase, Phase::Experts(_)))
    }

    /// Whether a call on the experts of `layer` may come.
    pub fn expect_experts_of(&self, call: &'static str, layer: LayerId) -> Result<(), ExecutorError> {
        self.require(call, self.phase == Phase::Experts(layer))
    }

    /// Whether the step may end after `layers` layers.
    pub fn expect_end(&self, layers: usize) -> Result<(), ExecutorError> {
        self.require("end_step", matches!(self.phase, Phase::Attention(layer) if layer.index() == layers))
    }

    fn require(&self, call: &'static str, holds: bool) -> Result<(), ExecutorError> {
        let expected = match self.phase {
            Phase::Attention(_) => "attention of the next layer, or end_step after the last",
            Phase::Experts(_) => "the experts of the layer in flight, or combine",
        };
        if holds { Ok(()) } else { Err(ExecutorError::OutOfOrder { call, expected }) }
    }
}

/// The step in flight, if there is one.
pub(crate) fn in_flight<'a>(step: &'a mut Option<Step>, call: &'static str) -> Result<&'a mut Step, ExecutorError> {
    step.as_mut().ok_or(ExecutorError::OutOfOrder { call, expected: "begin_step" })
}
