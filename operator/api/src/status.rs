//! `status` of a MiniMaxM1Deployment: what is, as the operator last saw it.

use serde::{Deserialize, Serialize};

use crate::{ConditionStatus, ConditionType, Reason, Traffic};

/// What is, as the operator last saw it. Written at most every 10 s and when something changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Replica groups that exist.
    pub replicas: u32,
    /// Groups that serve, of all revisions.
    pub ready_replicas: u32,
    /// Groups of the newest revision.
    pub updated_replicas: u32,
    /// Groups that serve and take requests, of all revisions.
    pub available_replicas: u32,
    /// Label selector of the groups' leader pods, for `/scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Conditions, one of each type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Memory as planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// Whether a group survives the loss of any one of its pods, and what the loss costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub survives_pod_loss: Option<String>,
    /// The time per token that is to be expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<PredictedStatus>,
    /// How far the weights are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsStatus>,
    /// Experts: epoch, balance, what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsStatus>,
    /// What the autoscaler sees and did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingStatus>,
    /// One entry per replica group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupStatus>,
    /// The worker's image where the spec names none, as it was resolved once, so that an upgrade of the operator restarts nothing. It is
    /// resolved anew at a restart on request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_image: Option<String>,
    /// The router's image, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_image: Option<String>,
    /// The restart on request that the images were resolved for: the annotation `serving.minimax-m1.dev/restartedAt` as it was then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<String>,
}

/// A condition with the fields of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people, with the numbers.
    pub message: String,
    /// When `status` last changed, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The generation of the spec that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Memory as planned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryStatus {
    /// Of the fullest GPU.
    pub per_gpu: PerGpu,
}

/// Bytes of one GPU by use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PerGpu {
    /// Experts, with copies and places for hot ones.
    pub experts: u64,
    /// Everything of the model that is no expert.
    pub attention: u64,
    /// KV cache.
    pub kv: u64,
    /// Lightning state.
    pub state: u64,
    /// Snapshots of other groups' sequences.
    pub snapshots: u64,
    /// Left over.
    pub free: u64,
}

/// The time per token that is to be expected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PredictedStatus {
    /// Milliseconds per generated token of one sequence.
    pub ms_per_token: f64,
    /// Where the number comes from.
    pub from: String,
}

/// How far the weights are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightsStatus {
    /// Bytes read by all pods.
    pub bytes_loaded: u64,
    /// Bytes all pods have to read.
    pub bytes_total: u64,
    /// Time left at the present pace, such as `4m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<String>,
}

/// Experts: epoch, balance, what is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExpertsStatus {
    /// Newest epoch of the placement.
    pub epoch: u64,
    /// Mean load of the pods over the highest, worst layer, as `0.93`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balancedness: Option<String>,
    /// (layer, expert) pairs that no pod holds.
    pub unavailable: u32,
}

/// What the autoscaler sees and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoscalingStatus {
    /// Requests that wait for a slot, over all routers.
    pub queue_depth: u32,
    /// Groups the load asks for.
    pub desired: u32,
    /// When the number of groups last changed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_scale: Option<String>,
    /// The last changes, newest first, at most 10.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<ScaleEvent>,
}

/// One change of the number of groups.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaleEvent {
    /// When, RFC 3339.
    pub time: String,
    /// Groups before.
    pub from: u32,
    /// Groups after.
    pub to: u32,
    /// Why, with the numbers.
    pub message: String,
}

/// One replica group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupStatus {
    /// Its index.
    pub index: u32,
    /// Pods that are ready.
    pub ready_pods: u32,
    /// Pods it consists of.
    pub pods: u32,
    /// Hash of the revision its pods carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Epoch of the placement that all its pods have applied.
    pub epoch: u64,
    /// Whether it has served: what it lacks since then is lost.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub served: bool,
    /// Whether routers send it new requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// What it waits for, when it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last ends of its processes that were not asked for, newest first, at most 10.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub restarts: Vec<RestartRecord>,
}

/// The end of a worker process that nobody asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartRecord {
    /// When, RFC 3339.
    pub time: String,
    /// Name of the pod.
    pub pod: String,
    /// How, as `exit code 137 (OOMKilled)`.
    pub how: String,
}
