//! The objects of a replica group: a StatefulSet whose template never changes, and a headless Service for its pods' names.

use m1_operator_api::{Gang, labels};
use serde_json::{Map, Value, json};

use super::members;
use super::pod::{Cache, LOST_NODES, container_security, model, probe, security, tolerations};
use super::{ADMIN_PORT, GroupRef, Scene, WORKER_PORT, map, overrides};
use crate::{Device, Kind, Object, PodPlan, Source};

/// The slowest source that a start is given time for: a network disk shared by several pods.
const SLOWEST_READ: u64 = 50_000_000;
/// The slowest line to a hub that a start is given time for: 160 Mbit/s. What is fetched by then stays for the next start.
const SLOWEST_FETCH: u64 = 20_000_000;
/// Time to start without any weights: image unpacking, GPU drivers, a slow API server.
const LEAST_START_SECONDS: u64 = 600;
/// Between two probes of a start; small against the start of the demo model, which takes a second.
const PROBE_PERIOD: u32 = 2;
/// Failures of the liveness probe before a restart: a minute, for a device that is busy with a long prefill.
const LIVENESS_FAILURES: u64 = 6;
/// Between the end of the drain and SIGKILL.
const GRACE_BEYOND_DRAIN: u32 = 10;

/// `HOST:PORT` of a pod's gRPC, by the name that stays while the pod comes and goes.
pub fn pod_address(group_name: &str, pod: u32, namespace: &str) -> String {
    format!("{group_name}-{pod}.{group_name}.{namespace}.svc:{WORKER_PORT}")
}

/// The Service that gives the pods of a group names, from the moment they have addresses: peers meet before they are ready.
pub fn service(scene: &Scene<'_>, group: &GroupRef) -> Object {
    let body = json!({"spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": scene.group_selector(group),
        "ports": [{"name": "grpc", "port": WORKER_PORT, "targetPort": "grpc", "appProtocol": if members::is_encrypted(scene) { "kubernetes.io/h2" } else { "kubernetes.io/h2c" }}],
    }});
    scene.group_object(Kind::Service, group, body)
}

/// The pods of a group. None where the plan has no pod to take the template from.
pub fn stateful_set(scene: &Scene<'_>, group: &GroupRef, replicas: u32) -> Option<Object> {
    let pod = scene.plan.template()?;
    let name = scene.group_name(group);
    let memory = pod.bytes.per_device.memory.unwrap_or_default();
    let mut annotations = map(&[(labels::RENDERED_BY, scene.version), (labels::GPU_MEMORY, &memory.0.to_string())]);
    if scene.checked.spec().scheduling.gang == Gang::Kai {
        annotations.extend(map(&[("kai.scheduler/min-member", &group.size.to_string())]));
    }
    let body = json!({
        "metadata": {"annotations": annotations},
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            // One revision per object: there is nothing to go back to.
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": scene.group_selector(group)},
            "template": template(scene, group, pod),
        },
    });
    Some(scene.group_object(Kind::StatefulSet, group, body))
}

fn template(scene: &Scene<'_>, group: &GroupRef, pod: &PodPlan) -> Value {
    let mut labels = scene.group_labels(group);
    labels.extend(map(&[(labels::LLMD_SERVING, "true"), (labels::LLMD_MODEL, &label_value(&scene.plan.served_name))]));
    let name = scene.group_name(group);
    let spec = scene.checked.spec();
    let mut model = model(&scene.checked.source, Cache::of(spec.model.cache.as_ref()));
    model.volumes.push(json!({"name": "tmp", "emptyDir": {}}));
    model.mounts.push(json!({"name": "tmp", "mountPath": "/tmp"}));
    let mut args = args(scene, pod, &model.flags);
    if members::is_encrypted(scene) {
        let tls = members::volume(scene, false);
        model.volumes.push(tls.volume);
        model.mounts.push(tls.mount);
        args.extend(tls.flags);
    }
    let mut pod_spec = json!({
        "serviceAccountName": scene.checked.name.worker(),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": spec.worker.drain_seconds + GRACE_BEYOND_DRAIN,
        "securityContext": security(),
        "containers": [container(scene, group, pod, (&args, &model.mounts))],
        "volumes": model.volumes,
        // The operator ends pods of a silent node, and knows when most nodes only seem silent; and the time it waits is not in a
        // template that never changes.
        "tolerations": tolerations(&spec.worker.tolerations, &LOST_NODES[1..], None),
        "affinity": affinity(scene, group),
    });
    let mut set = |key: &str, value: Value| {
        pod_spec[key] = value;
    };
    if !spec.worker.node_selector.is_empty() {
        set("nodeSelector", json!(spec.worker.node_selector));
    }
    if !spec.worker.image_pull_secrets.is_empty() {
        set("imagePullSecrets", json!(spec.worker.image_pull_secrets));
    }
    if let Some(class) = &spec.scheduling.priority_class_name {
        set("priorityClassName", json!(class));
    }
    let mut annotations = Map::new();
    match spec.scheduling.gang {
        Gang::Off => {}
        Gang::Coscheduling => {
            labels.extend(map(&[("scheduling.x-k8s.io/pod-group", &name)]));
            set("schedulerName", json!("scheduler-plugins-scheduler"));
        }
        Gang::Volcano => {
            annotations.extend(map(&[("scheduling.k8s.io/group-name", &name)]));
            set("schedulerName", json!("volcano"));
        }
        Gang::Kai => {
            labels.extend(map(&[("kai.scheduler/queue", "default-queue")]));
            set("schedulerName", json!("kai-scheduler"));
        }
    }
    let template = json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": pod_spec});
    overrides::apply(template, spec.worker.pod_template.as_ref())
}

