//! A generated model of MiniMax-M1's true geometry, 80 layers x 32 experts, gives the same tokens on 1, 2 and 4 workers: those
//! of the independent reference in `geometry/make_geometry.py`. Needs numpy; `scripts/test-e2e.sh` makes the model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use m1_tests::{m1ctl, root};
use safetensors::SafeTensors;

fn model() -> PathBuf {
    root().join("target/geometry")
}

fn tokens(workers: &str) -> BTreeMap<String, Vec<i64>> {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.safetensors");
    let (model, prompts) = (model(), model().join("prompts.json"));
    let line = ["forward", "--decode", "12", "--expert", workers];
    let paths = ["--model", model.to_str().unwrap(), "--tokens", prompts.to_str().unwrap(), "--output", out.to_str().unwrap()];
    let (ok, _, stderr) = m1ctl(&[&line[..], &paths[..]].concat());
    assert!(ok, "{stderr}");
    let bytes = std::fs::read(&out).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let named = tensors.tensors().into_iter().filter_map(|(name, tensor)| {
        let name = name.strip_suffix(".decode_tokens")?.to_owned();
        Some((name, tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()))
    });
    named.collect()
}

#[test]
fn one_two_and_four_workers_say_the_same() {
    let expected = model().join("expected.json");
    let text = std::fs::read_to_string(&expected).unwrap_or_else(|e| panic!("{}: {e}: run `make test`", expected.display()));
    let expected: BTreeMap<String, Vec<i64>> = serde_json::from_str(&text).unwrap();
    for workers in ["1", "2", "4"] {
        assert_eq!(tokens(workers), expected, "{workers} workers");
    }
}
