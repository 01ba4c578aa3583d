//! `m1ctl explain`: why a deployment is not ready, in words, and what to do next. Reads the status only: whatever it says, the
//! operator has seen.

use std::fmt::Write as _;

use kube::ResourceExt;
use m1_operator_api::{Condition, ConditionStatus, ConditionType, DeploymentStatus, MiniMaxM1Deployment, Reason};
use m1_operator_plan::condition;

use crate::args::ExplainArgs;
use crate::cluster::Cluster;
use crate::error::Failure;

/// Runs the command.
///
/// # Errors
/// There is no such deployment, or it is not ready.
pub async fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let deployment = cluster.deployment(&args.name).await?;
    print!("{}", words(&deployment));
    match is_ready(&deployment) {
        true => Ok(()),
        false => Err(Failure::new(&args.name, "not ready")),
    }
}

fn is_ready(deployment: &MiniMaxM1Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let ready = condition(status, ConditionType::Ready).is_some_and(|ready| ready.status == ConditionStatus::True);
    ready && status.observed_generation == deployment.metadata.generation
}

/// Everything there is to say.
fn words(deployment: &MiniMaxM1Deployment) -> String {
    let mut text = String::new();
    let name = deployment.name_any();
    let namespace = deployment.namespace().unwrap_or_default();
    let Some(status) = &deployment.status else {
        return format!(
            "{namespace}/{name}: no operator has looked at it yet.\nNext: kubectl -n minimax-m1-system get deployments; is one running, \
             and does it watch namespace {namespace}?\n"
        );
    };
    let _ = writeln!(text, "{namespace}/{name}: {}", headline(deployment, status));
    if status.observed_generation != deployment.metadata.generation {
        let _ = writeln!(
            text,
            "The operator has not seen the latest edit yet.\nNext: if that stays so: kubectl -n minimax-m1-system get deployments; is \
             one running?"
        );
        return text;
    }
    for condition in matters(status) {
        let _ = writeln!(text, "\n{}={} ({})\n  {}", condition.kind, condition.status, condition.reason, condition.message);
        if let Some(next) = next_step(condition.reason, &condition.message, &name, &namespace) {
            let _ = writeln!(text, "  Next: {next}");
        }
    }
    groups(status, &mut text);
    text
}

fn headline(deployment: &MiniMaxM1Deployment, status: &DeploymentStatus) -> String {
    let asked = deployment.spec.replicas;
    let serving = status.available_replicas;
    let available = condition(status, ConditionType::Available).is_some_and(|c| c.status == ConditionStatus::True);
    match (is_ready(deployment), available) {
        (true, _) => format!("ready; {serving} of {asked} groups serve at {}", status.endpoint.as_deref().unwrap_or("-")),
        (false, true) => format!("serves, but is not what was asked for: {serving} of {asked} groups serve"),
        (false, false) => format!("does not serve: {serving} of {asked} groups serve"),
    }
}

/// The conditions that say something is amiss or under way; each cause once.
fn matters(status: &DeploymentStatus) -> Vec<&Condition> {
    let mut seen: Vec<(Reason, &str)> = Vec::new();
    let order = [
        ConditionType::Accepted,
        ConditionType::Degraded,
        ConditionType::Progressing,
        ConditionType::Available,
        ConditionType::Ready,
    ];
    let found = order.iter().filter_map(|kind| condition(status, *kind));
    let amiss = found.filter(|condition| match condition.kind {
        ConditionType::Degraded => condition.status == ConditionStatus::True,
        ConditionType::Progressing => condition.reason != Reason::Serving,
        _ => condition.status == ConditionStatus::False,
    });
    amiss
        .filter(|condition| {
            let cause = (condition.reason, condition.message.as_str());
            let new = !seen
                .iter()
                .any(|(reason, message)| *reason == cause.0 && (message.contains(cause.1) || cause.1.contains(message)));
            seen.push(cause);
            new
        })
        .collect()
}

