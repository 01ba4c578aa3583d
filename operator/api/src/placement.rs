//! The kind `ExpertPlacement`: the truth of which pod should hold which expert of which layer. One object per replica
//! group, written before it is pushed; per-expert load never enters it.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::words::words;

/// Who should hold what in one replica group.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[kube(
    group = "serving.minimax-m1.dev",
    version = "v1alpha1",
    kind = "ExpertPlacement",
    plural = "expertplacements",
    singular = "expertplacement",
    shortname = "m1ep",
    category = "minimax-m1",
    namespaced,
    status = "ExpertPlacementStatus",
    derive = "PartialEq",
    doc = "Which pod of a replica group should hold which expert of which layer. Written by the operator; read it, do not edit it.",
    printcolumn = r#"{"name": "Epoch", "type": "integer", "jsonPath": ".spec.epoch", "description": "Version of the placement"}"#,
    printcolumn = r#"{"name": "Applied", "type": "integer", "jsonPath": ".status.appliedEpoch", "description": "Oldest version that a pod still runs"}"#,
    printcolumn = r#"{"name": "Moving", "type": "integer", "jsonPath": ".status.moving", "description": "Experts on their way"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
// Only operators write it, and one must be able to read what a newer one wrote.
#[serde(rename_all = "camelCase")]
pub struct ExpertPlacementSpec {
    /// Name of the MiniMaxM1Deployment.
    #[schemars(length(min = 1, max = 40))]
    pub deployment: String,
    /// Index of the replica group.
    #[schemars(range(min = 0, max = 256))]
    pub group: u32,
    /// How often the leadership of the operator had changed when this was written. Workers refuse an older pair of
    /// (lease transitions, epoch).
    pub lease_transitions: u64,
    /// Version of the placement; grows by one with every change.
    #[schemars(range(min = 1))]
    pub epoch: u64,
    /// Layers of the model.
    #[schemars(range(min = 1, max = 4096))]
    pub layers: u32,
    /// Experts per layer.
    #[schemars(range(min = 1, max = 4096))]
    pub experts: u32,
    /// The model's shape in words, as it was planned for: a worker whose checkpoint is of another refuses the placement.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub model: String,
    /// Revision that the group's pods carry.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub revision: String,
    /// Whether routers send new requests to the group. `Open`. `Closed`: what runs may end, nothing new comes. Default `Open`.
    #[serde(default)]
    pub traffic: Traffic,
    /// Whether the group's pods are spoken to with mutual TLS. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// One entry per pod of the group, in the order of their indices.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["pod"]))]
    pub pods: Vec<PodHolding>,
}

words! {
    /// Whether routers send new requests to a group.
    #[derive(Default)]
    Traffic {
        /// They do.
        #[default]
        Open,
        /// They do not; what runs may end.
        Closed,
    }
}

/// What one pod should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodHolding {
    /// Name of the pod.
    #[schemars(length(min = 1, max = 253))]
    pub pod: String,
    /// `HOST:PORT` of its gRPC services.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 320))]
    pub address: String,
    /// Bitmap in hex: per layer ceil(experts / 4) digits, the lowest expert is the highest bit of the first digit.
    /// 640 digits for MiniMax-M1.
    #[schemars(regex(pattern = "^[0-9a-f]*$"))]
    pub holds: String,
}

/// What the pods have applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExpertPlacementStatus {
    /// Oldest epoch that a pod still runs.
    pub applied_epoch: u64,
    /// Epoch and digest per pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<AppliedPod>,
    /// Number of experts on their way.
    pub moving: u32,
    /// At most 32 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub moves: Vec<ExpertMove>,
}

/// What one pod has applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AppliedPod {
    /// Name of the pod.
    pub pod: String,
    /// Epoch it runs.
    pub epoch: u64,
    /// Digest of the checkpoint that it serves from.
    pub digest: String,
}

/// One expert of one layer on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExpertMove {
    /// Layer, from 0.
    pub layer: u32,
    /// Expert, from 0.
    pub expert: u32,
    /// Pod that has it; none when it is read from the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Pod that gets it.
    pub to: String,
}
