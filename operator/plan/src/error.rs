//! Why a valid spec has no plan: what needs the model's numbers to be seen.

use std::fmt;

use m1_arch::Bytes;
use m1_operator_api::Reason;
use thiserror::Error;

use crate::DeviceBytes;

/// Why a valid spec has no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// More pods than experts.
    #[error(
        "spec.parallelism.expert: {pods}: the model has {experts} experts per layer, and every pod needs at least one: at most {experts}"
    )]
    TooManyPods {
        /// Pods asked for.
        pods: u32,
        /// Experts per layer.
        experts: usize,
    },
    /// The model cannot be cut over so many GPUs.
    #[error("spec.parallelism.tensor: {tensor}: the model cannot be cut so: {why}")]
    Tensor {
        /// GPUs asked for.
        tensor: u32,
        /// Which of the model's numbers it does not divide.
        why: String,
    },
    /// The placement of a group is larger than an object of a cluster may be.
    #[error(
        "spec.parallelism.expert: {pods}: who holds which of {layers} x {experts} experts takes {digits} digits for so many pods, and one \
         object of a cluster holds {most} of them: fewer pods", most = crate::compose::MOST_DIGITS
    )]
    TooLarge {
        /// Pods asked for.
        pods: u32,
        /// Layers of the model.
        layers: usize,
        /// Experts per layer.
        experts: usize,
        /// Digits of the placement.
        digits: u64,
    },
    /// The window is longer than the model's positions.
    #[error("spec.model.maxContextTokens: {given}: the model has {positions} positions: at most {positions}")]
    Window {
        /// Tokens asked for.
        given: u32,
        /// Positions of the model.
        positions: usize,
    },
    /// GPUs are asked for whose memory nobody knows.
    #[error(
        "spec.worker.memoryPerGpu: not given: parallelism.tensor: {tensor} asks for {tensor} GPUs per pod, and without their memory \
         nothing can be planned; allowed: a quantity such as 80G (m1ctl plan also takes --gpu-memory)"
    )]
    GpuMemoryUnknown {
        /// GPUs per pod.
        tensor: u32,
    },
    /// A CPU pod does not fit its memory limit.
    #[error(
        "spec.worker.resources.limits.memory: {limit} per pod is too little by {}: weights, KV and states {held}, the process itself {process}",
        (*held + *process).saturating_sub(*limit)
    )]
    PodMemory {
        /// The limit.
        limit: Bytes,
        /// What the fullest pod holds.
        held: Bytes,
        /// What a worker needs beside that.
        process: Bytes,
    },
    /// It does not fit the memory.
    #[error("spec.worker.memoryPerGpu: {0}")]
    Memory(Box<Shortage>),
}

impl PlanError {
    /// The reason of the condition `Accepted=False`.
    pub fn condition(&self) -> Reason {
        match self {
            PlanError::TooManyPods { .. } | PlanError::Tensor { .. } | PlanError::TooLarge { .. } => Reason::Unsplittable,
            PlanError::Window { .. } => Reason::InvalidSpec,
            PlanError::GpuMemoryUnknown { .. } => Reason::InvalidSpec,
            PlanError::Memory(_) | PlanError::PodMemory { .. } => Reason::InsufficientMemory,
        }
    }

    /// The word used in logs, conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        self.condition().as_str()
    }
}

/// What was needed, what there is, and what would fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What the fullest GPU needs at least: weights, one slot, one window, the reserve.
    pub needed: DeviceBytes,
    /// Memory of a GPU.
    pub memory: Bytes,
    /// Tokens of the window.
    pub window: u32,
    /// Single changes to the spec that would fit.
    pub offers: Vec<Offer>,
}

impl Shortage {
    /// All that is needed.
    pub fn total(&self) -> Bytes {
        self.needed.weights() + self.needed.kv + self.needed.state + self.needed.reserve
    }
}

/// A change to the spec that would fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The change, as it is written in the spec.
    pub change: String,
    /// Weights per GPU then.
    pub weights: Bytes,
}

impl fmt::Display for Shortage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceBytes { experts, attention, kv, state, reserve, .. } = &self.needed;
        write!(
            out,
            "{} per GPU is too little by {}: {} of weights (experts {experts}, attention {attention}), KV for {} tokens {kv}, \
             one state slot {state}, reserve {reserve}",
            self.memory,
            self.total().saturating_sub(self.memory),
            self.needed.weights(),
            self.window,
        )?;
        let offers: Vec<String> =
            self.offers.iter().map(|offer| format!("{} ({} of weights per GPU)", offer.change, offer.weights)).collect();
        match offers.is_empty() {
            true => write!(out, "; no single change to the spec would fit"),
            false => write!(out, "; what would fit: {}", offers.join(", or ")),
        }
    }
}
