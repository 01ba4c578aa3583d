//! `m1ctl restart`, `m1ctl resume` and `m1ctl renew-certificates`: annotations that ask the operator for something once.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use m1_operator_api::{ConditionStatus, ConditionType, ResourceName, labels};
use m1_operator_plan::condition;
use serde_json::json;

use crate::args::{NamedArgs, RenewArgs};
use crate::cluster::{Cluster, refused};
use crate::error::Failure;

/// An operator that is there takes a restart up within moments; one that succeeds another may need its lease to run out first.
const TAKEN: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Other pods, as the rollout allows.
    Restart,
    /// Another restart budget.
    Resume,
    /// Another certificate for its members.
    RenewCertificates,
}

/// Runs `m1ctl renew-certificates`. With `--authority`, what signs them is deleted first, so that another one is made.
///
/// # Errors
/// The API server does not answer, refuses, or has no such deployment.
pub async fn renew(args: &RenewArgs) -> Result<(), Failure> {
    if args.authority {
        let cluster = Cluster::connect(&args.named.cluster).await?;
        let name = ResourceName::new(&args.named.name).map_err(|error| Failure::new("NAME", error))?.members_authority();
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let deleted = secrets.delete(&name, &DeleteParams::default()).await;
        deleted.map_err(|error| refused(&format!("Secret {}/{name}", cluster.namespace), &error))?;
        println!("secret/{name} deleted: members believe its successor first, and five minutes later it signs");
    }
    run(&args.named, Wish::RenewCertificates).await
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
        Wish::RenewCertificates => (labels::RENEW_CERTIFICATES_AT, "gets a new certificate"),
    };
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
    let patch = json!({"metadata": {"annotations": {annotation: now}}});
    let params = PatchParams { field_manager: Some("m1ctl".to_owned()), ..PatchParams::default() };
    let patched = cluster.deployments().patch(&args.name, &params, &Patch::Merge(&patch)).await;
    let patched = patched.map_err(|error| refused(&format!("{}/{}", cluster.namespace, args.name), &error))?;
    if wish == Wish::Restart && patched.spec.replicas > 0 {
        taken(&cluster, &args.name).await?;
    }
    println!("minimaxm1deployment.serving.minimax-m1.dev/{} {done}", args.name);
    Ok(())
}

/// Waits until the operator has taken a restart up: an annotation changes no generation, and until then `kubectl wait` would be
/// content with what runs.
async fn taken(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let until = tokio::time::Instant::now() + TAKEN;
    loop {
        let deployment = cluster.deployment(name).await?;
        let ready = deployment.status.as_ref().and_then(|status| condition(status, ConditionType::Ready));
        if ready.is_none_or(|ready| ready.status != ConditionStatus::True) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            let why = format!("asked for, but no operator has taken it up in {} s: is it there?", TAKEN.as_secs());
            return Err(Failure::new(name, why));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
