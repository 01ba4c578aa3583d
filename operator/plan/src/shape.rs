//! One way to cut and spread the model, and what it needs at least on the fullest device. The planner measures the spec
//! with it, and what it offers instead.

use m1_arch::{Architecture, GpuShare, ShardError, Storage};
use m1_operator_api::{Dtype, ExpertQuantization, Placement};

use crate::capacity::reserve;
use crate::placement::place;
use crate::{Checked, Device, DeviceBytes};

/// One way to cut and spread the model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub tensor: u32,
    pub pods: u32,
    pub copies: u32,
    pub placement: Placement,
    pub redundant_slots: u32,
    pub dtype: Storage,
    pub expert_dtype: Storage,
    pub window: u32,
}

impl Shape {
    /// The shape that a checked spec asks for. `Auto` is bf16 on GPUs; a CPU computes in fp32 whatever is stored.
    pub fn of(checked: &Checked, device: Device) -> Self {
        let dtype = match (checked.dtype, device) {
            (Dtype::BFloat16, _) | (Dtype::Auto, Device::Gpu) => Storage::BFloat16,
            (Dtype::Float32, _) | (Dtype::Auto, Device::Cpu) => Storage::Float32,
        };
        let expert_dtype = match checked.expert_quantization {
            ExpertQuantization::None => dtype,
            ExpertQuantization::Int8 => Storage::Int8,
        };
        Self {
            tensor: checked.tensor,
            pods: checked.pods,
            copies: checked.copies,
            placement: checked.placement,
            redundant_slots: checked.redundant_slots,
            dtype,
            expert_dtype,
            window: checked.max_context,
        }
    }

    /// One device's share of the model.
    pub fn share<'a>(&self, arch: &'a Architecture) -> Result<GpuShare<'a>, ShardError> {
        GpuShare::new(arch, self.tensor as usize)
    }

    /// Weights of a device whose pod has room for `pairs` (layer, expert) pairs.
    pub fn weights(&self, share: &GpuShare<'_>, pairs: u64) -> DeviceBytes {
        let weights = share.weights(pairs, self.expert_dtype, self.dtype);
        DeviceBytes { experts: weights.experts + weights.scales, attention: weights.rest, ..DeviceBytes::default() }
    }

    /// What the fullest device needs at least: its weights, the state of one sequence, KV for one window, and the reserve
    /// that goes with `memory`.
    pub fn least(&self, arch: &Architecture, memory: m1_arch::Bytes) -> Result<DeviceBytes, ShardError> {
        let share = self.share(arch)?;
        let (layers, experts) = (arch.layers.len(), arch.experts);
        let fullest = place(layers, experts, self.pods as usize, self.copies as usize, self.placement)
            .iter()
            .map(m1_arch::ExpertSet::len)
            .max()
            .unwrap_or(0);
        Ok(DeviceBytes {
            state: share.state_bytes_per_sequence(),
            kv: share.kv_bytes_per_token(self.dtype) * u64::from(self.window),
            reserve: reserve(memory),
            memory: Some(memory),
            ..self.weights(&share, fullest as u64 + u64::from(self.redundant_slots))
        })
    }
}
