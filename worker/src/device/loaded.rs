//! [`Loaded`]: an executor with a model in it, whichever executor that is.

use m1_arch::ExpertSet;
use m1_cpu::{CpuError, CpuExecutor};
use m1_engine::{CacheSize, Executor};
use m1_weights::Checkpoint;

use crate::config::{Config, ExecutorKind};

/// Why weights could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct LoadError {
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

/// An executor that holds everything but experts, and some of these.
pub(super) trait Loaded: Executor + Send {
    /// The experts whose weights are here.
    fn held(&self) -> &ExpertSet;

    /// Changes what is held; `progress` is told the sum of stored bytes read by this call.
    fn update_experts(
        &mut self,
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), LoadError>;
}

impl Loaded for CpuExecutor {
    fn held(&self) -> &ExpertSet {
        CpuExecutor::held(self)
    }

    fn update_experts(
        &mut self,
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), LoadError> {
        Ok(CpuExecutor::update_experts(self, checkpoint, experts, progress)?)
    }
}

#[cfg(feature = "torch")]
impl Loaded for m1_torch::TorchExecutor {
    fn held(&self) -> &ExpertSet {
        m1_torch::TorchExecutor::held(self)
    }

    fn update_experts(
        &mut self,
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), LoadError> {
        Ok(m1_torch::TorchExecutor::update_experts(self, checkpoint, experts, progress)?)
    }
}

/// Loads a model into the executor that the configuration names.
pub(super) fn load(
    config: &Config,
    checkpoint: &Checkpoint,
    experts: &ExpertSet,
    progress: &mut dyn FnMut(u64),
) -> Result<Box<dyn Loaded>, LoadError> {
    let size = CacheSize::for_tokens(config.slots, config.kv_tokens.into());
    match config.executor {
        ExecutorKind::Cpu => {
            let executor = CpuExecutor::load(checkpoint, experts, size, config.threads.into(), progress)?;
            tracing::info!(kernels = executor.path().as_str(), threads = config.threads, "computing on the CPU");
            Ok(Box::new(executor))
        }
        #[cfg(feature = "torch")]
        ExecutorKind::Torch => {
            m1_torch::set_threads(config.threads);
            let executor = m1_torch::TorchExecutor::load(checkpoint, experts, size, progress)?;
            tracing::info!(threads = config.threads, "computing on libtorch");
            Ok(Box::new(executor))
        }
    }
}
