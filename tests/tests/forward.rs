//! `m1ctl forward` against the golden logits of two small checkpoints: every length, one-shot and in chunks, on 1, 2 and 4
//! worker processes. fp32, 1e-4 at most, every argmax and decode token equal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use std::path::{Path, PathBuf};

use m1_tests::{m1ctl, root};
use safetensors::SafeTensors;

const TOLERANCE: f32 = 1e-4;
const DECODE: usize = 16;
const LENGTHS: [usize; 6] = [1, 7, 255, 256, 257, 700];

struct File(Vec<u8>);

impl File {
    fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (tensor.shape().to_vec(), values)
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        match tensor.dtype() {
            safetensors::Dtype::I64 => tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
            safetensors::Dtype::I32 => {
                tensor.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()).into()).collect()
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn argmax(row: &[f32]) -> i64 {
    let best = row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    best as i64
}

fn testdata() -> PathBuf {
    root().join("model/testdata")
}

fn forward(set: &str, extra: &[&str]) -> File {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.safetensors");
    let model = testdata().join(format!("tiny-{set}"));
    let tokens = model.join("prompts.json");
    let decode = DECODE.to_string();
    let mut line = vec!["forward", "--model", model.to_str().unwrap(), "--tokens", tokens.to_str().unwrap()];
    line.extend(["--output", out.to_str().unwrap(), "--decode", &decode]);
    line.extend(extra);
    let (ok, _, stderr) = m1ctl(&line);
    assert!(ok, "{line:?}:\n{stderr}");
    File::read(&out)
}

fn compare(set: &str, extra: &[&str]) {
    let golden = File::read(&testdata().join(format!("golden-{set}-partial-fp32.safetensors")));
    let got = forward(set, extra);
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

fn near(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "{what}: logits differ by {worst}");
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
