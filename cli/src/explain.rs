//! `m1ctl explain`: why a deployment is not ready, in words, and what to do next. Reads the status only: whatever it says, the
//! operator has seen.

use std::fmt::Write as _;

use kube::ResourceExt;
use m1_operator_api::{
    Condition, ConditionStatus, ConditionType, DeploymentStatus, GroupStatus, MiniMaxM1Deployment, Reason, WeightsStatus,
};
use m1_operator_plan::condition;
use serde::Serialize;

use crate::args::{ExplainArgs, OutputForm};
use crate::cluster::Cluster;
use crate::error::Failure;

/// The operator's own Deployment, wherever it is installed: the label that its chart sets.
const OPERATOR: &str = "-l app.kubernetes.io/name=minimax-m1-operator";

/// Runs the command.
///
/// # Errors
/// There is no such deployment, or it is not ready.
pub async fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let deployment = cluster.deployment(&args.name).await?;
    let explanation = Explanation::of(&deployment);
    match args.output {
        OutputForm::Text => print!("{}", explanation.text()),
        OutputForm::Json => println!("{:#}", serde_json::to_value(&explanation).map_err(|error| Failure::new(&args.name, error))?),
    }
    match explanation.ready {
        true => Ok(()),
        false => Err(Failure::new(&args.name, "not ready")),
    }
}

/// Everything there is to say about a deployment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation<'a> {
    namespace: String,
    name: String,
    /// Everything that was asked for serves.
    ready: bool,
    /// How it is, in one sentence.
    headline: String,
    /// What to do where no condition says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The conditions that say something is amiss or under way.
    conditions: Vec<Finding<'a>>,
    groups: &'a [GroupStatus],
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<&'a WeightsStatus>,
}

/// A condition, and what to do about it.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    #[serde(flatten)]
    condition: &'a Condition,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl<'a> Explanation<'a> {
    fn of(deployment: &'a MiniMaxM1Deployment) -> Self {
        let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
        let bare = |namespace: String, headline: String, next: String| Self {
            namespace,
            name: name.clone(),
            ready: false,
            headline,
            next: Some(next),
            conditions: Vec::new(),
            groups: &[],
            weights: None,
        };
        let Some(status) = &deployment.status else {
            let next = format!("kubectl get deployments -A {OPERATOR}; is one running, and does it watch namespace {namespace}?");
            return bare(namespace, "no operator has looked at it yet".to_owned(), next);
        };
        let headline = headline(deployment, status);
        if status.observed_generation != deployment.metadata.generation {
            let next = format!("if that stays so: kubectl get deployments -A {OPERATOR}; is one running?");
            return bare(namespace, format!("{headline}; the operator has not seen the latest edit yet"), next);
        }
        let finding = |condition: &'a Condition| Finding {
            condition,
            next: next_step(condition.reason, &condition.message, &name, &namespace),
        };
        let conditions = matters(status).into_iter().map(finding).collect();
        let (ready, groups, weights) = (is_ready(deployment), &status.groups, status.weights.as_ref());
        Self { namespace, name, ready, headline, next: None, conditions, groups, weights }
    }

    fn text(&self) -> String {
        let mut text = format!("{}/{}: {}\n", self.namespace, self.name, self.headline);
        if let Some(next) = &self.next {
            let _ = writeln!(text, "Next: {next}");
        }
        for Finding { condition, next } in &self.conditions {
            let _ = writeln!(text, "\n{}={} ({})\n  {}", condition.kind, condition.status, condition.reason, condition.message);
            if let Some(next) = next {
                let _ = writeln!(text, "  Next: {next}");
            }
        }
        if !self.groups.is_empty() {
            groups(self.groups, self.weights, &mut text);
        }
        text
    }
}