/// Words of failed fetches that no worker tries again by itself.
const FINAL: [&str; 7] =
    ["TokenNeeded", "TokenRefused", "AccessDenied", "GatedRepository", "ChecksumMismatch", "SourceAnswerInvalid", "SourceRefused"];

/// The pod that a message begins with.
fn pod_of(message: &str) -> Option<&str> {
    let rest = message.split_once("pod ")?.1;
    rest.split_once(':').map(|(pod, _)| pod).filter(|pod| !pod.contains(' '))
}

/// What to do about a reason; none where it passes by itself.
fn next_step(reason: Reason, message: &str, name: &str, namespace: &str) -> Option<String> {
    let logs = |more: &str| match pod_of(message) {
        Some(pod) => format!("kubectl -n {namespace} logs {pod}{more}"),
        None => format!("kubectl -n {namespace} logs POD{more}, of a pod that is not ready"),
    };
    let select = format!("-n {namespace} -l serving.minimax-m1.dev/name={name}");
    Some(match reason {
        Reason::InvalidSpec | Reason::Unsplittable => {
            format!("kubectl -n {namespace} edit m1d {name}; what runs is untouched until then")
        }
        Reason::NotImplemented => "use what the message allows; a later version may run it".to_owned(),
        Reason::InsufficientMemory => "m1ctl plan -f FILE shows the numbers; the message names changes that fit".to_owned(),
        Reason::ArchitectureMismatch => "set spec.model.config to the checkpoint's config.json".to_owned(),
        Reason::WriteRefused => "the API server's words name the object: a quota, a policy, or a field of podTemplate".to_owned(),
        Reason::Unschedulable => "add nodes, free some, or ask for less; kubectl get nodes -L nvidia.com/gpu.memory".to_owned(),
        Reason::PodsRefused => {
            format!("raise the quota or change the policy that the message names; kubectl -n {namespace} get quota")
        }
        Reason::ImageUnavailable => "correct spec.worker.image or spec.router.image, or set imagePullSecrets".to_owned(),
        Reason::CertificatesUnavailable => {
            format!(
                "helm upgrade --reuse-values with {namespace} among tls.namespaces, beside those that are there; or mend what the message names"
            )
        }
        Reason::ContainerNotCreated => format!("kubectl describe pods {select}"),
        Reason::CrashLooping => logs(" --previous --tail=50"),
        Reason::ExpertsUnavailable => {
            format!("none while pods start; else they do not reach one another (network policies, DNS): {}", logs(" --tail=50"))
        }
        Reason::RouterUnavailable => format!("kubectl describe pods {select},app.kubernetes.io/component=router"),
        Reason::WeightsUnavailable if FINAL.iter().any(|word| message.contains(word)) => {
            format!("mend what the message names (docs/weights.md), then: kubectl m1 restart {name} -n {namespace}")
        }
        Reason::WeightsUnavailable => "put what the message names in place; the pod looks again by itself".to_owned(),
        Reason::RestartBudgetExhausted => {
            format!("look at the pod's logs, mend the cause, then: kubectl m1 resume {name} -n {namespace}")
        }
        Reason::NoHandoverTarget => {
            format!("kubectl -n {namespace} edit m1d {name}: add a group, rollout.maxSurge: 1, or rollout.allowDowntime: true")
        }
        Reason::RolloutPaused => {
            format!("kubectl -n {namespace} patch m1d {name} --type=merge -p '{{\"spec\":{{\"rollout\":{{\"paused\":false}}}}}}'")
        }
        Reason::ScaledToZero => format!("kubectl -n {namespace} scale m1d {name} --replicas=1"),
        Reason::PodLost => "none: its pods are made anew; kubectl get nodes shows a node that is gone".to_owned(),
        _ => return None,
    })
}

