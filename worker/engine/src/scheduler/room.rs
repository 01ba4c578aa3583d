//! Who is let in, who is set aside and comes back, and what is free again.

use super::{Priority, Scheduler, SequenceId, SequenceSpec, SequenceState, SlotId, Step};
use crate::executor::{ExecutorError, Move};
use crate::step::{Finish, SequenceEvent};

use super::sequence::{Busy, Sequence};

/// How many interactive sequences, or their prefill steps, go before a batch one that waits.
pub(super) const MOST_OVERTAKING: u32 = 4;

/// A sequence that was set aside.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) sequence: Sequence,
    /// None where it begins again from its ids.
    state: Option<SequenceState>,
}

impl Aside {
    fn bytes(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.bytes.len() as u64)
    }
}

/// What a sequence held that went in the middle of something.
#[derive(Debug)]
pub(super) struct Leaving {
    until: Busy,
    slot: SlotId,
    blocks: Vec<u32>,
}

impl Scheduler {
    /// What the executor is to do with sequences' states, in this order, before the next step begins.
    pub fn take_moves(&mut self) -> Vec<Move> {
        std::mem::take(&mut self.moves)
    }

    /// The executor has given a state out, or has failed to: then the sequence begins again from its ids.
    pub fn exported(&mut self, slot: SlotId, state: Result<SequenceState, ExecutorError>) {
        if let Some((id, mut sequence)) = self.take_moving(slot, Busy::Leaving) {
            sequence.busy = Busy::Free;
            let fits = |state: &SequenceState| self.aside_bytes + state.bytes.len() as u64 <= self.config.aside_bytes;
            let state = state.ok().filter(fits);
            self.put_aside(id, sequence, state);
        }
        self.let_in();
    }

    /// The executor has taken a state in, or has failed to: then the sequence begins again from its ids.
    pub fn imported(&mut self, slot: SlotId, result: Result<(), ExecutorError>) {
        if let Some((id, mut sequence)) = self.take_moving(slot, Busy::Arriving) {
            sequence.busy = Busy::Free;
            if result.is_ok() {
                if sequence.prompt_left() > 0 {
                    self.prefilling.push_back(id);
                }
                self.running.insert(id, sequence);
            } else {
                self.put_aside(id, sequence, None);
            }
        }
        self.let_in();
    }

    /// The sequences set aside are alive, for whoever waits for their next token.
    pub fn reassure(&self, out: &mut Vec<SequenceEvent>) {
        out.extend(self.aside.keys().map(|(_, id)| SequenceEvent::Progress { id: *id }));
    }

    /// KV blocks that a sequence of so many known tokens needs to run and say one more.
    pub(super) fn blocks_to_begin(&self, known: u32) -> usize {
        self.config.limits.blocks_of(u64::from(known) + 1) as usize
    }

    /// KV blocks that are in use, or that prompts which are being read will use.
    pub(super) fn committed(&self) -> usize {
        let running = self.running.values().map(|sequence| sequence.blocks.len().max(self.blocks_to_begin(sequence.known() - 1)));
        running.sum::<usize>() + self.leaving.iter().map(|leaving| leaving.blocks.len()).sum::<usize>()
    }

    /// Whether a sequence that needs so many blocks can run now. Each that runs is left one block to grow into, or what is let in would push
    /// it out again at once.
    fn has_room(&self, blocks: usize) -> bool {
        let (limits, others) = (&self.config.limits, self.running.len() + self.leaving.len());
        others < limits.slots as usize && self.committed() + blocks + others <= limits.kv_blocks as usize
    }

    fn lets_in(&self, spec: &SequenceSpec) -> bool {
        self.has_room(self.blocks_to_begin(spec.given_tokens()))
    }

    /// Whether a sequence that comes now runs without waiting: nobody is there that it has to wait behind.
    pub(super) fn runs_at_once(&self, spec: &SequenceSpec) -> bool {
        let priority = spec.request().priority;
        let before = |other: Priority| other <= priority || self.overtaken >= MOST_OVERTAKING;
        let waits = self.waiting.iter().any(|(_, other)| before(other.request().priority));
        !waits && !self.aside.keys().any(|(other, _)| before(*other)) && self.lets_in(spec)
    }

