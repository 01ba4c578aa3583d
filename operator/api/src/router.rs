//! `spec.router`: the pods that clients talk to.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::words::words;
use crate::{LocalObjectRef, Quantity, Resources, Toleration};

/// The pods that clients talk to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Router {
    /// Router pods. Default 1.
    #[schemars(range(min = 1, max = 64))]
    pub replicas: u32,
    /// Image of the router. Default: the operator's own version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// CPU and memory of a pod.
    pub resources: Resources,
    /// Labels a node must have. Default: none; with `model.source.hostPath`, `worker.nodeSelector`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are accepted, beside those of `worker.tolerations`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the pods. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// The Service in front of them.
    pub service: Service,
    /// Who may ask.
    pub auth: Auth,
    /// What one request may ask for.
    pub limits: RequestLimits,
    /// Where requests wait for a slot.
    pub queue: Queue,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            replicas: 1,
            image: None,
            resources: Resources::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class_name: None,
            service: Service::default(),
            auth: Auth::default(),
            limits: RequestLimits::default(),
            queue: Queue::default(),
        }
    }
}

/// The Service in front of the routers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Service {
    /// `ClusterIP`, `NodePort` or `LoadBalancer`. Default `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Its port, for HTTP. Default 80.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Annotations, for example for a cloud's load balancer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for Service {
    fn default() -> Self {
        Self { kind: ServiceType::default(), port: 80, annotations: BTreeMap::new() }
    }
}

words! {
    /// Type of a Service.
    #[derive(Default)]
    ServiceType {
        /// Inside the cluster.
        #[default]
        ClusterIP,
        /// A port of every node.
        NodePort,
        /// An address from the cloud.
        LoadBalancer,
    }
}

/// Who may ask.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.mode != 'ApiKeys' || has(self.secretRef)").message("router.auth.secretRef: required with mode ApiKeys"))]
pub struct Auth {
    /// `Off`: everybody. `ApiKeys`: a bearer token that is a value of the Secret. Default `Off`; quote it (`"Off"`), because kubectl reads a bare Off as false.
    #[serde(default)]
    pub mode: AuthMode,
    /// The Secret whose values are the keys. Required with `ApiKeys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalObjectRef>,
}

words! {
    /// Who may ask.
    #[derive(Default)]
    AuthMode {
        /// Everybody.
        #[default]
        Off,
        /// Holders of a key.
        ApiKeys,
    }
}

/// What one request may ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestLimits {
    /// Most tokens one answer may have. Default: what the window leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_240_000))]
    pub max_output_tokens: Option<u32>,
    /// Largest body of a request, as a quantity. Default `16Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Quantity>,
}

/// Where requests wait for a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Queue {
    /// Most requests that wait in one router; one more is answered 429 with Retry-After. Default 256.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_requests: u32,
    /// Longest wait in seconds; then 429 with Retry-After. Default 60.
    #[schemars(range(min = 1, max = 86400))]
    pub max_wait_seconds: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_requests: 256, max_wait_seconds: 60 }
    }
}
