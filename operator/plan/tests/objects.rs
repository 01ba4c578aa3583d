//! The objects of the examples, as they are applied: goldens that fail on drift. And the promise that an upgrade restarts nothing:
//! the revision of a known spec is a constant.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::{GOOD, added, changed, check, errors, m1};
use m1_operator_plan::render::{GroupRef, Images, Scene, first_placement, placement_object};
use m1_operator_plan::{Checked, Object, Plan, Revision, plan};
use serde_json::Value;

const REGENERATE: &str = "UPDATE_GOLDENS=1 cargo test -p m1-operator-plan --test objects";

fn images() -> Images {
    Images { worker: "example.test/worker:1".into(), router: "example.test/router:1".into() }
}

fn scene<'a>(checked: &'a Checked, plan: &'a Plan, images: &'a Images) -> Scene<'a> {
    Scene {
        checked,
        plan,
        namespace: "models",
        uid: "0b0b0b0b-0000-4000-8000-000000000000",
        images,
        operator_namespace: "minimax-m1-system",
        version: "0.0.0",
    }
}

/// Every object of one group and of the deployment, as YAML documents.
fn rendered(yaml: &str) -> Vec<Object> {
    let checked = check(yaml).unwrap();
    let plan = plan(&checked, &m1()).unwrap();
    let images = images();
    let scene = scene(&checked, &plan, &images);
    let revision = Revision::of(&checked, &images.worker, None);
    let group = GroupRef { index: 0, revision, size: checked.pods };
    let mut objects = scene.shared();
    objects.extend(scene.around(&group, false));
    objects.extend(scene.group(&group, group.size));
    let mut placement = placement_object(&scene, &group);
    placement.value["spec"] = serde_json::to_value(first_placement(&scene, &group, 7)).unwrap();
    for pod in placement.value["spec"]["pods"].as_array_mut().unwrap() {
        let holds = pod["holds"].as_str().unwrap();
        pod["holds"] = Value::from(format!("{}... ({} digits)", &holds[..8], holds.len()));
    }
    objects.push(placement);
    objects
}

#[track_caller]
fn golden(name: &str, objects: &[Object]) {
    let documents: Vec<String> = objects.iter().map(|object| serde_saphyr::to_string(&object.value).unwrap()).collect();
    let text = documents.join("---\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/objects").join(format!("{name}.yaml"));
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap_or_default(), "objects of {name} changed; if they should: {REGENERATE}");
}

#[test]
fn two_gpu_pods() {
    golden("two-gpu-pods", &rendered(GOOD));
}

#[test]
fn everything_that_can_be_asked_for() {
    let yaml = added(
        "replicas: 2
router: {replicas: 2, nodeSelector: {pool: front}, tolerations: [{key: front, operator: Exists}], priorityClassName: front, auth: {mode: ApiKeys, secretRef: {name: keys}}, service: {type: LoadBalancer, port: 8080, annotations: {a: b}}, limits: {maxOutputTokens: 4096, maxBody: 1Mi}}
monitoring: {podMonitor: true, podMonitorLabels: {release: prometheus}, interval: 30s}
scheduling: {gang: Coscheduling, topologyKey: example.test/rack, priorityClassName: high}
experts: {loss: {waitSeconds: 7}}",
    )
    .replace("hostPath: {path: /models/m1}", "persistentVolumeClaim: {claimName: weights, path: m1/80k}")
    .replace(
        "worker: {memoryPerGpu: 80G}",
        "worker: {memoryPerGpu: 80G, imagePullSecrets: [{name: pull}], nodeSelector: {gpu: h800}, tolerations: [{key: gpu, operator: Exists}], resources: {limits: {cpu: 8, memory: 900Gi}}, podTemplate: {metadata: {annotations: {team: m1}}, spec: {runtimeClassName: nvidia, containers: [{name: worker, env: [{name: NCCL_DEBUG, value: INFO}]}]}}}",
    );
    golden("everything", &rendered(&yaml));
}

#[test]
fn other_gangs() {
    for gang in ["Volcano", "Kai"] {
        let objects = rendered(&added(&format!("scheduling: {{gang: {gang}}}")));
        let ganged: Vec<Object> =
            objects.into_iter().filter(|object| matches!(object.kind.as_str(), "PodGroup" | "StatefulSet")).collect();
        golden(&format!("gang-{}", gang.to_lowercase()), &ganged);
    }
}

#[test]
fn certificates_of_the_operator_and_of_cert_manager() {
    golden("tls-managed", &rendered(&added("tls: {mode: Managed}")));
    golden("tls-cert-manager", &rendered(&added("tls: {mode: CertManager, issuerRef: {name: ours, kind: ClusterIssuer}}")));
}

#[test]
fn an_image_as_the_weights() {
    let yaml = changed("hostPath: {path: /models/m1}", "image: {reference: example.test/weights:1}");
    let set: Vec<Object> = rendered(&yaml).into_iter().filter(|object| object.kind.as_str() == "StatefulSet").collect();
    golden("weights-image", &set);
}

