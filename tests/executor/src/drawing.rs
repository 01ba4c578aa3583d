//! Ids are drawn by the executor, from the rows that they are asked of.

use std::sync::Arc;

use m1_engine::{AllowedIds, Draw, Executor, Sampling, SlotId};
use m1_weights::Checkpoint;

use crate::{Suite, Turn, argmax, prompts};

impl<E: Executor<Weights = Arc<Checkpoint>>> Suite<E> {
    pub fn ids_are_drawn_from_their_rows(&self) {
        let mut rig = self.whole("B");
        let turn =
            |slot, length: usize| Turn { slot: SlotId(slot), position: 0, ids: prompts("B")[&length].clone(), prompt: length };
        let turns = [turn(0, 7), turn(1, 1)];
        let wanted = rig.step(None, &turns).unwrap().logits;
        let vocab = rig.arch.vocab as u32;
        let best = argmax(&wanted[6]);
        let draw = |row| Draw {
            row,
            position: row + 1,
            sampling: Sampling::GREEDY,
            allowed: Arc::new(AllowedIds::all(vocab)),
            bias: Vec::new(),
            forced: None,
            logprobs: 3,
        };
        let mut batch = rig.pack(&turns);
        let masked = Arc::new(AllowedIds::from_ids(vocab, (0..vocab).filter(|id| *id != best)));
        batch.draws = vec![
            Draw { bias: vec![(9, 1e3)], ..draw(2) },
            Draw { forced: Some(11), ..draw(3) },
            draw(6),
            Draw { allowed: masked, logprobs: 0, ..draw(6) },
            draw(7),
        ];
        batch.logit_rows = vec![3];
        let outcome = rig.run(None, batch).unwrap();
        self.assert_same(&outcome.logits, &wanted[3..4], "the one whole row");
        let ids: Vec<u32> = outcome.drawn.iter().map(|drawn| drawn.id.unwrap()).collect();
        assert_eq!((ids[0], ids[1], ids[2], ids[4]), (9, 11, best, argmax(&wanted[7])));
        assert_ne!(ids[3], best);
        let logprobs = outcome.drawn[2].logprobs.as_ref().unwrap();
        assert_eq!((logprobs.top.len(), logprobs.top[0]), (2, (best, logprobs.logprob)));
        assert!(outcome.drawn[3].logprobs.is_none());
    }
}