fn container(scene: &Scene<'_>, group: &GroupRef, pod: &PodPlan, (args, mounts): (&[String], &[Value])) -> Value {
    let name = scene.group_name(group);
    let index = json!({"fieldRef": {"fieldPath": format!("metadata.labels['{}']", labels::POD_INDEX)}});
    let leader = format!("{name}-0.{name}.{}.svc", scene.namespace);
    json!({
        "name": "worker",
        "image": scene.images.worker,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "env": [
            {"name": "M1_POD_INDEX", "valueFrom": index},
            // Not a flag: an image of a version before must start with it.
            {"name": "M1_MEMBER", "value": format!("{}/{}/{}/{name}", scene.namespace, scene.checked.name.as_str(), scene.uid)},
            // LeaderWorkerSet's names, which tools and people know.
            {"name": "LWS_LEADER_ADDRESS", "value": leader},
            {"name": "LWS_GROUP_SIZE", "value": group.size.to_string()},
            {"name": "LWS_WORKER_INDEX", "valueFrom": index},
        ],
        "ports": [
            {"name": "grpc", "containerPort": WORKER_PORT},
            {"name": "admin", "containerPort": ADMIN_PORT},
        ],
        "resources": resources(scene, pod),
        "securityContext": container_security(),
        "volumeMounts": mounts,
        "startupProbe": probe("/startupz", "admin", PROBE_PERIOD, start_seconds(scene, pod).div_ceil(u64::from(PROBE_PERIOD))),
        "readinessProbe": probe("/readyz", "admin", PROBE_PERIOD, 2),
        "livenessProbe": probe("/livez", "admin", 10, LIVENESS_FAILURES),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// How long a pod may take to start: what it fetches and reads at the pace of the slowest source, and no less than a floor. A pod
/// fetches whole shards, which may hold experts of all others: at most what all pods of its group read.
fn start_seconds(scene: &Scene<'_>, pod: &PodPlan) -> u64 {
    let fetched = match scene.checked.source {
        Source::HuggingFace { .. } | Source::Url { .. } => scene.plan.every.pods.iter().map(|pod| pod.bytes.read.0).sum(),
        Source::HostPath { .. } | Source::PersistentVolumeClaim { .. } | Source::Image { .. } => 0,
    };
    LEAST_START_SECONDS + pod.bytes.read.0 / SLOWEST_READ + fetched / SLOWEST_FETCH
}

fn args(scene: &Scene<'_>, pod: &PodPlan, model: &[(&'static str, String)]) -> Vec<String> {
    let (args, spec) = (&pod.args, scene.checked.spec());
    let mut line = vec!["serve".to_owned()];
    let mut flag = |name: &str, value: String| line.extend([format!("--{name}"), value]);
    model.iter().for_each(|(name, value)| flag(name, value.clone()));
    flag("listen", format!("0.0.0.0:{WORKER_PORT}"));
    flag("admin", format!("0.0.0.0:{ADMIN_PORT}"));
    flag("slots", args.slots.to_string());
    flag("kv-tokens", args.kv_tokens.to_string());
    flag("max-context", args.max_context.to_string());
    flag("prefill-chunk", args.prefill_chunk.to_string());
    flag("expert-wait", spec.experts.loss.wait_seconds.to_string());
    flag("drain-seconds", spec.worker.drain_seconds.to_string());
    if let Some(threads) = args.threads {
        flag("threads", threads.to_string());
    }
    line
}

/// What the spec says, GPUs as planned, and, on a CPU, memory for what the pod will hold where the spec says nothing.
fn resources(scene: &Scene<'_>, pod: &PodPlan) -> Value {
    let given = &scene.checked.spec().worker.resources;
    let (mut requests, mut limits) = (json!(given.requests), json!(given.limits));
    if pod.gpus > 0 {
        limits["nvidia.com/gpu"] = json!(pod.gpus.to_string());
        requests["nvidia.com/gpu"] = json!(pod.gpus.to_string());
    }
    let silent = !given.requests.contains_key("memory") && !given.limits.contains_key("memory");
    if scene.plan.device == Device::Cpu && silent {
        requests["memory"] = json!((pod.bytes.total + crate::compose::CPU_PROCESS).0.to_string());
    }
    json!({"requests": requests, "limits": limits})
}

/// Pods of a group on different nodes (a must on GPUs, a wish on CPUs), all in one topology domain where one is named.
fn affinity(scene: &Scene<'_>, group: &GroupRef) -> Value {
    let own = json!({"matchLabels": scene.group_selector(group)});
    let apart = json!({"labelSelector": own, "topologyKey": "kubernetes.io/hostname"});
    let mut affinity = match scene.plan.device {
        Device::Gpu => json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}),
        Device::Cpu => json!({"podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": apart}],
        }}),
    };
    if let Some(key) = &scene.checked.spec().scheduling.topology_key {
        affinity["podAffinity"] =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": own, "topologyKey": key}]});
    }
    affinity
}

/// A text as a label's value: at most 63 letters, digits and `. _ -`, with a letter or digit at both ends.
fn label_value(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let value: String = text.chars().map(allowed).take(63).collect();
    value.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
