//! [`ExecutorError`]: why the executor could not do what was asked.

use m1_arch::{ExpertId, LayerId};

use super::SlotId;
use crate::routing::RoutingError;

/// Why the executor could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// There is no such slot.
    #[error("state slot is {}, allowed: less than {slots}", .slot.0)]
    UnknownSlot {
        /// The slot given.
        slot: SlotId,
        /// Slots there are.
        slots: u32,
    },
    /// An argument does not fit the model, the step or the batch.
    #[error("{what} is {given}, allowed: {allowed}")]
    InvalidArgument {
        /// What is wrong, by its name in the port.
        what: &'static str,
        /// The value given.
        given: u64,
        /// What is allowed, in words.
        allowed: String,
    },
    /// A command came where the step does not allow it.
    #[error("{command} came out of order: expected {expected}")]
    OutOfOrder {
        /// The command that came.
        command: &'static str,
        /// What the step was waiting for.
        expected: &'static str,
    },
    /// The expert's weights are not on this device.
    #[error("layer {} expert {} is not held here", .layer.0, .expert.0)]
    NotHeld {
        /// Layer of the expert.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
    },
    /// The router's choice does not fit the model.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// Weights cannot be had, for a reason that the source of the weights has.
    #[error("{message}")]
    Weights {
        /// One CamelCase word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// The device has no memory left for the step.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The device or its library failed.
    #[error("the device failed: {0}")]
    Device(String),
}

impl ExecutorError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownSlot { .. } => "UnknownSlot",
            Self::InvalidArgument { .. } => "InvalidArgument",
            Self::OutOfOrder { .. } => "OutOfOrder",
            Self::NotHeld { .. } => "NotHeld",
            Self::Routing(error) => error.reason(),
            Self::Weights { reason, .. } => reason,
            Self::OutOfMemory(_) => "OutOfMemory",
            Self::Device(_) => "DeviceFailed",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::OutOfMemory(_))
    }
}
