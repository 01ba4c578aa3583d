//! From a manifest to a plan: `load` reads it, `validate` turns the loose spec into checked values or every error at
//! once, `plan` decides every shape, name, byte count and expert placement, `runnable` says what a runtime cannot do yet.
//!
//! Pure: no API server, no async runtime, no tensor library. The same input gives the same plan, and a plan leaves
//! nothing to decide to whoever carries it out.

mod capacity;
mod compose;
mod decide;
mod display;
mod error;
mod load;
mod object;
mod observed;
mod placement;
mod predict;
pub mod rbac;
pub mod render;
mod revision;
mod rules;
mod runnable;
mod shape;
mod types;
mod validate;

pub use capacity::Capacity;
pub use compose::plan;
pub use decide::{
    Decision, PlacementWrite, PodDeletion, Refusal, condition, container_trouble, decide, refuse, seconds, write_refused,
};
pub use error::{Offer, PlanError, Shortage};
pub use load::load;
pub use m1_operator_api::{FieldError, FieldReason, MiniMaxM1Deployment};
pub use object::{Kind, Object, holds};
pub use observed::{
    BesideSeen, CertificateTrouble, ContainerSeen, EndSeen, GroupSeen, NodeSeen, Observed, PlacementSeen, PodSeen, RouterSeen,
    WorkerPhase, WorkerSeen,
};
pub use placement::{place, range_words};
pub use revision::{Revision, canonical};
pub use runnable::{Runtime, runnable, unused};
pub use types::{
    Device, DeviceBytes, Environment, GroupPlan, Link, ModelPlan, Plan, PodBytes, PodLoss, PodPlan, Predicted, RouterPlan,
    WorkerArgs,
};
pub use validate::{Checked, Source, validate};
