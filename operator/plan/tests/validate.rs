//! One good manifest, then one change at a time, each with the error it must lead to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{GOOD, added, changed, check, errors};
use m1_operator_plan::{Runtime, Source, load, runnable, unused, validate};

/// The one error that the change leads to.
#[track_caller]
fn refused(yaml: &str, error: &str) {
    assert_eq!(errors(yaml), [error]);
}

#[test]
fn the_good_manifest_has_the_documented_defaults() {
    let checked = check(GOOD).unwrap();
    assert_eq!((checked.served_name.as_str(), checked.replicas, checked.copies), ("m1", 1, 1));
    assert_eq!((checked.tensor, checked.pods, checked.max_context), (8, 2, 1_000_000));
    assert_eq!(checked.source, Source::HostPath { path: "/models/m1".into() });
    assert_eq!(checked.memory_per_gpu, Some(m1_arch::Bytes(80_000_000_000)));
}

#[test]
fn name_and_source_are_enough() {
    let yaml = changed("  parallelism: {tensor: 8, expert: 2}\n  worker: {memoryPerGpu: 80G}\n", "");
    let checked = check(&yaml).unwrap();
    assert_eq!((checked.tensor, checked.pods, checked.memory_per_gpu, checked.redundant_slots), (1, 1, None, 0));
}

#[test]
fn unknown_fields_are_named_with_the_nearest_known_one() {
    refused(&changed("tensor: 8", "tensr: 8"), "spec.parallelism.tensr: no such field; did you mean tensor?");
    refused(&added("expert: {}"), "spec.expert: no such field; did you mean experts?");
    refused(&added("experts: {rebalance: {Mode: Auto}}"), "spec.experts.rebalance.Mode: no such field; did you mean mode?");
    refused(
        &changed("hostPath: {path: /models/m1}", "hostPath: {path: /models/m1, subdirectory: x}"),
        "spec.model.source.hostPath.subdirectory: no such field; known: path",
    );
    refused(
        &changed("metadata: {name: m1}", "metadata: {name: m1, lables: {}}"),
        "metadata.lables: no such field; did you mean labels?",
    );
    refused(&format!("{GOOD}specs: {{}}\n"), "specs: no such field; did you mean spec?");
    refused(
        &added("scheduling: {}").replace("memoryPerGpu: 80G", "tolerations: [{keys: a}]"),
        "spec.worker.tolerations[0].keys: no such field; did you mean key?",
    );
}

#[test]
fn kinds_and_required_fields() {
    refused(&changed("/v1alpha1", "/v1"), "apiVersion: \"serving.minimax-m1.dev/v1\": must be serving.minimax-m1.dev/v1alpha1");
    refused(&changed("kind: MiniMaxM1Deployment", "kind: Deployment"), "kind: \"Deployment\": must be MiniMaxM1Deployment");
    refused(&changed("metadata: {name: m1}", "metadata: {}"), "metadata.name: required");
    refused(&changed("    source: {hostPath: {path: /models/m1}}", "    servedName: m1"), "spec.model.source: required");
    refused(&changed("hostPath: {path: /models/m1}", "hostPath: {}"), "spec.model.source.hostPath.path: required");
}

#[test]
fn names() {
    let long = "a".repeat(41);
    refused(
        &changed("name: m1", &format!("name: {long}")),
        &format!("metadata.name: {long}: at most 40 characters, so that the names of its pods and services fit; this has 41"),
    );
    refused(
        &changed("name: m1", "name: M1"),
        "metadata.name: M1: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit",
    );
    refused(
        &changed("  model:\n", "  model:\n    servedName: '-x'\n"),
        "spec.model.servedName: -x: letters, digits and . _ / : -, beginning with a letter or digit",
    );
}

#[test]
fn exactly_one_source() {
    const ONE: &str = "exactly one of persistentVolumeClaim, hostPath, huggingFace, image, url";
    refused(&changed("{hostPath: {path: /models/m1}}", "{}"), &format!("spec.model.source: {ONE}"));
    refused(
        &changed("{hostPath: {path: /models/m1}}", "{hostPath: {path: /models/m1}, url: {url: 'https://x/y'}}"),
        &format!("spec.model.source: hostPath and url: {ONE}"),
    );
}

