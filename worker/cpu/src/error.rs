//! [`CpuError`]: why weights could not be used, or a call was refused.

use m1_engine::ExecutorError;
use m1_kernels::MatrixError;
use m1_weights::WeightsError;

/// A failure of loading or computing.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A tensor could not be had.
    #[error("weights: {0}")]
    Weights(#[from] WeightsError),
    /// A tensor is not as large as its shape says.
    #[error("weights: {0}")]
    Matrix(#[from] MatrixError),
    /// Other weights than those loaded.
    #[error("checkpoint digest is {given}, allowed: {allowed}, the one that is loaded")]
    OtherCheckpoint {
        /// Digest of the checkpoint given.
        given: String,
        /// Digest of the checkpoint loaded.
        allowed: String,
    },
    /// The operating system gives no compute thread.
    #[error("compute threads cannot be started: {0}")]
    Threads(#[from] std::io::Error),
    /// The call is refused; nothing was computed.
    #[error(transparent)]
    Refused(#[from] ExecutorError),
}

impl CpuError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Weights(error) => error.reason(),
            Self::Matrix(_) => "TensorSize",
            Self::OtherCheckpoint { .. } => "OtherCheckpoint",
            Self::Threads(_) => "NoThreads",
            Self::Refused(error) => error.reason(),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Weights(error) => error.is_transient(),
            Self::Matrix(_) | Self::OtherCheckpoint { .. } => false,
            Self::Threads(_) => true,
            Self::Refused(error) => error.is_transient(),
        }
    }
}

impl From<CpuError> for ExecutorError {
    fn from(error: CpuError) -> Self {
        match error {
            CpuError::Refused(error) => error,
            other => Self::Weights { reason: other.reason(), message: other.to_string() },
        }
    }
}
