//! `m1ctl restart` and `m1ctl resume`: annotations that ask the operator for something once.

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use m1_operator_api::labels;
use serde_json::json;

use crate::args::NamedArgs;
use crate::cluster::{Cluster, refused};
use crate::error::Failure;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Other pods, as the rollout allows.
    Restart,
    /// Another restart budget.
    Resume,
}

/// Runs the command.
///
/// # Errors
/// The API server does not answer, refuses, or has no such deployment.
pub async fn run(args: &NamedArgs, wish: Wish) -> Result<(), Failure> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let (annotation, done) = match wish {
        Wish::Restart => (labels::RESTARTED_AT, "restarts, as its rollout allows"),
        Wish::Resume => (labels::RESUMED_AT, "has a new restart budget"),
    };
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
    let patch = json!({"metadata": {"annotations": {annotation: now}}});
    let params = PatchParams { field_manager: Some("m1ctl".to_owned()), ..PatchParams::default() };
    let patched = cluster.deployments().patch(&args.name, &params, &Patch::Merge(&patch)).await;
    patched.map_err(|error| refused(&format!("{}/{}", cluster.namespace, args.name), &error))?;
    println!("minimaxm1deployment.serving.minimax-m1.dev/{} {done}", args.name);
    Ok(())
}
