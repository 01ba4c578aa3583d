//! The shapes and numbers of the design: what fits 8 x 80 GB, what a loss costs, what is refused and what is offered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{GOOD, added, changed, check, m1, planned};
use m1_arch::{Architecture, Bytes};
use m1_operator_plan::{Device, Environment, Link, Plan, plan};

/// Weights of the fullest GPU.
fn weights(plan: &Plan) -> String {
    let pods = plan.groups.iter().flat_map(|group| &group.pods);
    pods.map(|pod| pod.bytes.per_device.weights()).max().unwrap().to_string()
}

#[test]
fn two_pods_in_bf16_is_the_smallest_shape() {
    let plan = planned(GOOD).unwrap();
    let pod = &plan.groups[0].pods[1];
    assert_eq!(weights(&plan), "59.7 GB");
    assert_eq!(pod.bytes.per_device.experts.to_string(), "54.4 GB");
    assert_eq!((pod.name.as_str(), pod.gpus, pod.holds.len()), ("m1-0-1", 8, 1280));
    assert!(!plan.survives_pod_loss.survives);
    assert_eq!(
        plan.survives_pod_loss.words,
        "no: every expert is held once; a lost pod is a reload of 434.9 GB of experts; until then the deployment does not serve"
    );
}

#[test]
fn four_pods_with_two_copies_cost_the_same_and_survive() {
    for placement in ["Linear", "Balanced"] {
        let yaml = format!("{}  experts: {{copies: 2, placement: {placement}}}\n", changed("expert: 2", "expert: 4"));
        let plan = planned(&yaml).unwrap();
        assert_eq!(weights(&plan), "59.7 GB");
        assert!(plan.survives_pod_loss.survives);
        assert!(plan.survives_pod_loss.words.starts_with("yes: every expert is held by 2 pods"));
    }
}

#[test]
fn one_pod_in_bf16_is_refused_with_the_numbers_and_what_would_fit() {
    let error = planned(&changed("expert: 2", "expert: 1")).unwrap_err();
    assert_eq!(error.reason(), "InsufficientMemory");
    assert_eq!(
        error.to_string(),
        "spec.worker.memoryPerGpu: 80.0 GB per GPU is too little by 47.2 GB: 114.1 GB of weights (experts 108.7 GB, attention 5.4 GB), \
         KV for 1000000 tokens 5.1 GB, one state slot 36.7 MB, reserve 8.0 GB; what would fit: spec.model.expertQuantization: Int8 \
         (59.8 GB of weights per GPU), or spec.parallelism.expert: 2 (59.7 GB of weights per GPU), or spec.parallelism.tensor: 16 \
         (57.1 GB of weights per GPU)"
    );
}

#[test]
fn what_is_offered_fits() {
    let one = changed("expert: 2", "expert: 1");
    assert!(planned(&one.replace("  model:\n", "  model:\n    expertQuantization: Int8\n")).is_ok());
    assert!(planned(&one.replace("tensor: 8", "tensor: 16")).is_ok());
}

#[test]
fn places_for_hot_experts_cost_memory() {
    let without = planned(GOOD).unwrap().groups[0].pods[0].bytes.per_device;
    let with = planned(&added("experts: {redundantSlotsPerPod: 16}")).unwrap().groups[0].pods[0].bytes.per_device;
    assert_eq!(with.experts.saturating_sub(without.experts), Bytes(16 * 339_738_624 / 8));
}

#[test]
fn pods_the_experts_cannot_be_spread_over_are_refused() {
    assert_eq!(
        planned(&changed("expert: 2", "expert: 33")).unwrap_err().to_string(),
        "spec.parallelism.expert: 33: the model has 32 experts per layer, and every pod needs at least one: at most 32"
    );
    let plan = planned(&changed("expert: 2", "expert: 3")).unwrap();
    let held: Vec<usize> = plan.groups[0].pods.iter().map(|pod| pod.holds.len() / 80).collect();
    assert_eq!(held, [11, 11, 10]);
}