#[test]
fn sources() {
    let with = |source: &str| changed("{hostPath: {path: /models/m1}}", source);
    refused(
        &with("{hostPath: {path: /models/../m1}}"),
        "spec.model.source.hostPath.path: /models/../m1: an absolute path without '..'",
    );
    refused(
        &with("{persistentVolumeClaim: {claimName: c, path: /m1}}"),
        "spec.model.source.persistentVolumeClaim.path: /m1: relative to the volume's root, without '..'",
    );
    refused(&with("{huggingFace: {repo: MiniMax-M1}}"), "spec.model.source.huggingFace.repo: MiniMax-M1: owner/name");
    refused(&with("{url: {url: 'ftp://x'}}"), "spec.model.source.url.url: ftp://x: begins with https://, http://, s3:// or gs://");
    assert!(check(&with("{image: {reference: 'registry/m1:1'}}")).is_ok());
    let hub = |cache: &str| with(&format!("{{huggingFace: {{repo: a/b}}}}\n    cache: {cache}"));
    refused(
        &with("{hostPath: {path: /models/m1}}\n    cache: {emptyDir: {}}"),
        "spec.model.cache: given: only with source.huggingFace or source.url, which are fetched",
    );
    const ONE_CACHE: &str = "exactly one of hostPath, persistentVolumeClaim, emptyDir";
    refused(&hub("{}"), &format!("spec.model.cache: 0 fields: {ONE_CACHE}"));
    refused(&hub("{emptyDir: {}, hostPath: {path: /c}}"), &format!("spec.model.cache: 2 fields: {ONE_CACHE}"));
    refused(&hub("{hostPath: {path: c/../d}}"), "spec.model.cache.hostPath.path: c/../d: an absolute path without '..'");
    assert!(check(&hub("{emptyDir: {sizeLimit: 1Ti}}")).is_ok());
    assert!(!errors(&hub("{emptyDir: {sizeLimit: much}}")).is_empty());
}

#[test]
fn what_is_fetched_runs_in_a_cluster_if_http_brings_it() {
    let with = |source: &str| check(&changed("{hostPath: {path: /models/m1}}", source).replace("tensor: 8", "tensor: 1")).unwrap();
    for source in ["{huggingFace: {repo: a/b}}", "{url: {url: 'https://files.test/m1'}}"] {
        let checked = with(source);
        assert_eq!(runnable(&checked, Runtime::Cluster), Ok(()), "{source}");
        assert!(runnable(&checked, Runtime::Local).is_err(), "{source}");
    }
    let errors = runnable(&with("{url: {url: 's3://bucket/m1'}}"), Runtime::Cluster).unwrap_err();
    let expected = "spec.model.source.url.url: s3://bucket/m1: not implemented by the operator yet; it runs https:// and http://: \
                    give the bucket's https:// address, or another source";
    assert_eq!((errors.len(), errors[0].to_string().as_str(), errors[0].reason()), (1, expected, "NotImplemented"));
}

#[test]
fn a_relative_host_path_is_resolved_by_load_and_refused_by_validate() {
    let yaml = changed("/models/m1", "../../demo/m1-demo");
    assert_eq!(check(&yaml).unwrap().source, Source::HostPath { path: "/repo/demo/m1-demo".into() });
    let mut deployment = load(&yaml, std::path::Path::new("/repo/manifests/examples")).unwrap();
    deployment.spec.model.source.host_path.as_mut().unwrap().path = "demo".into();
    let errors = validate(&deployment).unwrap_err();
    assert_eq!(errors[0].to_string(), "spec.model.source.hostPath.path: demo: an absolute path without '..'");
}

#[test]
fn ranges_words_and_types() {
    refused(&changed("expert: 2", "expert: 0"), "spec.parallelism.expert: 0: must be 1 to 256");
    refused(&changed("expert: 2", "expert: -1"), "spec.parallelism.expert: -1: must be 1 to 256");
    refused(&changed("expert: 2", "expert: 1.5"), "spec.parallelism.expert: 1.5: must be an integer");
    refused(&changed("expert: 2", "expert: two"), "spec.parallelism.expert: \"two\": must be an integer");
    refused(
        &changed("  model:\n", "  model:\n    dtype: Half\n"),
        "spec.model.dtype: Half: must be one of Auto, BFloat16, Float32",
    );
    refused(&changed("  model:\n", "  model:\n    maxContextTokens: 0\n"), "spec.model.maxContextTokens: 0: must be 1 to 10240000");
    refused(&changed("80G", "80GB"), &format!("spec.worker.memoryPerGpu: 80GB: {QUANTITY}"));
    refused(&changed("80G", "0.5"), "spec.worker.memoryPerGpu: 0.5: whole bytes, such as 80G; or 0 for CPUs");
    refused(&changed("80G", "2P"), "spec.worker.memoryPerGpu: 2P: at most 1P");
    refused(&added("router: {limits: {maxBody: '0'}}"), "spec.router.limits.maxBody: 0: 1Ki to 1P");
    refused(
        &added("router: {image: 'not an image'}"),
        "spec.router.image: not an image: an image reference has no spaces and only ASCII characters",
    );
    refused(&changed("80G", "[80]"), "spec.worker.memoryPerGpu: a list: must be a number or a string");
    refused(&added("replicas: 257"), "spec.replicas: 257: must be 0 to 256");
    refused(&added("rollout: {paused: yes}"), "spec.rollout.paused: \"yes\": must be a boolean");
    refused(&added("experts: {loss: {maxMissingWeight: 1.5}}"), "spec.experts.loss.maxMissingWeight: 1.5: must be 0 to 1");
}

