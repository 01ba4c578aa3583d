//! The operator: observes a cluster, lets `m1-operator-plan` decide, applies what was decided, writes the status. It owns no rule
//! of its own about groups, rollouts or conditions; those are pure and live in the planner.
//!
//! observe ([`cache`], [`observe`], [`workers`]) -> validate, plan ([`settle`]) -> decide (`m1_operator_plan::decide`) ->
//! [`apply`] -> status ([`report`]). One process leads ([`leader`]); the others wait.

pub mod apply;
pub mod cache;
pub mod certificates;
pub mod cluster;
pub mod config;
pub mod deployments;
pub mod error;
pub mod leader;
pub mod metrics;
pub mod notes;
pub mod observe;
pub mod reconcile;
pub mod relist;
pub mod report;
pub mod run;
pub mod seen;
pub mod settle;
pub mod workers;
