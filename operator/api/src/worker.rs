//! `spec.worker`: the pods that compute.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Quantity;
use crate::model::free_object;

/// The pods that compute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Worker {
    /// Image of the worker. Default: the operator's own version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Secrets to pull it with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectRef>,
    /// Memory of one GPU as a quantity, such as `80G` (80 GB) or `80Gi`; `0` plans for CPUs whatever the nodes have. Default: the
    /// smallest label `nvidia.com/gpu.memory` of the nodes that `nodeSelector` chooses, kept for as long as the revision lives.
    /// Without either, pods are planned for CPUs and ask for no GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_per_gpu: Option<Quantity>,
    /// CPU and memory of a pod. GPUs come from `parallelism.tensor`. A CPU limit also bounds the compute threads.
    pub resources: Resources,
    /// Labels a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Strategic-merge patch over the generated pod template; `null` deletes a field, and `$patch` is not known. What the operator sets and
    /// needs is refused by name: of the pod `hostname`, `subdomain`, `nodeName`, `restartPolicy`, `serviceAccountName`, `hostNetwork`, `hostPID`,
    /// `hostIPC`, `terminationGracePeriodSeconds`, `securityContext.runAsNonRoot` and `.seccompProfile`; of the container `worker` `command`,
    /// `args`, `image`, `ports`, the probes, `securityContext` and `nvidia.com/gpu`; labels and annotations of `serving.minimax-m1.dev` and `app.kubernetes.io`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub pod_template: Option<Map<String, Value>>,
    /// Time a pod gets to hand its sequences over before it ends, in seconds. Default 120.
    #[schemars(range(min = 0, max = 86400))]
    pub drain_seconds: u32,
    /// How many failures of a pod are answered by a restart.
    pub restart_budget: RestartBudget,
    /// After this time without a sign of life from its node a pod counts as lost, in seconds. Default 60.
    #[schemars(range(min = 5, max = 3600))]
    pub unreachable_seconds: u32,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            image: None,
            image_pull_secrets: Vec::new(),
            memory_per_gpu: None,
            resources: Resources::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            pod_template: None,
            drain_seconds: 120,
            restart_budget: RestartBudget::default(),
            unreachable_seconds: 60,
        }
    }
}

/// An object in the namespace of the deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalObjectRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Requests and limits of a container, as Kubernetes has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What is set aside.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What it may not exceed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
}

/// A taint that is accepted, as Kubernetes has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Toleration {
    /// Key of the taint. Default: every key, with operator `Exists`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `Equal` or `Exists`. Default `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Value of the taint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// With `NoExecute`: how long it is accepted, in seconds. Default: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How many failures of a pod are answered by a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RestartBudget {
    /// Restarts within `windowSeconds`; after that the deployment is `Degraded` until `kubectl m1 resume`; the pod stays for
    /// diagnosis, and the kubelet tries it with its own back-off. At most 9, what the status remembers. Default 5.
    #[schemars(range(min = 0, max = 9))]
    pub restarts: u32,
    /// Length of the window in seconds. Default 3600.
    #[schemars(range(min = 60, max = 604800))]
    pub window_seconds: u32,
}

impl Default for RestartBudget {
    fn default() -> Self {
        Self { restarts: 5, window_seconds: 3600 }
    }
}