fn is_ready(deployment: &MiniMaxM1Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let ready = condition(status, ConditionType::Ready).is_some_and(|ready| ready.status == ConditionStatus::True);
    ready && status.observed_generation == deployment.metadata.generation
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

/// Kind and name of an object that somebody else owns, where a message speaks of one.
fn of_another(message: &str) -> Option<(&str, &str)> {
    let (object, _) = message.split_once(" exists and belongs to ")?;
    let (before, name) = object.rsplit_once(' ')?;
    Some((before.rsplit(' ').next()?, name))
}

/// What to do about a reason; none where it passes by itself.
pub fn next_step(reason: Reason, message: &str, name: &str, namespace: &str) -> Option<String> {
    let logs = |more: &str| match pod_of(message) {
        Some(pod) => format!("kubectl -n {namespace} logs {pod}{more}"),
        None => format!("kubectl -n {namespace} logs POD{more}, of a pod that is not ready"),
    };
    let quota = || format!("raise the quota or change the policy that the message names; kubectl -n {namespace} get quota");
    let select = format!("-n {namespace} -l serving.minimax-m1.dev/name={name}");
    Some(match reason {
        // The cluster lacks a kind; the spec is right.
        Reason::InvalidSpec if message.contains("restart the operator") => format!(
            "install what the message names, then restart the operator, where kubectl get deployments -A {OPERATOR} shows it: \
             kubectl -n ITS-NAMESPACE rollout restart deployment {OPERATOR}"
        ),
        Reason::InvalidSpec | Reason::Unsplittable => {
            format!("kubectl -n {namespace} edit m1d {name}; what runs is untouched until then")
        }
        Reason::NotImplemented => "use what the message allows; a later version may run it".to_owned(),
        Reason::InsufficientMemory => "m1ctl plan -f FILE shows the numbers; the message names changes that fit".to_owned(),
        Reason::ArchitectureMismatch => "set spec.model.config to the checkpoint's config.json".to_owned(),
        Reason::WriteRefused if of_another(message).is_some() => {
            let (kind, name) = of_another(message).unwrap_or_default();
            format!(
                "look at it: kubectl -n {namespace} get {kind} {name} -o yaml; delete it if nobody needs it, or apply this deployment \
                 under another name"
            )
        }
        Reason::WriteRefused => "the API server's words name the object: a quota, a policy, or a field of podTemplate".to_owned(),
        Reason::Unschedulable => "add nodes, free some, or ask for less; kubectl get nodes -L nvidia.com/gpu.memory".to_owned(),
        Reason::PodsRefused => quota(),
        Reason::ImageUnavailable => "correct spec.worker.image or spec.router.image, or set imagePullSecrets".to_owned(),
        Reason::CertificatesUnavailable => {
            format!(
                "helm upgrade --reset-then-reuse-values with {namespace} among tls.namespaces, beside those that are there; or mend \
                 what the message names"
            )
        }
        Reason::ContainerNotCreated => format!("kubectl describe pods {select}"),
        Reason::CrashLooping => logs(" --previous --tail=50"),
        Reason::ExpertsUnavailable => {
            format!("none while pods start; else they do not reach one another (network policies, DNS): {}", logs(" --tail=50"))
        }
        Reason::Stalled => format!("it does not pass by itself: {}", logs(" --tail=50")),
        Reason::RouterUnavailable if message.contains("refused by the cluster") => quota(),
        Reason::RouterUnavailable => format!("kubectl describe pods {select},app.kubernetes.io/component=router"),
        Reason::WeightsUnavailable if FINAL.iter().any(|word| message.contains(word)) => {
            format!("mend what the message names (docs/weights.md), then: kubectl m1 restart {name} -n {namespace}")
        }
        Reason::WeightsUnavailable => "put what the message names in place; the pod looks again by itself".to_owned(),
        Reason::RestartBudgetExhausted => {
            format!("look at the pod's logs, mend the cause, then: kubectl m1 resume {name} -n {namespace}")
        }
        // A surge is of a rollout; a drain makes none.
        Reason::NoHandoverTarget if message.contains("is being drained") => {
            format!("kubectl -n {namespace} edit m1d {name}: add a group (replicas: 2), or set rollout.allowDowntime: true")
        }
        Reason::NoHandoverTarget => {
            format!("kubectl -n {namespace} edit m1d {name}: add a group, rollout.maxSurge: 1, or rollout.allowDowntime: true")
        }
        Reason::RolloutPaused => {
            format!("kubectl -n {namespace} patch m1d {name} --type=merge -p '{{\"spec\":{{\"rollout\":{{\"paused\":false}}}}}}'")
        }
        Reason::ScaledToZero => format!("kubectl -n {namespace} scale m1d {name} --replicas=1"),
        Reason::PodLost if message.contains("somebody else answers") => {
            "none: the address has passed to another pod, and the one that has it now refuses what is not meant for it".to_owned()
        }
        Reason::PodLost => "none: its pods are made anew; kubectl get nodes shows a node that is gone".to_owned(),
        _ => return None,
    })
}

fn groups(groups: &[GroupStatus], weights: Option<&WeightsStatus>, text: &mut String) {
    let _ = writeln!(text, "\nGroups:");
    for group in groups {
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
    if let Some(weights) = weights.filter(|weights| weights.bytes_loaded < weights.bytes_total) {
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
        let deployment = deployment(json!([
            said("Progressing", "False", "ImageUnavailable", cause),
            said("Available", "False", "NoGroupReady", &format!("no group serves: {cause}")),
            said("Ready", "False", "ImageUnavailable", &format!("0 of 1 groups serve revision abc; {cause}")),
        ]));
        let text = Explanation::of(&deployment).text();
        assert!(text.starts_with("models/m1: does not serve: 0 of 1 groups serve\n"), "{text}");
        assert_eq!(text.matches("Next: correct spec.worker.image").count(), 1, "{text}");
        assert!(text.contains("  0  revision abc  1/2 pods ready"), "{text}");
    }

    #[test]
    fn an_old_status_and_a_missing_one_are_told() {
        let mut old = deployment(json!([said("Ready", "True", "Serving", "")]));
        old.metadata.generation = Some(3);
        let explanation = Explanation::of(&old);
        assert!(explanation.text().contains("has not seen the latest edit"));
        assert!(!explanation.ready && explanation.conditions.is_empty());
        old.status = None;
        let text = Explanation::of(&old).text();
        assert!(text.contains("no operator has looked at it yet") && text.contains(&format!("-A {OPERATOR}")), "{text}");
    }

    #[test]
    fn programs_get_the_same() {
        let cause = "pod m1-0-abc-1: ImagePullBackOff";
        let mut deployment = deployment(json!([said("Ready", "False", "ImageUnavailable", cause)]));
        deployment.status.as_mut().unwrap().weights =
            Some(WeightsStatus { bytes_loaded: 1, bytes_total: 3, eta: Some("4m".to_owned()) });
        let value = serde_json::to_value(Explanation::of(&deployment)).unwrap();
        assert_eq!((&value["namespace"], &value["name"], &value["ready"]), (&json!("models"), &json!("m1"), &json!(false)));
        assert_eq!(value["headline"], "does not serve: 0 of 1 groups serve");
        let condition = &value["conditions"][0];
        assert_eq!((&condition["type"], &condition["reason"]), (&json!("Ready"), &json!("ImageUnavailable")));
        assert!(condition["next"].as_str().unwrap().starts_with("correct spec.worker.image"), "{condition}");
        assert_eq!((&value["groups"][0]["readyPods"], &value["groups"][0]["pods"]), (&json!(1), &json!(2)));
        assert_eq!(value["weights"], json!({"bytesLoaded": 1, "bytesTotal": 3, "eta": "4m"}));
    }

    #[test]
    fn a_next_step_fits_its_cause() {
        let next = |reason, message| next_step(reason, message, "m1", "models").unwrap();
        let drained = next(Reason::NoHandoverTarget, "node n1 is being drained, and group 0 is the only one that serves");
        assert!(drained.contains("replicas: 2") && !drained.contains("maxSurge"), "{drained}");
        let lacks = "spec.scheduling.gang: Volcano: the cluster has no PodGroup (v1beta1); install it and restart the operator";
        let text = next(Reason::InvalidSpec, lacks);
        assert!(text.starts_with("install ") && !text.contains("edit m1d"), "{text}");
        assert!(next(Reason::InvalidSpec, "spec.replicas: 300: at most 256").contains("edit m1d m1"));
        let foreign =
            "Service m1-router exists and belongs to nobody; it is not taken over: delete or rename it, or rename the deployment";
        let text = next(Reason::WriteRefused, foreign);
        assert!(text.contains("kubectl -n models get Service m1-router -o yaml") && text.contains("another name"), "{text}");
        assert!(next(Reason::WriteRefused, "apply StatefulSet m1-0: exceeded quota").contains("a quota"));
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