fn groups(status: &DeploymentStatus, text: &mut String) {
    if status.groups.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nGroups:");
    for group in &status.groups {
        let revision = group.revision.as_deref().unwrap_or("-");
        let traffic = group.traffic.map_or("-", |traffic| traffic.as_str());
        let _ = writeln!(text, "  {}  revision {revision}  {}/{} pods ready  {traffic}", group.index, group.ready_pods, group.pods);
        if let Some(message) = &group.message {
            let _ = writeln!(text, "     {message}");
        }
        for record in group.restarts.iter().take(3) {
            let _ = writeln!(text, "     {}  pod {} ended: {}", record.time, record.pod, record.how);
        }
    }
    if let Some(weights) = status.weights.as_ref().filter(|weights| weights.bytes_loaded < weights.bytes_total) {
        let eta = weights.eta.as_ref().map(|eta| format!(", {eta} to go")).unwrap_or_default();
        let (loaded, total) = (m1_arch::Bytes(weights.bytes_loaded), m1_arch::Bytes(weights.bytes_total));
        let _ = writeln!(text, "Weights: {loaded} of {total}{eta}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(conditions: serde_json::Value) -> MiniMaxM1Deployment {
        serde_json::from_value(json!({
            "apiVersion": "serving.minimax-m1.dev/v1alpha1",
            "kind": "MiniMaxM1Deployment",
            "metadata": {"name": "m1", "namespace": "models", "generation": 2},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}},
            "status": {
                "observedGeneration": 2,
                "conditions": conditions,
                "groups": [{"index": 0, "readyPods": 1, "pods": 2, "revision": "abc", "message": "pod m1-0-abc-1: ImagePullBackOff"}],
            },
        }))
        .unwrap()
    }

    fn said(kind: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn the_cause_is_told_once_with_the_next_step() {
        let cause = "pod m1-0-abc-1: ImagePullBackOff";
        let text = words(&deployment(json!([
            said("Progressing", "False", "ImageUnavailable", cause),
            said("Available", "False", "NoGroupReady", &format!("no group serves: {cause}")),
            said("Ready", "False", "ImageUnavailable", &format!("0 of 1 groups serve revision abc; {cause}")),
        ])));
        assert!(text.starts_with("models/m1: does not serve: 0 of 1 groups serve\n"), "{text}");
        assert_eq!(text.matches("Next: correct spec.worker.image").count(), 1, "{text}");
        assert!(text.contains("  0  revision abc  1/2 pods ready"), "{text}");
    }

    #[test]
    fn an_old_status_and_a_missing_one_are_told() {
        let mut old = deployment(json!([said("Ready", "True", "Serving", "")]));
        old.metadata.generation = Some(3);
        assert!(words(&old).contains("has not seen the latest edit"));
        assert!(!is_ready(&old));
        old.status = None;
        assert!(words(&old).contains("no operator has looked at it yet"));
    }

    #[test]
    fn the_next_step_names_the_pod_and_knows_what_is_tried_again() {
        let next = |reason, message| next_step(reason, message, "m1", "models").unwrap();
        let logs = next(Reason::CrashLooping, "0 of 1 groups serve; pod m1-0-abc-1: ended with exit code 1: no room");
        assert_eq!(logs, "kubectl -n models logs m1-0-abc-1 --previous --tail=50");
        assert!(next(Reason::WeightsUnavailable, "pod m1-0-abc-0: TokenRefused: 401").contains("kubectl m1 restart m1 -n models"));
        assert!(next(Reason::WeightsUnavailable, "pod m1-0-abc-0: FileMissing: x").contains("by itself"));
    }

    #[test]
    fn every_reason_that_needs_help_has_a_next_step() {
        let by_itself = [
            Reason::SpecAccepted,
            Reason::WeightsLoaded,
            Reason::LoadingWeights,
            Reason::Starting,
            Reason::Serving,
            Reason::NoGroupReady,
            Reason::AllThere,
            Reason::RollingOut,
            Reason::Scaling,
            Reason::ScalingOff,
            Reason::MetricsUnavailable,
            Reason::Balanced,
            Reason::Imbalanced,
            Reason::Rebalancing,
        ];
        for reason in Reason::ALL {
            assert_eq!(next_step(*reason, "", "m1", "models").is_none(), by_itself.contains(reason), "{reason}");
        }
    }
}