const QUANTITY: &str = "a number with one of the suffixes m, k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or none, such as 80G or 80Gi";

#[test]
fn rules_between_fields() {
    refused(
        &added("experts: {copies: 3}"),
        "spec.experts.copies: 3: copies of one expert lie on different pods: at most parallelism.expert, 2",
    );
    refused(&added("experts: {rebalance: {interval: 5s}}"), "spec.experts.rebalance.interval: 5s: at least 10s");
    refused(
        &added("experts: {rebalance: {interval: 5 m}}"),
        "spec.experts.rebalance.interval: 5 m: numbers with the units ms, s, m, h, such as 30s, 5m or 1h30m",
    );
    refused(&added("autoscaling: {minReplicas: 3, maxReplicas: 2}"), "spec.autoscaling.minReplicas: 3: at most maxReplicas, 2");
    refused(
        &added("rollout: {maxUnavailable: 0}"),
        "spec.rollout: maxUnavailable 0 and maxSurge 0: one of maxUnavailable and maxSurge must be more than 0",
    );
    refused(&added("router: {auth: {mode: ApiKeys}}"), "spec.router.auth.secretRef: required with mode ApiKeys");
    refused(&added("tls: {mode: CertManager}"), "spec.tls.issuerRef: required with mode CertManager");
    refused(&added("router: {resources: {limits: {cpu: two}}}"), &format!("spec.router.resources.limits.cpu: two: {QUANTITY}"));
}

#[test]
fn every_error_is_found_at_once() {
    let yaml = changed("tensor: 8, expert: 2", "tensor: 0, expert: 0, pods: 2").replace("80G", "[]");
    assert_eq!(errors(&yaml).len(), 4);
    let yaml = added("experts: {copies: 3}\nrollout: {maxUnavailable: 0}").replace("name: m1", "name: 1m");
    assert_eq!(errors(&yaml).len(), 3);
}

#[test]
fn texts_that_are_no_manifest() {
    assert!(errors("a: [").first().unwrap().starts_with("no single YAML object: "));
    assert!(errors(&format!("{GOOD}---{GOOD}")).first().unwrap().starts_with("no single YAML object: "));
    assert_eq!(errors("- a\n"), ["a MiniMaxM1Deployment is an object with apiVersion, kind, metadata and spec"]);
    assert_eq!(errors("").len(), 1);
}

#[test]
fn a_bare_off_is_a_word() {
    assert!(check(&added("autoscaling: {mode: Off}")).is_ok());
    assert!(check(&added("autoscaling: {mode: 'Off'}")).is_ok());
}

#[test]
fn what_kubectl_prints_can_be_read_again() {
    let yaml =
        format!("{}status: {{replicas: 1}}\n", changed("{name: m1}", "{name: m1, uid: x, generation: 3, managedFields: []}"));
    assert_eq!(errors(&yaml), [""; 0]);
}

/// The fields that the local runtime refuses in this manifest.
fn not_run(yaml: &str) -> Vec<String> {
    let errors = runnable(&check(yaml).unwrap(), Runtime::Local).err().unwrap_or_default();
    assert!(errors.iter().all(|error| error.reason() == "NotImplemented"));
    errors.into_iter().map(|error| error.path).collect()
}

/// A manifest that runs locally, with lines added under `spec`.
fn local(lines: &str) -> String {
    let base = changed("  parallelism: {tensor: 8, expert: 2}\n  worker: {memoryPerGpu: 80G}\n", "  parallelism: {expert: 2}\n");
    format!("{base}  {lines}\n")
}