    /// Lets sequences run while there is room, in order: whoever does not fit holds up those behind it.
    pub(super) fn let_in(&mut self) {
        while let Some(priority) = self.priority_due() {
            let batch_waits = self.waits(Priority::Batch);
            if !self.let_one_in(priority) {
                return;
            }
            self.overtaken = match priority {
                Priority::Interactive if batch_waits => self.overtaken + 1,
                _ => 0,
            };
        }
    }

    /// Which priority is next to run; none where nobody waits.
    fn priority_due(&self) -> Option<Priority> {
        match (self.waits(Priority::Interactive), self.waits(Priority::Batch)) {
            (true, true) if self.overtaken >= MOST_OVERTAKING => Some(Priority::Batch),
            (true, _) => Some(Priority::Interactive),
            (false, true) => Some(Priority::Batch),
            (false, false) => None,
        }
    }

    fn waits(&self, priority: Priority) -> bool {
        self.aside.keys().any(|(other, _)| *other == priority)
            || self.waiting.iter().any(|(_, spec)| spec.request().priority == priority)
    }

    /// Those set aside first, oldest first. False: there is no room.
    fn let_one_in(&mut self, priority: Priority) -> bool {
        let of_priority = (priority, SequenceId(0))..=(priority, SequenceId(u64::MAX));
        if let Some((key, aside)) = self.aside.range(of_priority).next() {
            let key = *key;
            if !self.has_room(self.blocks_to_begin(aside.sequence.known())) {
                return false;
            }
            let Some(aside) = self.aside.remove(&key) else { return false };
            self.aside_bytes -= aside.bytes();
            self.bring_back(key.1, aside);
            return true;
        }
        let Some(place) = self.waiting.iter().position(|(_, spec)| spec.request().priority == priority) else { return false };
        if !self.waiting.get(place).is_some_and(|(_, spec)| self.lets_in(spec)) {
            return false;
        }
        let (Some(slot), Some((id, spec))) = (self.pool.take_slot(), self.waiting.remove(place)) else { return false };
        self.running.insert(id, Sequence::new(spec, Some(slot), self.shape));
        self.prefilling.push_back(id);
        true
    }

    fn bring_back(&mut self, id: SequenceId, Aside { mut sequence, state }: Aside) {
        let Some(slot) = self.pool.take_slot() else { return };
        sequence.slot = Some(slot);
        match state {
            Some(state) => {
                for _ in 0..self.config.limits.blocks_of(state.tokens) {
                    sequence.blocks.extend(self.pool.take_block(sequence.blocks.last().copied()));
                }
                sequence.busy = Busy::Arriving;
                self.moves.push(Move::Import { slot, blocks: sequence.blocks.clone(), state });
            }
            None => {
                sequence.begin_again();
                self.prefilling.push_back(id);
            }
        }
        self.running.insert(id, sequence);
    }

    /// Sees to it that a sequence has the KV blocks for its next `tokens`. Where there are none left the youngest goes, be it this one; false:
    /// it cannot take part in a step now.
    pub(super) fn secure(&mut self, id: SequenceId, tokens: u32, out: &mut Vec<SequenceEvent>) -> bool {
        let Some(sequence) = self.running.get_mut(&id) else { return false };
        let needed = self.config.limits.blocks_of(u64::from(sequence.position()) + u64::from(tokens)) as usize;
        while sequence.blocks.len() < needed {
            match self.pool.take_block(sequence.blocks.last().copied()) {
                Some(block) => sequence.blocks.push(block),
                None => {
                    self.make_room(id, out);
                    return false;
                }
            }
        }
        true
    }

