//! The plan: an immutable, printable value with nothing left to decide.

use std::time::Duration;

use m1_arch::{Architecture, Bytes, ExpertSet, Storage};
use m1_operator_api::ResourceName;
use serde::{Serialize, Serializer};

use crate::Source;

/// What a plan is made for, beside the spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Environment {
    /// The model, as its checkpoint or `spec.model.config` describes it.
    pub architecture: Architecture,
    /// Memory of one GPU where the spec does not say: the smallest node label `nvidia.com/gpu.memory`. None without GPUs.
    pub memory_per_gpu: Option<Bytes>,
    /// The measured link between two pods; without it nothing is predicted.
    pub link: Option<Link>,
    /// Measured compute per token of one sequence, without any waiting for pods; counted as zero when unknown.
    pub compute_per_token: Option<Duration>,
}

impl Environment {
    /// An environment of which only the model is known.
    pub fn new(architecture: Architecture) -> Self {
        Self { architecture, memory_per_gpu: None, link: None, compute_per_token: None }
    }
}

/// A measured link between two pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Time of an empty exchange.
    pub round_trip: Duration,
    /// Bytes per second.
    pub bandwidth: Bytes,
}

/// What a pod computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Device {
    /// Threads of a CPU; fp32.
    Cpu,
    /// GPUs, `parallelism.tensor` of them per pod.
    Gpu,
}

/// Everything that has to exist for one deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the deployment.
    pub name: ResourceName,
    /// The name clients send.
    pub served_name: String,
    /// The model.
    pub model: ModelPlan,
    /// What its pods compute on.
    pub device: Device,
    /// One entry per full copy of the model.
    pub groups: Vec<GroupPlan>,
    /// What every one of them is, also where none is asked for.
    #[serde(skip)]
    pub every: GroupPlan,
    /// The front door.
    pub router: RouterPlan,
    /// What the loss of a pod costs.
    pub survives_pod_loss: PodLoss,
    /// The time per token to be expected; none when no link was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
}

impl Plan {
    /// A pod that stands for all: in one group they differ only in the experts they hold.
    pub fn template(&self) -> Option<&PodPlan> {
        self.every.pods.first()
    }
}

/// The model as it will be held.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelPlan {
    /// Where the checkpoint lies.
    pub source: Source,
    /// How everything but the experts is held.
    pub dtype: Storage,
    /// How experts are held.
    pub expert_dtype: Storage,
    /// Most tokens of one request, prompt and answer together.
    pub max_context: u32,
    /// Layers.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Its shape in words: [`Architecture::shape`](m1_arch::Architecture::shape).
    pub shape: String,
}

/// One full copy of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupPlan {
    /// Its index.
    pub index: u32,
    /// Name of its StatefulSet and of its ExpertPlacement.
    pub name: String,
    /// Version of its placement; the first is 1.
    pub epoch: u64,
    /// Its pods.
    pub pods: Vec<PodPlan>,
}

/// One worker pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodPlan {
    /// Its name.
    pub name: String,
    /// Its index in the group.
    pub index: u32,
    /// The (layer, expert) pairs it holds.
    #[serde(serialize_with = "as_hex")]
    pub holds: ExpertSet,
    /// What it holds in bytes.
    pub bytes: PodBytes,
    /// What its worker process is started with.
    pub args: WorkerArgs,
    /// GPUs it asks for; 0 on a CPU.
    pub gpus: u32,
}

fn as_hex<S: Serializer>(holds: &ExpertSet, output: S) -> Result<S::Ok, S::Error> {
    output.serialize_str(&holds.to_hex())
}

/// Bytes of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PodBytes {
    /// Of each of its devices.
    pub per_device: DeviceBytes,
    /// Weights, cache and state of all its devices together.
    pub total: Bytes,
    /// What it reads from the source to start: the experts it holds and everything else, as stored in the checkpoint's 16-bit form.
    pub read: Bytes,
}

/// Bytes of one device (a GPU, or the CPU) by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceBytes {
    /// Experts: copies, and places for hot ones.
    pub experts: Bytes,
    /// Everything of the model that is no expert.
    pub attention: Bytes,
    /// KV cache.
    pub kv: Bytes,
    /// Lightning state.
    pub state: Bytes,
    /// Kept for the driver, communication buffers, activations of a step and the allocator's gaps.
    pub reserve: Bytes,
    /// Left over.
    pub free: Bytes,
    /// Memory of the device; none when it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

impl DeviceBytes {
    /// Experts and attention.
    pub fn weights(&self) -> Bytes {
        self.experts + self.attention
    }
}

/// What a worker process is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerArgs {
    /// State slots: sequences at the same time.
    pub slots: u32,
    /// KV tokens of all sequences together.
    pub kv_tokens: u64,
    /// Most tokens of one sequence.
    pub max_context: u32,
    /// Most prompt tokens in one step.
    pub prefill_chunk: u32,
    /// Compute threads where the spec limits them; otherwise whoever starts the process divides the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

/// The front door.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterPlan {
    /// Name of its Deployment and Service.
    pub name: String,
    /// Pods.
    pub replicas: u32,
    /// The name clients send.
    pub served_name: String,
    /// Most tokens of one request.
    pub max_context: u32,
    /// The worker pods of all groups, by name, in order.
    pub workers: Vec<String>,
}

/// What the loss of one pod costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodLoss {
    /// Whether every expert is still held after the loss of any one pod of a group.
    pub survives: bool,
    /// The same in words, with the numbers.
    pub words: String,
}

/// The time per token to be expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predicted {
    /// Milliseconds per generated token of one sequence.
    pub ms_per_token: f64,
    /// Where the number comes from.
    pub from: String,
}
