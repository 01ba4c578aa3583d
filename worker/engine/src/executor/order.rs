//! [`StepOrder`]: the order that a step's calls must come in.

use m1_arch::LayerId;

use super::ExecutorError;

/// What a step in flight waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOrder {
    /// Attention of this layer; after the last layer, the end.
    Attention(LayerId),
    /// The experts of this layer, or its end.
    Experts(LayerId),
}

impl StepOrder {
    /// A step that has begun.
    pub const FIRST: Self = Self::Attention(LayerId(0));

    /// Whether `attention` of `layer` may come.
    ///
    /// # Errors
    /// It may not.
    pub fn expect_attention(self, layer: LayerId) -> Result<(), ExecutorError> {
        self.require("attention", self == Self::Attention(layer))
    }

    /// Whether a call on the experts of the layer in flight may come.
    ///
    /// # Errors
    /// It may not.
    pub fn expect_experts(self, call: &'static str) -> Result<(), ExecutorError> {
        self.require(call, matches!(self, Self::Experts(_)))
    }

    /// Whether a call on the experts of `layer` may come.
    ///
    /// # Errors
    /// It may not.
    pub fn expect_experts_of(self, call: &'static str, layer: LayerId) -> Result<(), ExecutorError> {
        self.require(call, self == Self::Experts(layer))
    }

    /// Whether the step may end after `layers` layers.
    ///
    /// # Errors
    /// It may not.
    pub fn expect_end(self, layers: usize) -> Result<(), ExecutorError> {
        self.require("end_step", matches!(self, Self::Attention(layer) if layer.index() == layers))
    }

    fn require(self, call: &'static str, holds: bool) -> Result<(), ExecutorError> {
        let expected = match self {
            Self::Attention(_) => "attention of the next layer, or end_step after the last",
            Self::Experts(_) => "the experts of the layer in flight, or combine",
        };
        if holds { Ok(()) } else { Err(ExecutorError::OutOfOrder { call, expected }) }
    }
}

/// The step in flight, if there is one.
///
/// # Errors
/// There is none.
pub fn in_flight<'a, S>(step: &'a mut Option<S>, call: &'static str) -> Result<&'a mut S, ExecutorError> {
    step.as_mut().ok_or(ExecutorError::OutOfOrder { call, expected: "begin_step" })
}
