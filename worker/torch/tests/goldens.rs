//! Logits and greedy tokens of two tiny models against the references' goldens, whole and with experts on a peer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{LENGTHS, TOLERANCE, all_experts, check, checkpoint, golden, load, prompts, whole};
use m1_arch::ExpertSet;

#[test]
fn every_length_in_one_piece_and_in_chunks() {
    for model in ["A", "B"] {
        let (mut executor, prompts) = (whole(model), prompts(model));
        for length in LENGTHS {
            let golden = golden(model, length);
            for chunk in [length, 100, 37] {
                let worst = check(&mut executor, None, &prompts[&length], &golden, chunk);
                println!("{model} {length} in {chunk}: {worst:e}");
                assert!(worst <= TOLERANCE, "{model} {length} in chunks of {chunk}: {worst:e}");
            }
        }
    }
}

#[test]
fn experts_on_a_peer_give_the_same() {
    for model in ["A", "B"] {
        let checkpoint = checkpoint(model);
        let arch = checkpoint.architecture();
        let first = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..arch.experts / 2);
        let mut own = load(&checkpoint, &first);
        let mut peer = load(&checkpoint, &all_experts(arch).difference(&first));
        for length in LENGTHS {
            let ids = &prompts(model)[&length];
            let worst = check(&mut own, Some(&mut peer), ids, &golden(model, length), 100);
            assert!(worst <= TOLERANCE, "{model} {length}: {worst:e}");
        }
    }
}
