//! `m1ctl plan --diff`: what an edit would do to a deployment that runs: which fields differ, whether groups are replaced, in how many
//! waves, for how long, and with how many more GPUs.

use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use m1_arch::Bytes;
use m1_operator_api::{DeploymentStatus, FieldError, MiniMaxM1Deployment, TlsMode, labels};
use m1_operator_plan::render::{Images, Scene};
use m1_operator_plan::{Checked, Environment, Kind, Plan, Revision, Runtime, canonical, runnable, validate};
use serde_json::Value;

use crate::args::{OutputForm, PlanArgs};
use crate::cluster::Cluster;
use crate::deployment;
use crate::error::Failure;

/// Runs the command.
///
/// # Errors
/// The file is refused, or the cluster has no deployment of its name.
pub async fn run(args: &PlanArgs) -> Result<(), Failure> {
    if args.output != OutputForm::Text {
        return Err(Failure::new("--output", "json given, allowed with --diff: text"));
    }
    let mut file = deployment::read(&args.file)?;
    let name = deployment::check(&args.file, &file)?.name;
    let mut place = args.cluster.clone();
    match (&place.namespace, &file.metadata.namespace) {
        (Some(given), Some(written)) if given != written => {
            return Err(Failure::new("--namespace", format!("{given} given, but the file says metadata.namespace: {written}")));
        }
        (None, Some(written)) => place.namespace = Some(written.clone()),
        _ => {}
    }
    let cluster = Cluster::connect(&place).await?;
    let live = cluster.deployment(name.as_str()).await?;
    if !deployment::says_replicas(&args.file) {
        file.spec.replicas = live.spec.replicas;
    }
    let new = deployment::check(&args.file, &file)?;
    let mut errors = runnable(&new, Runtime::Cluster).err().unwrap_or_default();
    errors.extend(transition(&live, &file));
    if !errors.is_empty() {
        return Err(deployment::refused(&args.file, &errors));
    }
    let architecture = deployment::architecture(&args.file, &new)?;
    let memory = match args.gpu_memory {
        Some(memory) => Some(Bytes(memory)),
        None => planned_for(&cluster, name.as_str()).await,
    };
    let environment = Environment { memory_per_gpu: memory, ..Environment::new(architecture) };
    let plan = deployment::plan(&args.file, &new, &environment)?;
    let old = validate(&live).ok();
    print!("{}", Edit { live: &live, old, new: &new, plan: &plan, environment: &environment, read_rate: args.read_rate }.words());
    Ok(())
}

/// Words of the CRD's rule about the way from one `tls.mode` to another.
const TLS_MODE: &str = "between Managed and CertManager set Off first, or members would not believe each other";

/// What the CRD's rules about old and new values refuse, in their words: the API server would not take the edit.
fn transition(live: &MiniMaxM1Deployment, file: &MiniMaxM1Deployment) -> Option<FieldError> {
    let (old, new) = (live.spec.tls.mode, file.spec.tls.mode);
    let refused = old != new && old != TlsMode::Off && new != TlsMode::Off;
    refused.then(|| FieldError::invalid("spec.tls.mode", new, TLS_MODE))
}

/// Memory of a GPU that the groups which run were planned for, where the cluster lets us see them. 0 stands for CPUs.
async fn planned_for(cluster: &Cluster, name: &str) -> Option<Bytes> {
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let sets = sets.list(&ListParams::default().labels(&format!("{}={name}", labels::NAME))).await.ok()?;
    sets.iter().find_map(|set| set.annotations().get(labels::GPU_MEMORY)?.parse().ok().map(Bytes))
}

/// A deployment that runs, and what it is to become.
struct Edit<'a> {
    live: &'a MiniMaxM1Deployment,
    /// What runs, where it is valid today.
    old: Option<Checked>,
    new: &'a Checked,
    plan: &'a Plan,
    environment: &'a Environment,
    read_rate: u64,
}

