//! `m1ctl plan --diff`: what an edit would do to a deployment that runs: which fields differ, whether groups are replaced, in how many
//! waves, for how long, and with how many more GPUs.

use std::fmt::Write as _;
use std::time::Duration;

use kube::ResourceExt;
use m1_arch::Bytes;
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::{Checked, Environment, Plan, Revision, canonical, validate};
use serde_json::Value;

use crate::args::PlanArgs;
use crate::cluster::Cluster;
use crate::deployment;
use crate::error::Failure;

/// Runs the command.
///
/// # Errors
/// The file is refused, or the cluster has no deployment of its name.
pub async fn run(args: &PlanArgs) -> Result<(), Failure> {
    let new = deployment::load(&args.file)?;
    let architecture = deployment::architecture(&args.file, &new)?;
    let environment = Environment { memory_per_gpu: args.gpu_memory.map(Bytes), ..Environment::new(architecture) };
    let plan = deployment::plan(&args.file, &new, &environment)?;
    let cluster = Cluster::connect(&args.cluster).await?;
    let live = cluster.deployment(new.name.as_str()).await?;
    print!("{}", Edit { live: &live, new: &new, plan: &plan, read_rate: args.read_rate }.words());
    Ok(())
}

/// A deployment that runs, and what it is to become.
struct Edit<'a> {
    live: &'a MiniMaxM1Deployment,
    new: &'a Checked,
    plan: &'a Plan,
    read_rate: u64,
}

impl Edit<'_> {
    fn words(&self) -> String {
        let mut text = String::new();
        let name = self.new.name.as_str();
        let changes = changes(&spec_of(self.live), &canonical(serde_json::to_value(self.new.spec()).unwrap_or_default()));
        if changes.is_empty() {
            return format!("{name}: nothing would change\n");
        }
        for (path, before, after) in &changes {
            let mark = if self.restarts(path, after) { "replaces groups" } else { "restarts nothing" };
            let _ = writeln!(text, "~ spec.{path}: {before} -> {after}  ({mark})");
        }
        text.push_str(&self.groups());
        text.push_str(&self.gpus());
        text
    }

    /// Whether this one change makes another revision.
    fn restarts(&self, path: &str, after: &Value) -> bool {
        let mut spec = spec_of(self.live);
        set(&mut spec, path, after.clone());
        let mut changed = self.live.clone();
        match serde_json::from_value(spec) {
            Ok(spec) => changed.spec = spec,
            Err(_) => return true,
        }
        match (validate(self.live), validate(&changed)) {
            (Ok(old), Ok(new)) => self.revision(&old) != self.revision(&new),
            // Alone it is no valid spec: with the others it may be anything.
            _ => true,
        }
    }

    fn revision(&self, checked: &Checked) -> Revision {
        let known = self.live.status.as_ref().and_then(|status| status.worker_image.clone());
        let image = checked.spec().worker.image.clone().or(known).unwrap_or_default();
        Revision::of(checked, &image, self.live.annotations().get(labels::RESTARTED_AT).map(String::as_str))
    }

    fn groups(&self) -> String {
        let old = validate(self.live).ok();
        let same = old.as_ref().is_some_and(|old| self.revision(old) == self.revision(self.new));
        let (before, after) = (self.live.spec.replicas, self.new.replicas);
        if same {
            return match before == after {
                true => "No group is replaced.\n".to_owned(),
                false => format!("No group is replaced; {before} groups become {after}.\n"),
            };
        }
        let rollout = &self.new.spec().rollout;
        if rollout.paused {
            return "Groups would be replaced, but rollout.paused is set: nothing happens until it is not.\n".to_owned();
        }
        let at_once = (rollout.max_unavailable + rollout.max_surge).max(1);
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
        let before = validate(self.live).map_or(0, |old| of(&old, old.replicas));
        format!("GPUs: {before} -> {after}; during the rollout up to {meanwhile} more.\n")
    }
}

fn spec_of(deployment: &MiniMaxM1Deployment) -> Value {
    canonical(serde_json::to_value(&deployment.spec).unwrap_or_default())
}

/// Leaves that differ: path, before, after.
fn changes(before: &Value, after: &Value) -> Vec<(String, Value, Value)> {
    let mut found = Vec::new();
    compare("", before, after, &mut found);
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<(String, Value, Value)>) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        if before != after {
            found.push((path.to_owned(), before.clone(), after.clone()));
        }
        return;
    };
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let of = |fields: &serde_json::Map<String, Value>| fields.get(key).cloned().unwrap_or(Value::Null);
        compare(&path, &of(old), &of(new), found);
    }
}

fn set(spec: &mut Value, path: &str, to: Value) {
    let mut place = spec;
    for key in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(serde_json::Map::new());
        }
        let Some(fields) = place.as_object_mut() else { return };
        place = fields.entry(key.to_owned()).or_insert(Value::Null);
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
        let plan = m1_operator_plan::plan(&new, &Environment::new(m1_arch::Architecture::minimax_m1())).unwrap();
        Edit { live: &before, new: &new, plan: &plan, read_rate: 1_000_000_000 }.words()
    }

    #[test]
    fn an_edit_that_workers_notice_replaces_groups() {
        let text = words(json!({"replicas": 2}), json!({"replicas": 2, "experts": {"loss": {"waitSeconds": 9}}}));
        assert!(text.contains("~ spec.experts.loss.waitSeconds: 30 -> 9  (replaces groups)"), "{text}");
        assert!(text.contains("2 groups are replaced, at most 1 at a time: 2 waves"), "{text}");
        assert!(text.contains("GPUs: 32 -> 32; during the rollout up to 0 more."), "{text}");
    }

    #[test]
    fn an_edit_that_only_routers_notice_restarts_nothing() {
        let text = words(json!({}), json!({"router": {"replicas": 2}, "replicas": 2}));
        assert!(text.contains("(restarts nothing)") && !text.contains("(replaces groups)"), "{text}");
        assert!(text.contains("No group is replaced; 1 groups become 2."), "{text}");
    }

    #[test]
    fn the_only_group_is_told_to_stop_the_rollout() {
        let text = words(json!({}), json!({"worker": {"memoryPerGpu": "90G"}}));
        assert!(text.contains("NoHandoverTarget"), "{text}");
        assert_eq!(words(json!({}), json!({})), "m1: nothing would change\n");
    }
}
