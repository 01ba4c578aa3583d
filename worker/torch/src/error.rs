//! [`TorchError`]: why weights could not be loaded or an operation failed; and what of it the port's caller sees.

use m1_engine::ExecutorError;
use m1_weights::WeightsError;
use tch::TchError;

/// A failure of loading or computing.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// A tensor could not be read.
    #[error("reading weights: {0}")]
    Weights(#[from] WeightsError),
    /// Other weights than those loaded.
    #[error("checkpoint digest is {given}, allowed: {allowed}, the one that is loaded")]
    OtherCheckpoint {
        /// Digest of the checkpoint given.
        given: String,
        /// Digest of the checkpoint loaded.
        allowed: String,
    },
    /// libtorch failed.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] TchError),
    /// The call is refused; nothing was computed.
    #[error(transparent)]
    Refused(#[from] ExecutorError),
}

impl TorchError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Weights(error) => error.reason(),
            Self::OtherCheckpoint { .. } => "OtherCheckpoint",
            Self::Torch(error) if is_out_of_memory(error) => "OutOfMemory",
            Self::Torch(_) => "DeviceFailed",
            Self::Refused(error) => error.reason(),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Weights(error) => error.is_transient(),
            Self::OtherCheckpoint { .. } => false,
            Self::Torch(error) => is_out_of_memory(error),
            Self::Refused(error) => error.is_transient(),
        }
    }
}

impl From<TorchError> for ExecutorError {
    fn from(error: TorchError) -> Self {
        match error {
            TorchError::Refused(error) => error,
            TorchError::Torch(error) if is_out_of_memory(&error) => ExecutorError::OutOfMemory(first_line(&error)),
            other @ TorchError::Torch(_) => ExecutorError::Device(other.to_string()),
            other => ExecutorError::Weights { reason: other.reason(), message: other.to_string() },
        }
    }
}

/// libtorch appends a C++ backtrace; only its first line says what happened.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// libtorch has no code for it: its CPU allocator says `can't allocate memory`, CUDA's `out of memory`.
fn is_out_of_memory(error: &TchError) -> bool {
    let text = error.to_string();
    text.contains("allocate memory") || text.contains("out of memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_errors_may_pass_and_shape_errors_may_not() {
        let full = TchError::Torch("DefaultCPUAllocator: can't allocate memory: you tried\nframe #0".into());
        let full = TorchError::from(full);
        assert_eq!((full.reason(), full.is_transient()), ("OutOfMemory", true));
        assert!(matches!(ExecutorError::from(full), ExecutorError::OutOfMemory(text) if !text.contains("frame")));
        let shape = TorchError::from(TchError::Torch("mat1 and mat2 shapes cannot be multiplied".into()));
        assert_eq!((shape.reason(), shape.is_transient()), ("DeviceFailed", false));
    }
}
