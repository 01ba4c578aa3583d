//! The front door: routers behind a Service. They find groups by watching ExpertPlacements, so a change of groups restarts none.

use m1_operator_api::{AuthMode, labels};
use serde_json::{Value, json};

use super::members;
use super::pod::{Cache, LOST_NODES, ModelFiles, container_security, model, probe, security, tolerations};
use super::{ROUTER, ROUTER_PORT, Scene};
use crate::{Kind, Object, Source};

/// Between the end of readiness and the closing of the listener: what endpoints need to reach every kube-proxy.
const SHUTDOWN_DELAY: u32 = 5;
/// Beyond delay and drain, before SIGKILL.
const GRACE_BEYOND_DRAIN: u32 = 10;
/// `router.limits.maxBody` where the spec says nothing: 16 Mi.
const USUAL_BODY: u64 = 16 << 20;
/// Variables that lead to a source: the hub's address, a token, proxies.
const SOURCE_ENV: [&str; 6] = ["HF_ENDPOINT", "HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];
/// Where the Secret with API keys is mounted.
const KEYS_MOUNT: &str = "/keys";

/// Deployment and Service.
pub fn objects(scene: &Scene<'_>) -> Vec<Object> {
    let name = scene.checked.name.router();
    vec![
        scene.object(Kind::Deployment, &name, ROUTER, json!({"spec": deployment(scene)})),
        scene.object(Kind::Service, &name, ROUTER, service(scene)),
    ]
}

fn service(scene: &Scene<'_>) -> Value {
    let service = &scene.checked.spec().router.service;
    json!({
        "metadata": {"annotations": service.annotations},
        "spec": {
            "type": service.kind.as_str(),
            "selector": scene.component_selector(ROUTER),
            "ports": [{"name": "http", "port": service.port, "targetPort": "http", "protocol": "TCP"}],
        },
    })
}

fn deployment(scene: &Scene<'_>) -> Value {
    let mut labels = scene.labels();
    labels.extend(scene.component_selector(ROUTER));
    json!({
        "replicas": scene.plan.router.replicas,
        "selector": {"matchLabels": scene.component_selector(ROUTER)},
        // A router that is new must serve before an old one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": labels}, "spec": pod(scene)},
    })
}

fn pod(scene: &Scene<'_>) -> Value {
    let spec = scene.checked.spec();
    // Config and tokenizer are small, and routers run where no cache of weights is.
    let ModelFiles { mut volumes, mut mounts, flags } = model(&scene.checked.source, Cache::of(None));
    volumes.push(json!({"name": "tmp", "emptyDir": {}}));
    mounts.push(json!({"name": "tmp", "mountPath": "/tmp"}));
    let mut args = args(scene, &flags);
    // Also where nothing is encrypted any more, for groups that still are. Where it is asked for no router starts without: to one
    // that runs already, the kubelet would bring it minutes late.
    let tls = members::volume(scene, !members::is_encrypted(scene));
    volumes.push(tls.volume);
    mounts.push(tls.mount);
    args.extend(tls.flags);
    if let (AuthMode::ApiKeys, Some(secret)) = (spec.router.auth.mode, &spec.router.auth.secret_ref) {
        volumes.push(json!({"name": "keys", "secret": {"secretName": secret.name}}));
        mounts.push(json!({"name": "keys", "mountPath": KEYS_MOUNT, "readOnly": true}));
        args.extend(["--api-keys".to_owned(), KEYS_MOUNT.to_owned()]);
    }
    let mut container = json!({
        "name": "router",
        "image": scene.images.router,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "ports": [{"name": "http", "containerPort": ROUTER_PORT}],
        "resources": spec.router.resources,
        "securityContext": container_security(),
        "volumeMounts": mounts,
        "startupProbe": probe("/health", "http", 1, 120),
        // A pod is an endpoint as long as it can answer at all: without a group it says 503 with Retry-After, which a client
        // understands; a refused connection it does not.
        "readinessProbe": probe("/health", "http", 2, 2),
        "livenessProbe": probe("/health", "http", 10, 6),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let env = source_env(scene);
    if !env.is_empty() {
        container["env"] = json!(env);
    }
    let tolerated = [&spec.worker.tolerations[..], &spec.router.tolerations].concat();
    let mut pod = json!({
        "serviceAccountName": scene.checked.name.router(),
        "enableServiceLinks": false,
        // As long as a worker may take, or its streams would be cut here.
        "terminationGracePeriodSeconds": spec.worker.drain_seconds + SHUTDOWN_DELAY + GRACE_BEYOND_DRAIN,
        "securityContext": security(),
        "containers": [container],
        "volumes": volumes,
        "tolerations": tolerations(&tolerated, &LOST_NODES, Some(spec.worker.unreachable_seconds)),
    });
    // A folder of a node is where the workers' nodes have it.
    let node_selector = match (&scene.checked.source, spec.router.node_selector.is_empty()) {
        (Source::HostPath { .. }, true) => &spec.worker.node_selector,
        _ => &spec.router.node_selector,
    };
    if !node_selector.is_empty() {
        pod["nodeSelector"] = json!(node_selector);
    }
    if let Some(class) = &spec.router.priority_class_name {
        pod["priorityClassName"] = json!(class);
    }
    if !spec.worker.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = json!(spec.worker.image_pull_secrets);
    }
    // Also of a single one: a second one must not change the template, or the first would be replaced.
    let term = json!({
        "labelSelector": {"matchLabels": scene.component_selector(ROUTER)},
        "topologyKey": "kubernetes.io/hostname",
    });
    pod["affinity"] = json!({"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}],
    }});
    pod
}

fn args(scene: &Scene<'_>, model: &[(&'static str, String)]) -> Vec<String> {
    let (router, spec) = (&scene.plan.router, scene.checked.spec());
    let mut line = Vec::new();
    let mut flag = |name: &str, value: String| line.extend([format!("--{name}"), value]);
    flag("listen", format!("0.0.0.0:{ROUTER_PORT}"));
    model.iter().for_each(|(name, value)| flag(name, value.clone()));
    flag("served-name", router.served_name.clone());
    flag("max-context", router.max_context.to_string());
    flag("deployment", scene.checked.name.to_string());
    flag("namespace", scene.namespace.to_owned());
    flag("queue-limit", spec.router.queue.max_requests.to_string());
    flag("queue-wait", spec.router.queue.max_wait_seconds.to_string());
    flag("shutdown-delay", SHUTDOWN_DELAY.to_string());
    flag("drain-seconds", spec.worker.drain_seconds.to_string());
    if let Some(tokens) = spec.router.limits.max_output_tokens {
        flag("max-output-tokens", tokens.to_string());
    }
    let body = spec.router.limits.max_body.as_ref().and_then(|body| body.amount().ok()).map_or(USUAL_BODY, |bytes| bytes as u64);
    flag("body-limit", body.to_string());
    line
}

