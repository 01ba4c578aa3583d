//! Sequences that are taken out, put in elsewhere, and doubled.

use std::sync::Arc;

use bytes::Bytes;
use m1_engine::{Command, Completion, Executor, ExecutorError, Move, SequenceState, SlotId};
use m1_weights::Checkpoint;

use crate::{Rig, Suite, Turn, prompts};

const PROMPT: usize = 255;

fn part(slot: u32, from: usize, to: usize) -> Turn {
    Turn { slot: SlotId(slot), position: from, ids: prompts("A")[&PROMPT][from..to].to_vec(), prompt: PROMPT }
}

fn said(slot: u32, position: usize, id: u32) -> Turn {
    Turn { slot: SlotId(slot), position, ids: vec![id], prompt: PROMPT }
}

fn export<E: Executor<Weights = Arc<Checkpoint>>>(rig: &mut Rig<E>, slot: SlotId) -> SequenceState {
    rig.executor.submit(Command::Move(Move::Export { slot }));
    match rig.completion() {
        Completion::Exported { slot: of, state } if of == slot => state.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn imported<E: Executor<Weights = Arc<Checkpoint>>>(rig: &mut Rig<E>, slot: SlotId) -> Result<(), ExecutorError> {
    match rig.completion() {
        Completion::Imported { slot: of, result } if of == slot => result,
        other => panic!("{other:?}"),
    }
}

impl<E: Executor<Weights = Arc<Checkpoint>>> Suite<E> {
    /// Takes blocks for a state, and puts it in.
    fn import(&self, rig: &mut Rig<E>, slot: SlotId, state: SequenceState) -> Result<(), ExecutorError> {
        rig.close(slot);
        let blocks: Vec<u32> = (0..(state.tokens as usize).div_ceil(64)).map(|_| rig.take_block()).collect();
        rig.blocks[slot.0 as usize] = blocks.clone();
        rig.executor.submit(Command::Move(Move::Import { slot, blocks, state }));
        imported(rig, slot)
    }

    /// In the middle of a block, at its end, and within what was said; into another slot and another executor.
    pub fn a_sequence_goes_on_where_it_was_exported(&self) {
        let (mut rig, mut other) = (self.whole("A"), self.whole("A"));
        let whole = self.together(&mut rig, &[part(0, 0, PROMPT)]).remove(0);
        let next = self.together(&mut rig, &[said(0, PROMPT, 9)]).remove(0);
        for cut in [64, 100, 192, PROMPT] {
            self.together(&mut rig, &[part(1, 0, cut)]);
            let state = export(&mut rig, SlotId(1));
            assert_eq!(state.tokens, cut as u64);
            // What it was taken from may be anything afterwards.
            self.together(&mut rig, &[part(1, 0, 7)]);
            self.together(&mut other, &[part(6, 0, 9)]);
            self.import(&mut rig, SlotId(3), state.clone()).unwrap();
            self.import(&mut other, SlotId(6), state).unwrap();
            for (rig, slot) in [(&mut rig, 3), (&mut other, 6)] {
                if cut < PROMPT {
                    let rest = self.together(rig, &[part(slot, cut, PROMPT)]).remove(0);
                    if cut % 64 == 0 {
                        self.assert_same(&rest, &whole[cut..], "the rest of the prompt");
                    }
                }
                let again = self.together(rig, &[said(slot, PROMPT, 9)]).remove(0);
                if cut % 64 == 0 || cut == PROMPT {
                    self.assert_same(&again, &next, "what was said");
                }
            }
        }
    }

    pub fn a_fork_and_its_origin_go_their_own_ways(&self) {
        let mut rig = self.whole("A");
        let alone = |rig: &mut Rig<E>, id| {
            self.together(rig, &[part(0, 0, PROMPT)]);
            self.together(rig, &[said(0, PROMPT, id)]);
            self.together(rig, &[said(0, PROMPT + 1, 5)]).remove(0)
        };
        let wanted = [alone(&mut rig, 3), alone(&mut rig, 4)];
        self.together(&mut rig, &[part(1, 0, PROMPT)]);
        let last = rig.take_block();
        rig.executor.submit(Command::Move(Move::Fork { from: SlotId(1), to: SlotId(2), last: Some(last) }));
        imported(&mut rig, SlotId(2)).unwrap();
        let mut blocks = rig.blocks[1].clone();
        *blocks.last_mut().unwrap() = last;
        rig.blocks[2] = blocks;
        self.together(&mut rig, &[said(1, PROMPT, 3), said(2, PROMPT, 4)]);
        let ends = self.together(&mut rig, &[said(2, PROMPT + 1, 5), said(1, PROMPT + 1, 5)]);
        self.assert_same(&ends[1], &wanted[0], "the origin");
        self.assert_same(&ends[0], &wanted[1], "the fork");
        rig.executor.submit(Command::Move(Move::Fork { from: SlotId(1), to: SlotId(3), last: None }));
        assert_eq!(imported(&mut rig, SlotId(3)).unwrap_err().reason(), "InvalidArgument");
    }

    pub fn a_state_that_does_not_fit_is_refused(&self) {
        let mut rig = self.whole("A");
        self.together(&mut rig, &[part(0, 0, 65)]);
        let state = export(&mut rig, SlotId(0));
        let cut = SequenceState { bytes: state.bytes.slice(4..), ..state.clone() };
        let empty = SequenceState { bytes: Bytes::new(), ..state.clone() };
        let longer = SequenceState { tokens: 129, ..state.clone() };
        for wrong in [cut, empty, longer] {
            assert_eq!(self.import(&mut rig, SlotId(1), wrong).unwrap_err().reason(), "InvalidArgument");
        }
        rig.executor.submit(Command::Move(Move::Import { slot: SlotId(99), blocks: vec![1, 2], state: state.clone() }));
        assert_eq!(imported(&mut rig, SlotId(99)).unwrap_err().reason(), "UnknownSlot");
        rig.executor.submit(Command::Move(Move::Export { slot: SlotId(99) }));
        let Completion::Exported { state: Err(error), .. } = rig.completion() else { panic!("exported") };
        assert_eq!(error.reason(), "UnknownSlot");
        self.import(&mut rig, SlotId(1), state).unwrap();
    }
}