    fn make_room(&mut self, id: SequenceId, out: &mut Vec<SequenceEvent>) {
        if self.running.len() == 1 && self.leaving.is_empty() {
            // It has all blocks there are.
            out.extend(self.end(id, Finish::Length));
            return;
        }
        let on_the_move = self.running.values().any(|sequence| sequence.busy == Busy::Leaving);
        let rank = |(id, sequence): (&SequenceId, &Sequence)| (sequence.priority(), *id);
        let own = self.running.get_key_value(&id).map(rank);
        let last = self.running.iter().filter(|(_, sequence)| sequence.busy == Busy::Free).map(rank).max();
        // One that goes makes room enough for now. Those in a step end soon, or are asked then.
        if let (false, Some(last)) = (on_the_move, last.filter(|last| Some(*last) >= own)) {
            self.set_aside(last.1, out);
        }
    }

    fn set_aside(&mut self, id: SequenceId, out: &mut Vec<SequenceEvent>) {
        self.prefilling.retain(|other| *other != id);
        let Some(sequence) = self.running.get_mut(&id) else { return };
        out.push(SequenceEvent::Progress { id });
        if let (Some(slot), true) = (sequence.slot, sequence.position() > 0) {
            sequence.busy = Busy::Leaving;
            return self.moves.push(Move::Export { slot });
        }
        if let Some(sequence) = self.running.remove(&id) {
            self.put_aside(id, sequence, None);
        }
    }

    /// What it holds is free.
    fn put_aside(&mut self, id: SequenceId, mut sequence: Sequence, state: Option<SequenceState>) {
        self.free(&mut sequence);
        let aside = Aside { sequence, state };
        self.aside_bytes += aside.bytes();
        self.aside.insert((aside.sequence.priority(), id), aside);
    }

    /// The sequence whose state is on its way; what one held that has gone meanwhile is free.
    fn take_moving(&mut self, slot: SlotId, busy: Busy) -> Option<(SequenceId, Sequence)> {
        let moving = |sequence: &Sequence| (sequence.slot, sequence.busy) == (Some(slot), busy);
        if let Some(id) = self.running.iter().find(|(_, sequence)| moving(sequence)).map(|(id, _)| *id) {
            return self.running.remove_entry(&id);
        }
        self.free_leaving(|leaving| (leaving.slot, leaving.until) == (slot, busy));
        None
    }

    /// Takes a sequence out, frees what it held and lets others in.
    pub(super) fn release(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = if let Some(mut sequence) = self.running.remove(&id) {
            self.prefilling.retain(|other| *other != id);
            self.free(&mut sequence);
            sequence
        } else if let Some(aside) =
            self.aside.keys().find(|(_, other)| *other == id).copied().and_then(|key| self.aside.remove(&key))
        {
            self.aside_bytes -= aside.bytes();
            aside.sequence
        } else {
            let place = self.waiting.iter().position(|(waiting, _)| *waiting == id)?;
            let (_, spec) = self.waiting.remove(place)?;
            Sequence::new(spec, None, self.shape)
        };
        // A waiting one that leaves may have held up those behind it.
        self.let_in();
        Some(sequence)
    }

    /// Gives back what a sequence holds, now or with the end of what it is part of.
    fn free(&mut self, sequence: &mut Sequence) {
        let Some(slot) = sequence.slot.take() else { return };
        let blocks = std::mem::take(&mut sequence.blocks);
        match sequence.busy {
            Busy::Free => self.pool.give_back(slot, &blocks),
            until => self.leaving.push(Leaving { until, slot, blocks }),
        }
    }

    fn free_leaving(&mut self, ended: impl Fn(&Leaving) -> bool) {
        let pool = &mut self.pool;
        self.leaving.retain(|leaving| {
            let ended = ended(leaving);
            if ended {
                pool.give_back(leaving.slot, &leaving.blocks);
            }
            !ended
        });
    }

    /// A step has ended: its sequences can take part in others, and what those held that went is free.
    pub(super) fn land(&mut self, step: &Step) {
        let busy = Busy::Step(step.id);
        self.flying.retain(|(id, _)| *id != step.id);
        for id in &step.owners {
            if let Some(sequence) = self.running.get_mut(id).filter(|sequence| sequence.busy == busy) {
                sequence.busy = Busy::Free;
            }
        }
        self.free_leaving(|leaving| leaving.until == busy);
        self.let_in();
    }
}