/// A leaf that differs: its path, before, after.
type Change = (Vec<String>, Value, Value);

impl Edit<'_> {
    fn words(&self) -> String {
        let mut text = String::new();
        let name = self.new.name.as_str();
        let changes = changes(&spec_of(self.live), &canonical(serde_json::to_value(self.new.spec()).unwrap_or_default()));
        if changes.is_empty() {
            return format!("{name}: nothing would change\n");
        }
        for change in &changes {
            let (path, before, after) = change;
            let _ = writeln!(text, "~ spec.{}: {before} -> {after}  ({})", path.join("."), self.effect(change));
        }
        text.push_str(&self.groups());
        if self.old.as_ref().is_some_and(|old| self.router(old) != self.router(self.new)) {
            text.push_str("Routers are replaced, one new before one old; streams go on for as long as spec.worker.drainSeconds.\n");
        }
        text.push_str(&self.gpus());
        text
    }

    /// What this one change would replace.
    fn effect(&self, (path, _, after): &Change) -> &'static str {
        // How groups are replaced replaces none; and half an edit of it may be no valid spec.
        if path.first().is_some_and(|section| section == "rollout") {
            return "restarts nothing";
        }
        let mut spec = spec_of(self.live);
        set(&mut spec, path, after.clone());
        let mut changed = self.live.clone();
        if let Ok(spec) = serde_json::from_value(spec) {
            changed.spec = spec;
        } else {
            return "may replace groups: by itself it is no valid spec";
        }
        let (Some(old), Ok(new)) = (&self.old, validate(&changed)) else {
            return "may replace groups: by itself it is no valid spec";
        };
        match (self.revision(old) != self.revision(&new), self.router(old) != self.router(&new)) {
            (true, true) => "replaces groups and routers",
            (true, false) => "replaces groups",
            (false, true) => "replaces routers",
            (false, false) => "restarts nothing",
        }
    }

    fn revision(&self, checked: &Checked) -> Revision {
        let image = checked.spec().worker.image.clone().or(self.known(|status| status.worker_image.clone())).unwrap_or_default();
        Revision::of(checked, &image, self.live.annotations().get(labels::RESTARTED_AT).map(String::as_str))
    }

    /// Whether the groups that run are of the new spec's revision: an edit before this one may wait for its turn.
    fn is_there(&self) -> bool {
        let wanted = self.revision(self.new);
        match self.live.status.as_ref().map(|status| status.groups.as_slice()) {
            None | Some([]) => self.old.as_ref().is_some_and(|old| self.revision(old) == wanted),
            Some(groups) => groups.iter().all(|group| group.revision.as_deref() == Some(wanted.as_str())),
        }
    }

    fn known(&self, of: impl Fn(&DeploymentStatus) -> Option<String>) -> Option<String> {
        self.live.status.as_ref().and_then(of)
    }

    /// The template of the routers' pods, as the operator renders it.
    fn router(&self, checked: &Checked) -> Option<Value> {
        let plan = m1_operator_plan::plan(checked, self.environment).ok()?;
        let image = checked.spec().router.image.clone().or(self.known(|status| status.router_image.clone()));
        let images = Images { worker: String::new(), router: image.unwrap_or_default() };
        let scene = Scene {
            checked,
            plan: &plan,
            namespace: "",
            uid: "",
            images: &images,
            operator_namespace: "",
            version: env!("CARGO_PKG_VERSION"),
        };
        let router = scene.shared().into_iter().find(|object| object.kind == Kind::Deployment)?;
        Some(router.value["spec"]["template"].clone())
    }

    fn groups(&self) -> String {
        let same = self.is_there();
        let (before, after) = (self.live.spec.replicas, self.new.replicas);
        if same {
            return match before == after {
                true => "No group is replaced.\n".to_owned(),
                false => format!("No group is replaced; {before} groups become {after}.\n"),
            };
        }
        if before == 0 {
            return format!("No group runs; {after} start with the new spec.\n");
        }
        let rollout = &self.new.spec().rollout;
        if rollout.paused {
            return "Groups would be replaced, but rollout.paused is set: nothing happens until it is not.\n".to_owned();
        }
        // The last group that serves is not taken without leave.
        let most = if rollout.allow_downtime { after } else { after.saturating_sub(1) };
        let at_once = (rollout.max_unavailable.min(most) + rollout.max_surge).max(1);
        let waves = before.min(after).div_ceil(at_once);
        let read = self.plan.template().map_or(0, |pod| pod.bytes.read.0);
        let seconds = (read / self.read_rate.max(1)).max(1) * u64::from(waves.max(1));
        let mut text = format!(
            "{before} groups are replaced, at most {at_once} at a time: {waves} waves, about {} of reading ({} per pod at {}/s), plus \
             what draining takes.\n",
            humantime::format_duration(Duration::from_secs(seconds)),
            Bytes(read),
            Bytes(self.read_rate),
        );
        if after == 1 && rollout.max_surge == 0 && !rollout.allow_downtime {
            text.push_str(
                "The rollout would stop (NoHandoverTarget): there is one group at its end, and replacing it would leave none. Set rollout.maxSurge: 1 \
                 or rollout.allowDowntime: true.\n",
            );
        }
        text
    }

    fn gpus(&self) -> String {
        let of = |checked: &Checked, groups: u32| checked.tensor * checked.pods * groups;
        let device = self.plan.template().map_or(0, |pod| pod.gpus);
        if device == 0 {
            return "It runs on CPUs: no GPU is needed.\n".to_owned();
        }
        let after = of(self.new, self.new.replicas);
        let meanwhile = of(self.new, self.new.spec().rollout.max_surge);
        let before = self.old.as_ref().map_or(0, |old| of(old, old.replicas));
        format!("GPUs: {before} -> {after}; during the rollout up to {meanwhile} more.\n")
    }
}

