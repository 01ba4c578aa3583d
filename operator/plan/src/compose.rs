//! From checked values to the plan: names, shapes, bytes, placement, and what they promise.

use m1_arch::{Architecture, Bytes, ExpertSet, Storage};

use crate::capacity::{device, divide};
use crate::placement::{place, survives_any_loss};
use crate::predict::predict;
use crate::shape::Shape;
use crate::{
    Checked, Device, DeviceBytes, Environment, GroupPlan, ModelPlan, Offer, Plan, PlanError, PodBytes, PodLoss, PodPlan,
    RouterPlan, Shortage, WorkerArgs,
};

/// Prompt tokens of one step on a CPU: about what its experts compute between two looks at the inbox.
const CPU_PREFILL_CHUNK: u32 = 256;
/// The same on GPUs, where smaller chunks leave the tensor cores idle.
const GPU_PREFILL_CHUNK: u32 = 2048;
/// What a worker process may take beside weights and caches: activations of a step, frames of its peers, sequences that are set aside.
pub(crate) const CPU_PROCESS: Bytes = Bytes(300_000_000);
/// Hexadecimal digits of a placement: a third of what etcd takes of one object.
pub(crate) const MOST_DIGITS: u64 = 500_000;
/// Epoch of the first placement: 0 means that none was applied.
const FIRST_EPOCH: u64 = 1;

/// Plans a deployment.
///
/// # Errors
/// What needs the model's numbers to be seen: pods and GPUs it cannot be spread over, a window beyond its positions, and
/// memory, with the numbers and what would fit.
pub fn plan(checked: &Checked, environment: &Environment) -> Result<Plan, PlanError> {
    let arch = &environment.architecture;
    // 0 says: on CPUs, whatever the nodes have.
    let memory = checked.memory_per_gpu.or(environment.memory_per_gpu).filter(|memory| *memory > Bytes(0));
    let device = device(memory);
    let shape = Shape::of(checked, device);
    fits_the_model(&shape, arch)?;
    fits_an_object(&shape, arch)?;
    if device == Device::Cpu && checked.tensor > 1 {
        return Err(PlanError::GpuMemoryUnknown { tensor: checked.tensor });
    }
    if let Some(memory) = memory {
        fits_the_memory(&shape, arch, memory)?;
    }
    let holds = place(arch.layers.len(), arch.experts, shape.pods as usize, shape.copies as usize, shape.placement);
    let survives_pod_loss = pod_loss(&holds, arch, &shape, checked.replicas);
    let pod = |group: u32, index: usize, holds: &ExpertSet| pod(checked, &shape, arch, memory, (group, index as u32), holds);
    let group = |index: u32| -> Result<GroupPlan, PlanError> {
        let pods = holds.iter().enumerate().map(|(pod_index, holds)| pod(index, pod_index, holds)).collect::<Result<_, _>>()?;
        Ok(GroupPlan { index, name: checked.name.group(index), epoch: FIRST_EPOCH, pods })
    };
    let every = group(0)?;
    fits_the_limit(checked, device, &every)?;
    let groups = (0..checked.replicas).map(group).collect::<Result<Vec<_>, PlanError>>()?;
    Ok(Plan {
        name: checked.name.clone(),
        served_name: checked.served_name.clone(),
        model: model(checked, &shape, arch),
        device,
        router: router(checked, &groups),
        groups,
        every,
        survives_pod_loss,
        predicted: predict(&shape, environment),
    })
}

fn model(checked: &Checked, shape: &Shape, arch: &Architecture) -> ModelPlan {
    ModelPlan {
        source: checked.source.clone(),
        dtype: shape.dtype,
        expert_dtype: shape.expert_dtype,
        max_context: shape.window,
        layers: arch.layers.len(),
        experts: arch.experts,
        shape: arch.shape(),
    }
}

fn router(checked: &Checked, groups: &[GroupPlan]) -> RouterPlan {
    RouterPlan {
        name: checked.name.router(),
        replicas: checked.spec().router.replicas,
        served_name: checked.served_name.clone(),
        max_context: checked.max_context,
        workers: groups.iter().flat_map(|group| &group.pods).map(|pod| pod.name.clone()).collect(),
    }
}

fn fits_the_model(shape: &Shape, arch: &Architecture) -> Result<(), PlanError> {
    if shape.pods as usize > arch.experts {
        return Err(PlanError::TooManyPods { pods: shape.pods, experts: arch.experts });
    }
    if shape.window as usize > arch.max_positions {
        return Err(PlanError::Window { given: shape.window, positions: arch.max_positions });
    }
    shape.share(arch).map(|_| ()).map_err(|error| misfit(shape, &error))
}

/// Holds a group's placement to what one object of a cluster may hold.
fn fits_an_object(shape: &Shape, arch: &Architecture) -> Result<(), PlanError> {
    let digits = u64::from(shape.pods) * arch.layers.len() as u64 * arch.experts.div_ceil(4) as u64;
    match digits > MOST_DIGITS {
        true => Err(PlanError::TooLarge { pods: shape.pods, layers: arch.layers.len(), experts: arch.experts, digits }),
        false => Ok(()),
    }
}

fn misfit(shape: &Shape, error: &m1_arch::ShardError) -> PlanError {
    let why = format!("{} is {}; allowed are {}", error.field, error.size, error.allowed);
    PlanError::Tensor { tensor: shape.tensor, why }
}