#[test]
fn the_local_runtime_refuses_what_it_does_not_run() {
    assert_eq!(not_run(&local("replicas: 1")), [""; 0]);
    assert_eq!(not_run(GOOD), ["spec.parallelism.tensor", "spec.worker.memoryPerGpu"]);
    for (lines, field) in [
        ("replicas: 2", "spec.replicas"),
        ("experts: {copies: 2}", "spec.experts.copies"),
        ("experts: {redundantSlotsPerPod: 1}", "spec.experts.redundantSlotsPerPod"),
        ("experts: {rebalance: {mode: Auto}}", "spec.experts.rebalance.mode"),
        ("experts: {loss: {policy: Renormalize}}", "spec.experts.loss.policy"),
        ("experts: {loss: {waitSeconds: 5}}", "spec.experts.loss.waitSeconds"),
        ("router: {replicas: 2}", "spec.router.replicas"),
        ("router: {auth: {mode: ApiKeys, secretRef: {name: keys}}}", "spec.router.auth.mode"),
        ("router: {queue: {maxRequests: 1}}", "spec.router.queue.maxRequests"),
        ("autoscaling: {mode: Internal}", "spec.autoscaling.mode"),
        ("tls: {mode: Managed}", "spec.tls.mode"),
        ("rollout: {paused: true}", "spec.rollout.paused"),
    ] {
        assert_eq!(not_run(&local(lines)), [field]);
    }
    let model = |line: &str| local("replicas: 1").replace("  model:\n", &format!("  model:\n    {line}\n"));
    assert_eq!(not_run(&model("dtype: BFloat16")), ["spec.model.dtype"]);
    assert_eq!(not_run(&model("dtype: Float32")), [""; 0]);
    assert_eq!(not_run(&model("expertQuantization: Int8")), ["spec.model.expertQuantization"]);
    let image = local("replicas: 1").replace("hostPath: {path: /models/m1}", "image: {reference: r/m1}");
    assert_eq!(not_run(&image), ["spec.model.source.image"]);
}

#[test]
fn fields_for_a_cluster_are_listed_not_refused() {
    let checked = check(&local("scheduling: {priorityClassName: high}")).unwrap();
    assert!(runnable(&checked, Runtime::Local).is_ok());
    assert_eq!(unused(&checked, Runtime::Local), ["spec.scheduling"]);
    assert_eq!(unused(&check(&local("replicas: 1")).unwrap(), Runtime::Local), [""; 0]);
}

/// What the CEL rules of the CRD say, anywhere in it; of a transition nothing can be known offline.
fn rules(schema: &serde_json::Value, found: &mut Vec<String>) {
    if schema["rule"].as_str().is_some_and(|rule| !rule.contains("oldSelf")) {
        found.push(schema["message"].as_str().unwrap().to_owned());
    }
    let fields = schema.as_object().into_iter().flat_map(serde_json::Map::values);
    fields.chain(schema.as_array().into_iter().flatten()).for_each(|below| rules(below, found));
}

#[test]
fn every_rule_of_the_crd_holds_offline_in_its_words() {
    let source = |source: &str| changed("{hostPath: {path: /models/m1}}", source);
    let cache = |cache: &str| source(&format!("{{huggingFace: {{repo: a/b}}}}\n    cache: {cache}"));
    let broken = [
        changed("name: m1", &format!("name: {}", "a".repeat(41))),
        changed("name: m1", "name: M1"),
        source("{}"),
        source("{hostPath: {path: m1}}"),
        source("{persistentVolumeClaim: {claimName: c, path: /m1}}"),
        source("{hostPath: {path: /m1}}\n    cache: {emptyDir: {}}"),
        cache("{}"),
        cache("{hostPath: {path: c}}"),
        added("experts: {copies: 3}"),
        added("experts: {rebalance: {interval: 9s}}"),
        added("autoscaling: {minReplicas: 3, maxReplicas: 2}"),
        added("rollout: {maxUnavailable: 0, maxSurge: 0}"),
        added("router: {auth: {mode: ApiKeys}}"),
        added("tls: {mode: CertManager}"),
    ];
    let said: Vec<String> = broken.iter().map(|yaml| errors(yaml).join("\n")).collect();
    let mut messages = Vec::new();
    rules(&m1_operator_api::crd_files()[0].object, &mut messages);
    assert!(messages.len() >= broken.len(), "{messages:#?}");
    for message in messages {
        let (field, words) = message.split_once(": ").unwrap();
        let is_same = |error: &String| error.lines().any(|line| line.contains(field) && line.contains(words));
        assert!(said.iter().any(is_same), "{message}: nothing of {said:#?}");
    }
}