fn spec_of(deployment: &MiniMaxM1Deployment) -> Value {
    canonical(serde_json::to_value(&deployment.spec).unwrap_or_default())
}

fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare(&[], before, after, &mut found);
    found
}

fn compare(path: &[String], before: &Value, after: &Value, found: &mut Vec<Change>) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        if before != after {
            found.push((path.to_vec(), before.clone(), after.clone()));
        }
        return;
    };
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let path: Vec<String> = path.iter().chain([key]).cloned().collect();
        let of = |fields: &serde_json::Map<String, Value>| fields.get(key).cloned().unwrap_or(Value::Null);
        compare(&path, &of(old), &of(new), found);
    }
}

fn set(spec: &mut Value, path: &[String], to: Value) {
    let mut place = spec;
    for key in path {
        if !place.is_object() {
            *place = Value::Object(serde_json::Map::new());
        }
        let Some(fields) = place.as_object_mut() else { return };
        place = fields.entry(key.clone()).or_insert(Value::Null);
    }
    *place = to;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn live(spec: Value) -> MiniMaxM1Deployment {
        let mut full = json!({"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 8, "expert": 2}, "worker": {"memoryPerGpu": "80G"}});
        for (key, value) in spec.as_object().unwrap() {
            full[key] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "serving.minimax-m1.dev/v1alpha1", "kind": "MiniMaxM1Deployment", "metadata": {"name": "m1"}, "spec": full,
        }))
        .unwrap()
    }

    fn words(before: Value, after: Value) -> String {
        let (before, after) = (live(before), live(after));
        let new = validate(&after).unwrap();
        let environment = Environment::new(m1_arch::Architecture::minimax_m1());
        let plan = m1_operator_plan::plan(&new, &environment).unwrap();
        let old = validate(&before).ok();
        Edit { live: &before, old, new: &new, plan: &plan, environment: &environment, read_rate: 1_000_000_000 }.words()
    }

    #[test]
    fn an_edit_that_workers_notice_replaces_groups() {
        let text = words(json!({"replicas": 2}), json!({"replicas": 2, "experts": {"loss": {"waitSeconds": 9}}}));
        assert!(text.contains("~ spec.experts.loss.waitSeconds: 30 -> 9  (replaces groups)"), "{text}");
        assert!(text.contains("2 groups are replaced, at most 1 at a time: 2 waves"), "{text}");
        assert!(text.contains("GPUs: 32 -> 32; during the rollout up to 0 more."), "{text}");
    }

    #[test]
    fn an_edit_that_only_routers_notice_replaces_no_group() {
        let text = words(json!({}), json!({"router": {"replicas": 2}, "replicas": 2}));
        assert!(text.contains("spec.replicas: 1 -> 2  (restarts nothing)") && !text.contains("replaces groups"), "{text}");
        assert!(text.contains("No group is replaced; 1 groups become 2."), "{text}");
        let text = words(json!({}), json!({"router": {"queue": {"maxRequests": 7}}}));
        assert!(text.contains("maxRequests: 256 -> 7  (replaces routers)"), "{text}");
        assert!(text.contains("No group is replaced.\nRouters are replaced"), "{text}");
    }

    #[test]
    fn a_key_with_dots_is_one_key() {
        let annotated = |value: &str| json!({"router": {"service": {"annotations": {"service.beta.kubernetes.io/x": value}}}});
        let text = words(annotated("w"), annotated("y"));
        assert!(text.contains("annotations.service.beta.kubernetes.io/x: \"w\" -> \"y\"  (restarts nothing)"), "{text}");
    }

    #[test]
    fn from_none_groups_start_and_are_not_replaced() {
        let text = words(json!({"replicas": 0}), json!({"replicas": 2, "worker": {"memoryPerGpu": "90G"}}));
        assert!(text.contains("No group runs; 2 start with the new spec."), "{text}");
    }

    #[test]
    fn never_more_groups_go_at_once_than_leave_one() {
        let many = |wait: u32| json!({"replicas": 2, "rollout": {"maxUnavailable": 2}, "experts": {"loss": {"waitSeconds": wait}}});
        let text = words(many(8), many(9));
        assert!(text.contains("at most 1 at a time: 2 waves"), "{text}");
    }

    #[test]
    fn what_the_api_server_would_not_take_is_refused_in_its_words() {
        let tls = |mode: &str| live(json!({"tls": {"mode": mode, "issuerRef": {"name": "ca"}}}));
        let error = transition(&tls("Managed"), &tls("CertManager")).unwrap();
        assert_eq!(error.to_string(), format!("spec.tls.mode: CertManager: {TLS_MODE}"));
        for (old, new) in [("Off", "Managed"), ("CertManager", "Off"), ("Managed", "Managed")] {
            assert_eq!(transition(&tls(old), &tls(new)), None, "{old} {new}");
        }
    }

    /// Messages of the rules that look at the value before.
    fn transition_rules(schema: &Value, found: &mut Vec<String>) {
        if schema["rule"].as_str().is_some_and(|rule| rule.contains("oldSelf")) {
            found.push(schema["message"].as_str().unwrap_or_default().to_owned());
        }
        let fields = schema.as_object().into_iter().flat_map(serde_json::Map::values);
        fields.chain(schema.as_array().into_iter().flatten()).for_each(|inner| transition_rules(inner, found));
    }

    #[test]
    fn the_crd_has_no_rule_about_edits_that_is_not_known_here() {
        let mut rules = Vec::new();
        m1_operator_api::crd_files().iter().for_each(|file| transition_rules(&file.object, &mut rules));
        assert_eq!(rules, [format!("tls.mode: {TLS_MODE}")]);
    }

    #[test]
    fn the_only_group_is_told_to_stop_the_rollout() {
        let text = words(json!({}), json!({"worker": {"memoryPerGpu": "90G"}}));
        assert!(text.contains("NoHandoverTarget"), "{text}");
        assert_eq!(words(json!({}), json!({})), "m1: nothing would change\n");
    }
}
