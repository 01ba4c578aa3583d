//! [`Boxed`]: an executor with a model in it, whichever executor that is.

use std::sync::Arc;

use m1_arch::ExpertSet;
use m1_cpu::{CpuError, CpuNetwork};
use m1_engine::{CacheSize, Executor, Inline, Progress};
use m1_weights::Checkpoint;

use crate::config::{Config, ExecutorKind};

/// An executor of this model.
pub type Boxed = Box<dyn Executor<Weights = Arc<Checkpoint>> + Send>;

/// Makes an executor that holds everything but experts, and some of these.
pub type Load = fn(&Config, &Checkpoint, &ExpertSet, Progress<'_>) -> Result<Boxed, LoadError>;

/// Why weights could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// One CamelCase word.
    pub reason: &'static str,
    message: String,
}

impl From<CpuError> for LoadError {
    fn from(error: CpuError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

#[cfg(feature = "torch")]
impl From<m1_torch::TorchError> for LoadError {
    fn from(error: m1_torch::TorchError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

/// Loads a model into the executor that the configuration names.
///
/// # Errors
/// The weights cannot be used, or there is no memory or thread for them.
pub fn load(config: &Config, checkpoint: &Checkpoint, experts: &ExpertSet, progress: Progress<'_>) -> Result<Boxed, LoadError> {
    let size = CacheSize::for_tokens(config.slots, config.kv_tokens.into());
    let executor: Boxed = match config.executor {
        ExecutorKind::Cpu => Box::new(Inline::new(CpuNetwork::load(checkpoint, experts, size, config.threads.into(), progress)?)),
        #[cfg(feature = "torch")]
        ExecutorKind::Torch => {
            m1_torch::set_threads(config.threads);
            Box::new(Inline::new(m1_torch::TorchNetwork::load(checkpoint, experts, size, progress)?))
        }
    };
    tracing::info!(device = %executor.capabilities().device, "the device is ready");
    Ok(executor)
}
