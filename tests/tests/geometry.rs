//! A generated model of MiniMax-M1's true geometry, 80 layers x 32 experts, gives the same tokens on 1, 2 and 4 workers: those
//! of the independent reference in `geometry/make_geometry.py`. Needs numpy; `scripts/test-e2e.sh` makes the model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use m1_tests::root;
use m1_tests::tensors::forward;

fn model() -> PathBuf {
    root().join("target/generated/geometry")
}

fn tokens(workers: &str, prompts: &[String]) -> BTreeMap<String, Vec<i64>> {
    let got = forward(&model(), &["--decode", "12", "--expert", workers]);
    prompts.iter().map(|prompt| (prompt.clone(), got.integers(&format!("{prompt}.decode_tokens")))).collect()
}

#[test]
fn one_two_and_four_workers_say_the_same() {
    let expected = model().join("expected.json");
    let text = std::fs::read_to_string(&expected).unwrap_or_else(|e| panic!("{}: {e}: run `make test`", expected.display()));
    let expected: BTreeMap<String, Vec<i64>> = serde_json::from_str(&text).unwrap();
    let prompts: Vec<String> = expected.keys().cloned().collect();
    for workers in ["1", "2", "4"] {
        assert_eq!(tokens(workers, &prompts), expected, "{workers} workers");
    }
}
