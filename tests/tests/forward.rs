//! `m1ctl forward` against the golden logits of two small checkpoints: every length, one-shot and in chunks, on 1, 2 and 4
//! worker processes. fp32, 1e-4 at most, every argmax and decode token equal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use std::path::PathBuf;

use m1_tests::root;
use m1_tests::tensors::{Tensors, forward, near};

const LENGTHS: [usize; 6] = [1, 7, 255, 256, 257, 700];

fn argmax(row: &[f32]) -> i64 {
    let best = row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    best as i64
}

fn testdata() -> PathBuf {
    root().join("model/testdata")
}

fn compare(set: &str, extra: &[&str]) {
    let golden = Tensors::read(&testdata().join(format!("golden-{set}-partial-fp32.safetensors")));
    let got = forward(&testdata().join(format!("tiny-{set}")), &[extra, &["--decode", "16"]].concat());
    for n in LENGTHS {
        let what = format!("{set} {extra:?} length {n}");
        let (shape, logits) = got.floats(&format!("{n}.logits"));
        let vocab = shape[1];
        assert_eq!(shape[0], n, "{what}");
        let (_, expected) = golden.floats(&format!("p{n}.logits"));
        for (row, position) in golden.integers(&format!("p{n}.positions")).into_iter().enumerate() {
            let at = position as usize * vocab;
            near(&logits[at..at + vocab], &expected[row * vocab..][..vocab], &what);
        }
        let winners: Vec<i64> = logits.chunks_exact(vocab).map(argmax).collect();
        assert_eq!(winners, golden.integers(&format!("p{n}.argmax")), "{what}: argmax");
        assert_eq!(
            got.integers(&format!("{n}.decode_tokens")),
            golden.integers(&format!("p{n}.decode_tokens")),
            "{what}: decode tokens"
        );
        near(&got.floats(&format!("{n}.decode_logits")).1, &golden.floats(&format!("p{n}.decode_logits")).1, &what);
    }
}

#[test]
fn tiny_a_on_one_worker() {
    compare("A", &["--expert", "1"]);
}

#[test]
fn tiny_a_on_two_workers_in_chunks() {
    compare("A", &["--expert", "2", "--chunk", "100"]);
}

#[test]
fn tiny_a_on_four_workers() {
    compare("A", &["--expert", "4"]);
    compare("A", &["--expert", "1", "--chunk", "100"]);
}

#[test]
fn tiny_b_on_one_worker_in_chunks() {
    compare("B", &["--expert", "1", "--chunk", "100"]);
    compare("B", &["--expert", "1"]);
}

#[test]
fn tiny_b_on_two_workers() {
    compare("B", &["--expert", "2"]);
    compare("B", &["--expert", "2", "--chunk", "100"]);
}

#[test]
fn tiny_b_on_four_workers_in_chunks() {
    compare("B", &["--expert", "4", "--chunk", "100"]);
    compare("A", &["--expert", "4", "--chunk", "100"]);
}
