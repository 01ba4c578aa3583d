//! The kind `MiniMaxM1Deployment`: what a user asks for.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{Autoscaling, DeploymentStatus, Experts, Model, Monitoring, Parallelism, Rollout, Router, Scheduling, Tls, Worker};

/// One MiniMax-M1 model, served: what to load, in how many pods and copies, and how it is kept alive.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "serving.minimax-m1.dev",
    version = "v1alpha1",
    kind = "MiniMaxM1Deployment",
    plural = "minimaxm1deployments",
    singular = "minimaxm1deployment",
    shortname = "m1d",
    category = "minimax-m1",
    namespaced,
    status = "DeploymentStatus",
    derive = "PartialEq",
    doc = "MiniMax-M1 on Kubernetes: one model, one or more full copies of it (replica groups), each spread over worker pods that hold its experts.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Replica groups that serve"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas", description = "Replica groups asked for"),
    printcolumn(
        name = "Up-to-date",
        type_ = "integer",
        json_path = ".status.updatedReplicas",
        description = "Replica groups of the newest revision"
    ),
    printcolumn(
        name = "Balancedness",
        type_ = "string",
        json_path = ".status.experts.balancedness",
        description = "Mean load of the pods over the highest, worst layer: 1 is even"
    ),
    printcolumn(
        name = "Queue",
        type_ = "integer",
        json_path = ".status.autoscaling.queueDepth",
        description = "Requests that wait for a slot"
    ),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.endpoint", description = "Where clients connect"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready, or why not"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name: at most 40 characters, so that the names of its pods and services fit"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.experts.copies <= self.parallelism.expert").message("experts.copies: copies of one expert lie on different pods: at most parallelism.expert").field_path(".experts.copies")
)]
pub struct MiniMaxM1DeploymentSpec {
    /// What is served: where the weights lie, under which name, in which precision.
    pub model: Model,
    /// Full copies of the model (replica groups). 0 keeps the router, which answers 503 with Retry-After. Default 1.
    /// The autoscaler writes this field through `/scale`.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 256))]
    pub replicas: u32,
    /// How one copy of the model is spread over pods and GPUs. Default `{tensor: 1, expert: 1}`.
    #[serde(default)]
    pub parallelism: Parallelism,
    /// Where experts lie, how many copies of each there are, and what happens when one is lost.
    #[serde(default)]
    pub experts: Experts,
    /// The pods that compute.
    #[serde(default)]
    pub worker: Worker,
    /// The pods that clients talk to.
    #[serde(default)]
    pub router: Router,
    /// When the number of replicas follows the load. Default: it does not.
    #[serde(default)]
    pub autoscaling: Autoscaling,
    /// How a change reaches running groups, counted in whole groups.
    #[serde(default)]
    pub rollout: Rollout,
    /// Where pods may run, and whether a group starts as a whole.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Objects for Prometheus and Grafana.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Encryption between the pods of this deployment. Default: none.
    #[serde(default)]
    pub tls: Tls,
}

fn one() -> u32 {
    1
}
