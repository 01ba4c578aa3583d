//! The example manifests are valid, and their plans are the texts under tests/goldens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{check, m1};
use m1_arch::{Architecture, AttentionKind, Bytes};
use m1_operator_plan::{Environment, Link, Runtime, plan, runnable};

const REGENERATE: &str = "UPDATE_GOLDENS=1 cargo test -p m1-operator-plan --test goldens";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn example(name: &str) -> String {
    fs::read_to_string(repository().join("manifests/examples").join(format!("{name}.yaml"))).unwrap()
}

/// The plan of an example under a link of 0.3 ms and 10 GB/s is its golden.
#[track_caller]
fn golden(name: &str, environment: Environment) {
    let link = Some(Link { round_trip: Duration::from_micros(300), bandwidth: Bytes(10_000_000_000) });
    let text = plan(&check(&example(name)).unwrap(), &Environment { link, ..environment }).unwrap().to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "the plan of {name} changed; if it should: {REGENERATE}");
}

/// The demo model: 8 layers, 32 experts, tiny.
fn demo() -> Environment {
    let mut layers = vec![AttentionKind::Lightning; 8];
    layers[7] = AttentionKind::Softmax;
    Environment::new(Architecture {
        layers,
        hidden: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        expert_hidden: 64,
        vocab: 2112,
        rotary_dim: 16,
        ..Architecture::minimax_m1()
    })
}

#[test]
fn demo_runs_locally() {
    golden("demo", demo());
    assert!(runnable(&check(&example("demo")).unwrap(), Runtime::Local).is_ok());
}

#[test]
fn h800_two_pods() {
    golden("h800-two-pods", m1());
}

#[test]
fn h800_int8_one_pod() {
    golden("h800-int8-one-pod", m1());
}

#[test]
fn h800_four_pods_two_copies() {
    golden("h800-four-pods-two-copies", m1());
}

#[test]
fn demo_in_a_cluster() {
    for name in ["demo-cluster", "demo-image"] {
        let checked = check(&example(name)).unwrap();
        let config = serde_json::Value::Object(checked.config.clone().unwrap());
        let described = Environment::new(Architecture::from_value(&config).unwrap());
        assert!(runnable(&checked, Runtime::Cluster).is_ok());
        golden(name, described);
    }
}

#[test]
fn scale_to_zero() {
    golden("scale-to-zero", m1());
}

#[test]
fn every_example_has_a_golden() {
    for entry in fs::read_dir(repository().join("manifests/examples")).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{name}.txt"));
        assert!(golden.exists(), "{name} has no golden: add a test above, then {REGENERATE}");
    }
}
