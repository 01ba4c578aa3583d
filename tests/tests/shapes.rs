//! `m1ctl forward` on checkpoints of unusual shapes against the independent reference in `geometry/make_shapes.py`: 1e-4 at
//! most, decode tokens equal, on one and three worker processes, one-shot and in chunks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use m1_tests::root;
use m1_tests::tensors::{Tensors, forward, near};

fn compare(shape: &str) {
    let folder = root().join("target/generated/shapes");
    let expected = Tensors::read(&folder.join(format!("{shape}.expected")));
    for extra in [&["--expert", "1", "--chunk", "37"], &["--expert", "3", "--chunk", "512"]] {
        let got = forward(&folder.join(shape), &[&extra[..], &["--decode", "5"]].concat());
        for length in [1, 2, 65, 130] {
            let what = format!("{shape} {extra:?} length {length}");
            for part in ["logits", "decode_logits"] {
                let name = format!("n{length}.{part}");
                let ((shape, values), wanted) = (got.floats(&name), expected.floats(&name));
                assert_eq!(shape, wanted.0, "{what}");
                near(&values, &wanted.1, &what);
            }
            let name = format!("n{length}.decode_tokens");
            assert_eq!(got.integers(&name), expected.integers(&name), "{what}");
        }
    }
}

#[test]
fn head_counts_that_are_no_power_of_two() {
    compare("odd-heads");
}

#[test]
fn softmax_layers_only_with_one_kv_head_and_full_rotation() {
    compare("softmax-only");
}

#[test]
fn no_post_norm_and_three_experts_a_token() {
    compare("no-postnorm");
}

#[test]
fn a_single_layer() {
    compare("one-layer");
}
