//! The rendered policies, evaluated against the flows that must pass and those that must not. No cluster is needed: the evaluator
//! below is what a policy engine does with ingress rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{GOOD, check, m1};
use m1_operator_plan::render::{Images, Scene};
use m1_operator_plan::{Object, plan};
use serde_json::Value;

type Labels = BTreeMap<&'static str, &'static str>;

/// A pod: its namespace and labels.
struct Peer {
    namespace: &'static str,
    labels: Labels,
}

fn member(component: &'static str) -> Peer {
    Peer { namespace: "models", labels: [("serving.minimax-m1.dev/name", "m1"), ("app.kubernetes.io/component", component)].into() }
}

fn other(namespace: &'static str, name: &'static str) -> Peer {
    Peer { namespace, labels: [("app.kubernetes.io/name", name)].into() }
}

fn policies() -> Vec<Object> {
    let checked = check(GOOD).unwrap();
    let plan = plan(&checked, &m1()).unwrap();
    let images = Images { worker: "w".into(), router: "r".into() };
    let scene = Scene {
        checked: &checked,
        plan: &plan,
        namespace: "models",
        uid: "u",
        images: &images,
        operator_namespace: "minimax-m1-system",
        version: "0",
    };
    scene.shared().into_iter().filter(|object| object.kind.as_str() == "NetworkPolicy").collect()
}

fn selects(selector: &Value, labels: &Labels) -> bool {
    let wanted = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    wanted.into_iter().all(|(key, value)| labels.get(key.as_str()).copied() == value.as_str())
}

/// Whether a peer of a rule is this pod. Namespaces carry their name as a label.
fn matches(rule: &Value, from: &Peer) -> bool {
    let namespace: Labels = [("kubernetes.io/metadata.name", from.namespace)].into();
    let near = match rule.get("namespaceSelector") {
        Some(selector) => selects(selector, &namespace),
        None => from.namespace == "models",
    };
    near && rule.get("podSelector").is_none_or(|selector| selects(selector, &from.labels))
}

/// What a policy engine decides: pods that a policy selects are reached only through a rule of some policy.
fn passes(policies: &[Object], from: &Peer, to: &Peer, port: u64) -> bool {
    let selecting: Vec<&Value> =
        policies.iter().map(|policy| &policy.value["spec"]).filter(|spec| selects(&spec["podSelector"], &to.labels)).collect();
    let rules = selecting.iter().flat_map(|spec| spec["ingress"].as_array().into_iter().flatten());
    let through = |rule: &Value| {
        let ports = rule["ports"].as_array().is_none_or(|ports| ports.iter().any(|given| given["port"].as_u64() == Some(port)));
        ports && rule["from"].as_array().is_none_or(|peers| peers.iter().any(|peer| matches(peer, from)))
    };
    selecting.is_empty() || rules.into_iter().any(through)
}

#[test]
fn flows_that_must_pass_do_and_all_others_do_not() {
    let policies = policies();
    let (worker, router) = (member("worker"), member("router"));
    let operator = other("minimax-m1-system", "minimax-m1-operator");
    let prometheus = other("monitoring", "prometheus");
    let client = other("apps", "chat");
    let impostor = other("apps", "minimax-m1-operator");
    let mut neighbour = member("router");
    neighbour.labels.insert("serving.minimax-m1.dev/name", "another");
    let flows: [(&Peer, &Peer, u64, bool, &str); 15] = [
        (&router, &worker, 9000, true, "a router sends requests"),
        (&worker, &worker, 9000, true, "workers dispatch"),
        (&operator, &worker, 9000, true, "the operator pushes placements"),
        (&prometheus, &worker, 9090, true, "workers are scraped"),
        (&prometheus, &router, 8000, true, "routers are scraped"),
        (&client, &router, 8000, true, "clients ask"),
        (&client, &worker, 9000, false, "a client asks a worker"),
        (&client, &worker, 22, false, "anything else of a worker"),
        (&client, &router, 9000, false, "anything else of a router"),
        (&prometheus, &worker, 9000, false, "a scraper asks a worker"),
        (&impostor, &worker, 9000, false, "who calls itself the operator elsewhere"),
        (&neighbour, &worker, 9000, false, "another deployment's router"),
        (&router, &router, 8080, false, "routers among themselves"),
        (&operator, &router, 8000, true, "the operator asks a router"),
        (&worker, &router, 22, false, "a worker asks a router"),
    ];
    for (from, to, port, expected, what) in flows {
        assert_eq!(passes(&policies, from, to, port), expected, "{what} (port {port})");
    }
}

/// Whether anything but ingress is denied to a pod. None of these policies says where a pod may connect to: a source, a mirror, its
/// CDN or a proxy may be anywhere, and a policy of the namespace decides about that.
fn is_isolated_outwards(policies: &[Object], from: &Peer) -> bool {
    let selecting = policies.iter().map(|policy| &policy.value["spec"]).filter(|spec| selects(&spec["podSelector"], &from.labels));
    selecting.into_iter().any(|spec| spec["policyTypes"].as_array().is_none_or(|types| types.iter().any(|kind| kind == "Egress")))
}

#[test]
fn pods_that_fetch_their_model_reach_its_source() {
    let policies = policies();
    for pod in [member("worker"), member("router")] {
        assert!(!is_isolated_outwards(&policies, &pod));
    }
}

#[test]
fn the_evaluator_sees_a_policy_that_is_missing() {
    let without_deny: Vec<Object> =
        policies().into_iter().filter(|policy| !policy.name.ends_with("worker") && policy.name != "m1-default-deny").collect();
    assert!(passes(&without_deny, &other("apps", "chat"), &member("worker"), 9000));
}
