//! `m1ctl restart`, `m1ctl resume` and `m1ctl renew-certificates`: annotations that ask the operator for something once.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use m1_operator_api::{
    Condition, ConditionStatus, ConditionType, DeploymentStatus, GroupStatus, MiniMaxM1Deployment, Reason, ResourceName, TlsMode,
    Traffic, labels,
};
use m1_operator_plan::condition;
use serde_json::json;

use crate::args::{NamedArgs, RenewArgs};
use crate::cluster::{Cluster, refused};
use crate::error::Failure;
use crate::explain;

/// An operator that is there takes a restart up within moments; one that succeeds another may need its lease to run out first.
const TAKEN: Duration = Duration::from_secs(30);
/// A group that got ready a moment ago is given 5 s before the operator judges who could take over, and statuses are a second apart.
const SETTLES: Duration = Duration::from_secs(10);

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
/// The API server does not answer, refuses, or has no such deployment; or nothing comes of a restart.
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
        taken(&cluster, &args.name, &Asked { at: &now, before: patched.status.as_ref() }).await?;
    }
    if wish == Wish::RenewCertificates {
        renewable(&patched).map_err(|why| Failure::new(&args.name, why))?;
    }
    println!("minimaxm1deployment.serving.minimax-m1.dev/{} {done}", args.name);
    Ok(())
}

/// Whether the operator can make a certificate for a deployment.
///
/// # Errors
/// Why not.
fn renewable(deployment: &MiniMaxM1Deployment) -> Result<(), String> {
    let mode = deployment.spec.tls.mode;
    if mode != TlsMode::Managed {
        return Err(format!("spec.tls.mode is {mode}; with Managed the operator makes certificates"));
    }
    let conditions = deployment.status.iter().flat_map(|status| &status.conditions);
    let trouble = conditions.into_iter().find(|condition| condition.reason == Reason::CertificatesUnavailable);
    trouble.map_or(Ok(()), |trouble| Err(format!("asked for, but nothing can be renewed: {}", trouble.message)))
}

/// A restart, as it was asked for.
struct Asked<'a> {
    /// The annotation's value.
    at: &'a str,
    /// The status of that moment.
    before: Option<&'a DeploymentStatus>,
}

