//! What may reach whom: nothing reaches a pod of a deployment unless one of these policies says so. And what Prometheus scrapes.

use m1_operator_api::labels;
use serde_json::{Value, json};

use super::{ADMIN_PORT, ROUTER, ROUTER_PORT, Scene, WORKER, WORKER_PORT};
use crate::{Kind, Object};

/// Default deny, then who may: routers, peers and the operator to workers; everybody to routers; anybody who scrapes.
pub fn policies(scene: &Scene<'_>) -> Vec<Object> {
    let name = scene.checked.name.as_str();
    let all = json!({"matchLabels": {labels::NAME: name}});
    let deny = json!({"spec": {"podSelector": all, "policyTypes": ["Ingress"]}});
    let operator = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.operator_namespace}},
        "podSelector": {"matchLabels": {labels::APP_NAME: labels::MANAGER}},
    });
    let member = |component: &str| json!({"podSelector": {"matchLabels": scene.component_selector(component)}});
    let worker = json!({"spec": {
        "podSelector": {"matchLabels": scene.component_selector(WORKER)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [member(ROUTER), member(WORKER), operator], "ports": [port(WORKER_PORT)]},
            {"ports": [port(ADMIN_PORT)]},
        ],
    }});
    let router = json!({"spec": {
        "podSelector": {"matchLabels": scene.component_selector(ROUTER)},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [port(ROUTER_PORT)]}],
    }});
    vec![
        // Not the bare name: a deployment `x-worker` beside `x` would meet the policy of x's workers.
        scene.object(Kind::NetworkPolicy, &format!("{name}-default-deny"), "deployment", deny),
        scene.object(Kind::NetworkPolicy, &scene.checked.name.worker(), WORKER, worker),
        scene.object(Kind::NetworkPolicy, &scene.checked.name.router(), ROUTER, router),
    ]
}

fn port(port: u16) -> Value {
    json!({"protocol": "TCP", "port": port})
}

/// The PodMonitor of routers and workers, where it is asked for.
pub fn pod_monitor(scene: &Scene<'_>) -> Option<Object> {
    let name = scene.checked.name.as_str();
    let monitoring = &scene.checked.spec().monitoring;
    let endpoint = |port: &str| {
        let mut endpoint = json!({"port": port, "path": "/metrics"});
        if let Some(interval) = &monitoring.interval {
            endpoint["interval"] = json!(interval);
        }
        endpoint
    };
    let body = json!({"spec": {
        "selector": {"matchLabels": {labels::NAME: name}},
        "podMetricsEndpoints": [endpoint("http"), endpoint("admin")],
        "podTargetLabels": [labels::APP_COMPONENT, labels::NAME, labels::GROUP_INDEX],
    }});
    let mut object = monitoring.pod_monitor.then(|| scene.object(Kind::PodMonitor, name, "monitoring", body))?;
    for (key, value) in &monitoring.pod_monitor_labels {
        // Ours are what the operator finds its objects by.
        let labels = object.value["metadata"]["labels"].as_object_mut()?;
        labels.entry(key).or_insert_with(|| json!(value));
    }
    Some(object)
}