fn fits_the_memory(shape: &Shape, arch: &Architecture, memory: Bytes) -> Result<(), PlanError> {
    let needed = shape.least(arch, memory).map_err(|error| misfit(shape, &error))?;
    let shortage = Shortage { needed, memory, window: shape.window, offers: Vec::new() };
    if shortage.total() <= memory {
        return Ok(());
    }
    Err(PlanError::Memory(Box::new(Shortage { offers: offers(shape, arch, memory), ..shortage })))
}

/// Holds the pods of a CPU to the memory limit that the spec gives them.
fn fits_the_limit(checked: &Checked, device: Device, group: &GroupPlan) -> Result<(), PlanError> {
    let held = group.pods.iter().map(|pod| pod.bytes.total).max();
    match (device, checked.pod_memory, held) {
        (Device::Cpu, Some(limit), Some(held)) if held + CPU_PROCESS > limit => {
            Err(PlanError::PodMemory { limit, held, process: CPU_PROCESS })
        }
        _ => Ok(()),
    }
}

/// Single changes that would fit: int8 experts, more pods, fewer copies, more GPUs per pod, a shorter window.
fn offers(shape: &Shape, arch: &Architecture, memory: Bytes) -> Vec<Offer> {
    let weights = |changed: &Shape| -> Option<Bytes> {
        let needed = changed.least(arch, memory).ok()?;
        let total = Shortage { needed, memory, window: changed.window, offers: Vec::new() }.total();
        (total <= memory).then(|| needed.weights())
    };
    let first = |field: &str, changes: Vec<(String, Shape)>| -> Option<Offer> {
        changes
            .into_iter()
            .find_map(|(value, changed)| weights(&changed).map(|weights| Offer { change: format!("{field}: {value}"), weights }))
    };
    let int8 = match shape.expert_dtype {
        Storage::Int8 => Vec::new(),
        _ => vec![("Int8".to_owned(), Shape { expert_dtype: Storage::Int8, ..shape.clone() })],
    };
    let pods = (shape.pods + 1..=arch.experts as u32).map(|pods| (pods.to_string(), Shape { pods, ..shape.clone() }));
    let copies = (1..shape.copies).rev().map(|copies| (copies.to_string(), Shape { copies, ..shape.clone() }));
    let tensor = (shape.tensor + 1..=64).map(|tensor| (tensor.to_string(), Shape { tensor, ..shape.clone() }));
    let windows =
        [512_000, 256_000, 128_000, 64_000, 32_000, 16_000, 8_000, 4_000].into_iter().filter(|window| *window < shape.window);
    let windows = windows.map(|window| (window.to_string(), Shape { window, ..shape.clone() }));
    [
        first("spec.model.expertQuantization", int8),
        first("spec.parallelism.expert", pods.collect()),
        first("spec.experts.copies", copies.collect()),
        first("spec.parallelism.tensor", tensor.collect()),
        first("spec.model.maxContextTokens", windows.collect()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn pod(
    checked: &Checked,
    shape: &Shape,
    arch: &Architecture,
    memory: Option<Bytes>,
    (group, index): (u32, u32),
    holds: &ExpertSet,
) -> Result<PodPlan, PlanError> {
    let share = shape.share(arch).map_err(|error| misfit(shape, &error))?;
    let weights = shape.weights(&share, holds.len() as u64 + u64::from(shape.redundant_slots));
    let (capacity, per_device) = divide(&share, shape.dtype, shape.window, weights, memory);
    let chunk = if memory.is_some() { GPU_PREFILL_CHUNK } else { CPU_PREFILL_CHUNK };
    Ok(PodPlan {
        name: checked.name.pod(group, index),
        index,
        holds: holds.clone(),
        bytes: pod_bytes(per_device, shape.tensor, arch, holds),
        args: WorkerArgs {
            slots: capacity.slots,
            kv_tokens: capacity.kv_tokens,
            max_context: shape.window,
            prefill_chunk: chunk.min(shape.window),
            threads: checked.threads,
        },
        gpus: if device(memory) == Device::Gpu { shape.tensor } else { 0 },
    })
}

fn pod_bytes(per_device: DeviceBytes, tensor: u32, arch: &Architecture, holds: &ExpertSet) -> PodBytes {
    let held = per_device.weights() + per_device.kv + per_device.state;
    let read = arch.rest_bytes(Storage::BFloat16) + arch.expert_bytes(Storage::BFloat16) * holds.len() as u64;
    PodBytes { per_device, total: held * u64::from(tensor), read }
}

/// What the loss of one pod costs, in words.
fn pod_loss(holds: &[ExpertSet], arch: &Architecture, shape: &Shape, replicas: u32) -> PodLoss {
    let survives = survives_any_loss(holds);
    let fullest = holds.iter().map(ExpertSet::len).max().unwrap_or(0) as u64;
    let reload = arch.expert_bytes(Storage::BFloat16) * fullest;
    let others = match replicas {
        0 | 1 => "until then the deployment does not serve".to_owned(),
        2 => "until then the other group serves".to_owned(),
        more => format!("until then the other {} groups serve", more - 1),
    };
    let words = match (holds.len(), survives) {
        (1, _) => {
            format!("no: the group is one pod, it comes back after a reload of {}; {others}", arch.total_bytes(Storage::BFloat16))
        }
        (_, true) => format!(
            "yes: every expert is held by {} pods; a lost pod's experts are answered by the others at once, while it reloads {reload}",
            shape.copies
        ),
        (_, false) => format!("no: every expert is held once; a lost pod is a reload of {reload} of experts; {others}"),
    };
    PodLoss { survives, words }
}