/// What workers are told of the way to a source that is fetched, in `spec.worker.podTemplate`: routers take the same way.
fn source_env(scene: &Scene<'_>) -> Vec<Value> {
    if !matches!(scene.checked.source, Source::HuggingFace { .. } | Source::Url { .. }) {
        return Vec::new();
    }
    let template = scene.checked.spec().worker.pod_template.as_ref();
    let containers = template.and_then(|template| template.get("spec")?.get("containers")?.as_array()).into_iter().flatten();
    let worker = containers.filter(|container| container["name"] == "worker");
    let env = worker.flat_map(|container| container["env"].as_array().into_iter().flatten());
    let way = |variable: &&Value| {
        variable["name"].as_str().is_some_and(|name| SOURCE_ENV.iter().any(|way| way.eq_ignore_ascii_case(name)))
    };
    env.filter(way).cloned().collect()
}

/// Where clients connect, inside the cluster.
pub fn endpoint(scene: &Scene<'_>) -> String {
    let host = format!("http://{}.{}.svc", scene.checked.name.router(), scene.namespace);
    match scene.checked.spec().router.service.port {
        80 => host,
        port => format!("{host}:{port}"),
    }
}

/// The label selector of the leader pods, as `/scale` wants it: one pod per group.
pub fn leader_selector(scene: &Scene<'_>) -> String {
    let name = scene.checked.name.as_str();
    format!("{}={name},{}={},{}=0", labels::NAME, labels::APP_COMPONENT, super::WORKER, labels::POD_INDEX)
}
