//! The operating sections of the spec: autoscaling, rollout, scheduling, monitoring, TLS.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::words::words;

/// When the number of replicas follows the load.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("autoscaling.minReplicas: at most maxReplicas").field_path(".minReplicas"))]
pub struct Autoscaling {
    /// `Off`: replicas stay as written. `Internal`: the operator scales by the routers' queue. `External`: an
    /// autoscaler of the cluster writes `/scale`. Default `Off`; quote it (`"Off"`), because kubectl reads a bare Off as false.
    #[serde(default)]
    pub mode: AutoscalingMode,
    /// Fewest replica groups. 0 scales to zero. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 256))]
    pub min_replicas: u32,
    /// Most replica groups. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub max_replicas: u32,
    /// Waiting requests per group that are aimed at. Default 4.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub target_queue_depth: u32,
    /// Running requests per group that are aimed at. Default: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub target_running: Option<u32>,
    /// How long a change must be wanted before it is made.
    #[serde(default)]
    pub behavior: ScalingBehavior,
}

fn one() -> u32 {
    1
}

fn four() -> u32 {
    4
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            mode: AutoscalingMode::default(),
            min_replicas: 1,
            max_replicas: 1,
            target_queue_depth: 4,
            target_running: None,
            behavior: ScalingBehavior::default(),
        }
    }
}

words! {
    /// Who changes the number of replicas.
    #[derive(Default)]
    AutoscalingMode {
        /// Nobody.
        #[default]
        Off,
        /// The operator.
        Internal,
        /// An autoscaler of the cluster, through `/scale`.
        External,
    }
}

/// How long a change must be wanted before it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScalingBehavior {
    /// Before a group is added, in seconds. Default 0.
    #[schemars(range(min = 0, max = 3600))]
    pub scale_up_stabilization_seconds: u32,
    /// Before a group is taken away, in seconds. Default 300.
    #[schemars(range(min = 0, max = 86400))]
    pub scale_down_stabilization_seconds: u32,
}

impl Default for ScalingBehavior {
    fn default() -> Self {
        Self { scale_up_stabilization_seconds: 0, scale_down_stabilization_seconds: 300 }
    }
}

/// How a change reaches running groups, counted in whole groups.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.maxUnavailable + self.maxSurge > 0").message("rollout: one of maxUnavailable and maxSurge must be more than 0"))]
pub struct Rollout {
    /// Groups that may be away during a rollout. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 256))]
    pub max_unavailable: u32,
    /// Groups beyond `replicas` during a rollout; each needs GPUs of its own. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 256))]
    pub max_surge: u32,
    /// Changes are recorded but reach no group while this is true; routers follow theirs at once. Default false.
    #[serde(default)]
    pub paused: bool,
    /// Whether a rollout may end sequences that have nowhere to go. Default false: it stops and says so.
    #[serde(default)]
    pub allow_downtime: bool,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { max_unavailable: 1, max_surge: 0, paused: false, allow_downtime: false }
    }
}

/// Where pods may run, and whether a group starts as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scheduling {
    /// Gang scheduler whose PodGroup is made, so that a group starts as a whole or not at all. `Off`, `Coscheduling`
    /// (scheduler-plugins), `Volcano` or `Kai`. Default `Off`; quote it (`"Off"`), because kubectl reads a bare Off as false.
    pub gang: Gang,
    /// Node label whose value all pods of a group share, such as a rack or a network block. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    pub topology_key: Option<String>,
    /// PriorityClass of the pods. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

words! {
    /// Gang scheduler whose PodGroup is made.
    #[derive(Default)]
    Gang {
        /// None.
        #[default]
        Off,
        /// scheduler-plugins' Coscheduling.
        Coscheduling,
        /// Volcano.
        Volcano,
        /// KAI scheduler.
        Kai,
    }
}

/// Objects for Prometheus and Grafana.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Monitoring {
    /// Whether a PodMonitor is made (needs the Prometheus operator's CRDs). Default false.
    pub pod_monitor: bool,
    /// Labels of the PodMonitor, as the Prometheus operator selects by: kube-prometheus-stack asks for `release`. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_monitor_labels: BTreeMap<String, String>,
    /// Time between two scrapes, as `30s` or `1m`. Default: Prometheus' own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]{1,6}(ms|s|m|h))+$"))]
    pub interval: Option<String>,
    /// Whether a ConfigMap with the Grafana dashboards is made. Default false.
    pub dashboards: bool,
}

/// Encryption between the pods of this deployment.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.mode != 'CertManager' || has(self.issuerRef)").message("tls.issuerRef: required with mode CertManager"),
    validation = Rule::new("self.mode == oldSelf.mode || self.mode == 'Off' || oldSelf.mode == 'Off'").message("tls.mode: between Managed and CertManager set Off first, or members would not believe each other")
)]
pub struct Tls {
    /// `Off`: none. `Managed`: the operator makes and renews the certificates. `CertManager`: cert-manager does. Default `Off`; quote it (`"Off"`), because kubectl reads a bare Off as false.
    #[serde(default)]
    pub mode: TlsMode,
    /// The issuer. Required with `CertManager`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
}

words! {
    /// Who makes the certificates.
    #[derive(Default)]
    TlsMode {
        /// Nobody: no encryption.
        #[default]
        Off,
        /// The operator.
        Managed,
        /// cert-manager.
        CertManager,
    }
}

/// An issuer of cert-manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerRef {
    /// Name of the issuer.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `Issuer` or `ClusterIssuer`. Default `Issuer`.
    #[serde(default = "issuer")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// API group of the issuer. Default `cert-manager.io`.
    #[serde(default = "cert_manager")]
    #[schemars(length(min = 1, max = 253))]
    pub group: String,
}

fn issuer() -> String {
    "Issuer".to_owned()
}

fn cert_manager() -> String {
    "cert-manager.io".to_owned()
}
