//! Logits and greedy tokens of two tiny models against the references' goldens, whole and with experts on a peer.

use std::sync::Arc;

use m1_arch::ExpertSet;
use m1_engine::{Executor, SlotId};
use m1_weights::Checkpoint;

use crate::{LENGTHS, Suite, TOLERANCE, Turn, all_experts, checkpoint, golden, prompts};

impl<E: Executor<Weights = Arc<Checkpoint>>> Suite<E> {
    pub fn every_length_in_one_piece_and_in_chunks(&self) {
        for model in ["A", "B"] {
            let (mut executor, prompts) = (self.whole(model), prompts(model));
            for length in LENGTHS {
                let golden = golden(model, length);
                for chunk in [length, 100, 37] {
                    let worst = self.check(&mut executor, None, &prompts[&length], &golden, chunk);
                    println!("{model} {length} in {chunk}: {worst:e}");
                    assert!(worst <= TOLERANCE, "{model} {length} in chunks of {chunk}: {worst:e}");
                }
            }
        }
    }

    pub fn experts_on_a_peer_give_the_same(&self) {
        for model in ["A", "B"] {
            let checkpoint = checkpoint(model);
            let arch = checkpoint.architecture();
            let first = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..arch.experts / 2);
            let mut own = self.open(&checkpoint, &first);
            let mut peer = self.open(&checkpoint, &all_experts(arch).difference(&first));
            for length in LENGTHS {
                let ids = &prompts(model)[&length];
                let worst = self.check(&mut own, Some(&mut peer), ids, &golden(model, length), 100);
                assert!(worst <= TOLERANCE, "{model} {length}: {worst:e}");
            }
        }
    }

    pub fn who_holds_all_experts_is_asked_nothing(&self) {
        let checkpoint = checkpoint("B");
        let arch = checkpoint.architecture();
        let turn = Turn { slot: SlotId(0), position: 0, ids: prompts("B")[&7].clone(), prompt: 7 };
        assert_eq!(self.whole("B").step(None, std::slice::from_ref(&turn)).unwrap().asked, 0);
        // One layer is held whole: there it asks nothing either.
        let mut held = ExpertSet::from_range(arch.layers.len(), arch.experts, 0..1);
        let rest = all_experts(arch).difference(&held);
        rest.iter().filter(|(layer, _)| layer.0 == 1).for_each(|(layer, expert)| assert!(held.insert(layer, expert)));
        let mut peer = self.open(&checkpoint, &rest);
        let outcome = self.open(&checkpoint, &held).step(Some(&mut peer), &[turn]).unwrap();
        assert_eq!(outcome.asked, arch.layers.len() - 1);
    }
}