/// How far the operator is with a restart.
#[derive(Debug, PartialEq)]
enum Turn<'a> {
    /// No status speaks of it.
    Unseen,
    /// It does nothing before somebody mends the spec.
    Refused(&'a Condition),
    /// It will replace no group.
    Stopped(&'a Condition),
    /// It knows of it, and no group has moved yet.
    Standing,
    /// Groups come and go, or there are none.
    Moving,
}

/// Waits until the operator has taken a restart up: an annotation changes no generation, and until then `kubectl wait` would be
/// content with what runs.
async fn taken(cluster: &Cluster, name: &str, asked: &Asked<'_>) -> Result<(), Failure> {
    let began = tokio::time::Instant::now();
    loop {
        let deployment = cluster.deployment(name).await?;
        let waited = began.elapsed();
        match turn(asked, &deployment) {
            Turn::Moving => return Ok(()),
            Turn::Standing if waited >= SETTLES => return Ok(()),
            Turn::Stopped(condition) => return Err(nothing_comes(name, &cluster.namespace, condition)),
            Turn::Refused(condition) if waited >= SETTLES => return Err(nothing_comes(name, &cluster.namespace, condition)),
            Turn::Unseen if waited >= TAKEN => {
                let why = format!("asked for, but no operator has taken it up in {} s: is it there?", TAKEN.as_secs());
                return Err(Failure::new(name, why));
            }
            Turn::Unseen | Turn::Standing | Turn::Refused(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a status says of a restart. The only group, without `maxSurge` and without `allowDowntime`, is the one that a restart would have
/// to take away: `NoHandoverTarget`.
fn turn<'a>(asked: &Asked<'_>, deployment: &'a MiniMaxM1Deployment) -> Turn<'a> {
    let Some(status) = &deployment.status else { return Turn::Unseen };
    let is_current = status.observed_generation == deployment.metadata.generation;
    let refused = condition(status, ConditionType::Accepted).filter(|accepted| accepted.status == ConditionStatus::False);
    let stops = |condition: &&Condition| matches!(condition.reason, Reason::NoHandoverTarget | Reason::RolloutPaused);
    if let Some(refused) = refused.filter(|_| is_current) {
        Turn::Refused(refused)
    } else if status.restarted_at.as_deref() != Some(asked.at) {
        Turn::Unseen
    } else if let Some(stopped) = condition(status, ConditionType::Progressing).filter(stops) {
        Turn::Stopped(stopped)
    } else if status.groups.is_empty() || moves(asked.before, status) {
        Turn::Moving
    } else {
        Turn::Standing
    }
}

/// Whether a group was closed, came or went.
fn moves(before: Option<&DeploymentStatus>, status: &DeploymentStatus) -> bool {
    let names = |groups: &[GroupStatus]| -> Vec<_> { groups.iter().map(|group| (group.index, group.revision.clone())).collect() };
    let closed = status.groups.iter().any(|group| group.traffic == Some(Traffic::Closed));
    closed || before.is_none_or(|before| names(&before.groups) != names(&status.groups))
}

fn nothing_comes(name: &str, namespace: &str, condition: &Condition) -> Failure {
    let mut lines = vec![format!("{name}: asked for, but nothing restarts: {} ({})", condition.message, condition.reason)];
    let next = explain::next_step(condition.reason, &condition.message, name, namespace);
    lines.extend(next.map(|next| format!("{name}: next: {next}; the restart goes on by itself then")));
    Failure::lines(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deployment whose `Progressing` has this reason, with groups of these revisions, that was restarted last at this time.
    fn deployment(at: &str, reason: &str, revisions: &[&str]) -> MiniMaxM1Deployment {
        let group = |(index, revision)| json!({"index": index, "pods": 1, "readyPods": 1, "revision": revision, "traffic": "Open"});
        serde_json::from_value(json!({
            "apiVersion": "serving.minimax-m1.dev/v1alpha1", "kind": "MiniMaxM1Deployment",
            "metadata": {"name": "m1", "namespace": "models", "generation": 1},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}},
            "status": {
                "observedGeneration": 1,
                "restartedAt": at,
                "conditions": [said("Progressing", reason)],
                "groups": revisions.iter().enumerate().map(group).collect::<Vec<_>>(),
            },
        }))
        .unwrap()
    }

    fn said(kind: &str, reason: &str) -> serde_json::Value {
        let time = "2026-01-01T00:00:00Z";
        json!({"type": kind, "status": "False", "reason": reason, "message": "as it is", "lastTransitionTime": time})
    }

    /// What comes of a restart at `now` that finds one group of the revision `old`.
    fn after(deployment: &MiniMaxM1Deployment) -> Turn<'_> {
        let before = self::deployment("then", "Serving", &["old"]);
        turn(&Asked { at: "now", before: before.status.as_ref() }, deployment)
    }

    #[test]
    fn a_restart_of_the_only_group_is_no_success() {
        let blocked = deployment("now", "NoHandoverTarget", &["old"]);
        let Turn::Stopped(condition) = after(&blocked) else { panic!() };
        let failure = nothing_comes("m1", "models", condition);
        let text = failure.to_string();
        assert!(failure.code() == 1 && text.contains("nothing restarts: as it is (NoHandoverTarget)"), "{text}");
        assert!(text.contains("rollout.maxSurge: 1") && text.contains("kubectl -n models edit m1d m1"), "{text}");
        assert!(matches!(after(&deployment("now", "RolloutPaused", &["old"])), Turn::Stopped(_)));
    }

    #[test]
    fn what_was_said_before_the_operator_knew_of_it_does_not_count() {
        for reason in ["NoHandoverTarget", "RolloutPaused", "Serving", "RollingOut"] {
            assert_eq!(after(&deployment("then", reason, &["old"])), Turn::Unseen, "{reason}");
        }
        let mut unseen = deployment("now", "Serving", &[]);
        unseen.status = None;
        assert_eq!(after(&unseen), Turn::Unseen);
    }

    #[test]
    fn a_restart_is_under_way_once_a_group_has_moved() {
        let mut standing = deployment("now", "RollingOut", &["old"]);
        assert_eq!(after(&standing), Turn::Standing);
        assert_eq!(after(&deployment("now", "RollingOut", &["old", "new"])), Turn::Moving);
        assert_eq!(after(&deployment("now", "Scaling", &[])), Turn::Moving);
        standing.status.as_mut().unwrap().groups[0].traffic = Some(Traffic::Closed);
        assert_eq!(after(&standing), Turn::Moving);
    }

    #[test]
    fn a_refused_spec_restarts_nothing() {
        let mut refused = deployment("then", "InvalidSpec", &["old"]);
        refused.status.as_mut().unwrap().conditions.push(serde_json::from_value(said("Accepted", "InvalidSpec")).unwrap());
        assert!(matches!(after(&refused), Turn::Refused(_)));
        refused.metadata.generation = Some(2);
        assert_eq!(after(&refused), Turn::Unseen, "the spec was edited since");
    }
}