#[test]
fn gpus_and_windows_the_model_does_not_allow_are_refused() {
    let error = planned(&changed("tensor: 8", "tensor: 3")).unwrap_err();
    assert_eq!((error.reason(), error.to_string().split(": ").next()), ("Unsplittable", Some("spec.parallelism.tensor")));
    let short = Environment::new(Architecture { max_positions: 4096, ..Architecture::minimax_m1() });
    let error = plan(&check(GOOD).unwrap(), &short).unwrap_err();
    assert_eq!(error.to_string(), "spec.model.maxContextTokens: 1000000: the model has 4096 positions: at most 4096");
}

/// Two pods without GPUs.
fn on_cpu() -> String {
    changed("  worker: {memoryPerGpu: 80G}\n", "").replace("tensor: 8", "tensor: 1")
}

#[test]
fn the_manifest_speaks_before_the_node_label() {
    let small = Environment { memory_per_gpu: Some(Bytes(40_000_000_000)), ..m1() };
    assert!(plan(&check(GOOD).unwrap(), &small).is_ok());
    let silent = check(&changed("  worker: {memoryPerGpu: 80G}\n", "")).unwrap();
    assert_eq!(plan(&silent, &small).unwrap_err().reason(), "InsufficientMemory");
    let cpu = plan(&check(&on_cpu()).unwrap(), &m1()).unwrap();
    assert_eq!((cpu.device, cpu.groups[0].pods[0].gpus, cpu.model.dtype.as_str()), (Device::Cpu, 0, "fp32"));
}

#[test]
fn a_window_always_fits_the_cache() {
    for yaml in [GOOD.to_owned(), on_cpu()] {
        for pod in &planned(&yaml).unwrap().groups[0].pods {
            assert!(pod.args.kv_tokens >= 1_000_000 && pod.args.slots >= 1);
        }
    }
}

#[test]
fn memory_is_divided_without_remainder() {
    let bytes = planned(GOOD).unwrap().groups[0].pods[0].bytes.per_device;
    assert_eq!(bytes.weights() + bytes.kv + bytes.state + bytes.reserve + bytes.free, bytes.memory.unwrap());
}

#[test]
fn the_time_per_token_comes_from_the_measured_link() {
    let link = Link { round_trip: Duration::from_micros(300), bandwidth: Bytes(10_000_000_000) };
    let measured = Environment { link: Some(link), ..m1() };
    let predicted = plan(&check(GOOD).unwrap(), &measured).unwrap().predicted.unwrap();
    assert!((predicted.ms_per_token - 24.3).abs() < 0.01, "{}", predicted.ms_per_token);
    assert!(predicted.from.starts_with("80 layers x (0.300 ms round trip"));
}

#[test]
fn planning_twice_gives_equal_plans() {
    let (first, second) = (planned(GOOD).unwrap(), planned(GOOD).unwrap());
    assert_eq!(first, second);
    assert_eq!(serde_json::to_string(&first).unwrap(), serde_json::to_string(&second).unwrap());
}

#[test]
fn every_group_is_a_full_copy() {
    let plan = planned(&added("replicas: 3")).unwrap();
    assert_eq!(plan.groups.len(), 3);
    assert_eq!(plan.router.workers, ["m1-0-0", "m1-0-1", "m1-1-0", "m1-1-1", "m1-2-0", "m1-2-1"]);
    for group in &plan.groups {
        assert!(group.pods[0].holds.union(&group.pods[1].holds).is_full());
    }
    assert!(planned(&added("replicas: 0")).unwrap().groups.is_empty());
}

#[test]
fn gpus_of_unknown_memory_are_not_planned_as_a_cpu() {
    let error = planned(&changed("  worker: {memoryPerGpu: 80G}\n", "")).unwrap_err();
    assert!(error.to_string().starts_with("spec.worker.memoryPerGpu: not given: parallelism.tensor: 8 asks for 8 GPUs"), "{error}");
}

#[test]
fn a_cpu_pod_that_exceeds_its_limit_is_refused_with_the_numbers() {
    let one = |limit: &str| {
        let spec = changed("tensor: 8, expert: 2", "expert: 32");
        planned(&spec.replace("memoryPerGpu: 80G", &format!("resources: {{limits: {{memory: {limit}}}}}")))
    };
    let error = one("1Gi").unwrap_err();
    assert_eq!(error.reason(), "InsufficientMemory");
    assert!(error.to_string().starts_with("spec.worker.resources.limits.memory: 1.1 GB per pod is too little by "), "{error}");
    assert!(one("1Ti").is_ok());
}
