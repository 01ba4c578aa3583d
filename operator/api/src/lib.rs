//! The Kubernetes API of this project: the custom resources `MiniMaxM1Deployment` and `ExpertPlacement`, checked
//! names, and the words conditions speak.
//!
//! The doc comments of the fields are the user manual: they flow into the CRDs. This crate is pure: it reaches no
//! API server, no clock and no file.

mod autoscaling;
mod condition;
mod crd;
mod deployment;
mod experts;
mod field_error;
pub mod labels;
mod model;
mod names;
mod placement;
mod quantity;
mod router;
mod status;
mod structure;
mod words;
mod worker;

pub use autoscaling::{
    Autoscaling, AutoscalingMode, Gang, IssuerRef, Monitoring, Rollout, ScalingBehavior, Scheduling, Tls, TlsMode,
};
pub use condition::{ConditionStatus, ConditionType, Reason};
pub use crd::{CrdFile, crd_files};
pub use deployment::{MiniMaxM1Deployment, MiniMaxM1DeploymentSpec};
pub use experts::{Experts, Loss, LossPolicy, Parallelism, Placement, Rebalance, RebalanceMode};
pub use field_error::{FieldError, FieldReason};
pub use kube;
pub use model::{
    CacheClaim, CacheEmptyDir, CacheHostPath, Dtype, ExpertQuantization, HostPathSource, HuggingFaceSource, ImageSource, Model,
    ModelCache, ModelSource, PersistentVolumeClaimSource, SecretKeyRef, UrlSource,
};
pub use names::{MAX_NAME_LENGTH, NameError, ResourceName};
pub use placement::{AppliedPod, ExpertMove, ExpertPlacement, ExpertPlacementSpec, ExpertPlacementStatus, PodHolding, Traffic};
pub use quantity::{Quantity, QuantityError, parse_interval};
pub use router::{Auth, AuthMode, Queue, RequestLimits, Router, Service, ServiceType};
pub use status::{
    AutoscalingStatus, Condition, DeploymentStatus, ExpertsStatus, GroupStatus, MemoryStatus, PerGpu, PredictedStatus,
    RestartRecord, ScaleEvent, WeightsStatus,
};
pub use structure::{check_deployment, check_structure};
pub use worker::{LocalObjectRef, Resources, RestartBudget, Toleration, Worker};

/// API group of every kind here.
pub const GROUP: &str = "serving.minimax-m1.dev";
/// Version of the API.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` as a manifest writes it.
pub const API_VERSION: &str = "serving.minimax-m1.dev/v1alpha1";