/// The StatefulSet and the router of a deployment whose model is fetched.
fn fetching(source: &str, more: &str) -> Vec<Object> {
    let yaml = changed("source: {hostPath: {path: /models/m1}}", source).replace("memoryPerGpu: 80G", more);
    rendered(&yaml).into_iter().filter(|object| matches!(object.kind.as_str(), "StatefulSet" | "Deployment")).collect()
}

#[test]
fn weights_from_the_hub() {
    let source = "source: {huggingFace: {repo: MiniMaxAI/MiniMax-M1-80k, revision: v1, tokenSecret: {name: hub, key: read}}}\n    cache: \
                  {hostPath: {path: /var/cache/m1}}";
    let env = "memoryPerGpu: 80G, podTemplate: {spec: {containers: [{name: worker, env: [{name: HF_ENDPOINT, value: 'https://mirror.test'}, \
               {name: https_proxy, value: 'http://proxy.test:3128'}, {name: NCCL_DEBUG, value: INFO}]}]}}";
    golden("weights-hub", &fetching(source, env));
}

#[test]
fn weights_from_the_web() {
    golden("weights-url", &fetching("source: {url: {url: 'https://files.test/m1'}}", "memoryPerGpu: 80G"));
    let claim = "source: {url: {url: 'https://files.test/m1'}}\n    cache: {persistentVolumeClaim: {claimName: cache}}";
    let volumes = |objects: Vec<Object>, kind: &str| {
        let object = objects.into_iter().find(|object| object.kind.as_str() == kind).unwrap();
        object.value["spec"]["template"]["spec"]["volumes"][0].to_string()
    };
    let objects = fetching(claim, "memoryPerGpu: 80G");
    assert_eq!(volumes(objects.clone(), "StatefulSet"), r#"{"name":"model-cache","persistentVolumeClaim":{"claimName":"cache"}}"#);
    assert_eq!(volumes(objects, "Deployment"), r#"{"name":"model-cache","emptyDir":{}}"#, "a router needs little");
    let limited = "source: {url: {url: 'https://files.test/m1'}}\n    cache: {emptyDir: {sizeLimit: 500Gi}}";
    let expected = r#"{"name":"model-cache","emptyDir":{"sizeLimit":"500Gi"}}"#;
    assert_eq!(volumes(fetching(limited, "memoryPerGpu: 80G"), "StatefulSet"), expected);
}

#[test]
fn another_source_or_cache_is_another_revision() {
    let revision = |source: &str| {
        let yaml = changed("source: {hostPath: {path: /models/m1}}", source);
        Revision::of(&check(&yaml).unwrap(), "example.test/worker:1", None).to_string()
    };
    let hub = "source: {huggingFace: {repo: a/b}}";
    for other in
        ["source: {huggingFace: {repo: a/b, revision: v2}}", "source: {huggingFace: {repo: a/b}}\n    cache: {emptyDir: {}}"]
    {
        assert_ne!(revision(hub), revision(other), "{other}");
    }
}

#[test]
fn an_upgrade_of_the_operator_restarts_nothing() {
    let revision = |yaml: &str| Revision::of(&check(yaml).unwrap(), "example.test/worker:1", None).to_string();
    assert_eq!(revision(GOOD), "2pdzlr", "every group of every deployment would restart; see revision.rs");
    // What only routers, budgets or the operator notice is no revision.
    for same in ["replicas: 3", "rollout: {maxSurge: 1}", "router: {replicas: 2}", "monitoring: {podMonitor: true}"] {
        assert_eq!(revision(&added(same)), revision(GOOD), "{same}");
    }
    assert_eq!(revision(&changed("  model:\n", "  model:\n    servedName: other\n")), revision(GOOD), "what clients call it");
    for other in ["scheduling: {topologyKey: rack}", "experts: {loss: {waitSeconds: 9}}"] {
        assert_ne!(revision(&added(other)), revision(GOOD), "{other}");
    }
    let checked = check(GOOD).unwrap();
    assert_ne!(Revision::of(&checked, "other", None), Revision::of(&checked, "example.test/worker:1", None));
    assert_ne!(Revision::of(&checked, "i", Some("2026-01-01T00:00:00Z")), Revision::of(&checked, "i", None));
}

#[test]
fn the_longest_name_leaves_room_for_what_controllers_append() {
    let name = "a".repeat(40);
    let yaml = changed("name: m1}", &format!("name: {name}}}"));
    let checked = check(&yaml).unwrap();
    let plan = plan(&checked, &m1()).unwrap();
    let images = images();
    let group = GroupRef { index: 255, revision: Revision::of(&checked, &images.worker, None), size: 32 };
    let set = scene(&checked, &plan, &images).group_name(&group);
    // The label controller-revision-hash: the name, a hyphen, ten characters; and the hostname of the last of 32 pods.
    assert!(set.len() + 1 + 10 <= 63 && set.len() + "-31".len() <= 63, "{set} has {} characters", set.len());
}

#[test]
fn a_patch_that_would_break_the_pods_is_refused() {
    let yaml = changed("memoryPerGpu: 80G", "memoryPerGpu: 80G, podTemplate: {spec: {hostNetwork: true}}");
    let expected = "spec.worker.podTemplate.spec.hostNetwork: true: the operator sets it; it cannot be overridden";
    assert_eq!(errors(&yaml), [expected]);
}
