//! Iteration-level batching of one worker: who waits, who runs, what the next step computes.
//!
//! A sequence runs once a state slot and the KV blocks of its prompt and all its output are reserved, first come first
//! served, so that none that runs can starve for memory. Decode steps (one token of every decoding sequence) and
//! prefill steps (prompt chunks within a budget, sequences taking turns) alternate while there is work for both.
//! A step of each kind can be in flight, which share no sequence. What a sequence held that goes in the middle of a
//! step is free when the step has ended, because the executor may still use it.
//!
//! `plan` builds steps, `settle` takes their results; `sequence` is the state of one sequence, `pool` the slots and blocks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::allowed::AllowedIds;
use crate::executor::{Results, SlotId, StepId};
use crate::routing::{RoutingCounts, RoutingShape, TallyId};
use crate::spec::{Limits, SequenceSpec};
use crate::step::{Failure, Finish, Outcome, SequenceId, Step, StepKind};
use pool::Pool;
use sequence::Sequence;

mod plan;
mod pool;
mod sequence;
mod settle;

/// How a scheduler is set up. [`Scheduler::new`] checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// What the worker holds.
    pub limits: Limits,
    /// Sequences that may wait for a slot or for KV blocks; one more is refused.
    pub queue: u32,
    /// Tokens of one prefill step at most; at least 1.
    pub prefill_tokens: u32,
}

/// What a scheduler uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Sequences that have a slot.
    pub running: u32,
    /// Sequences that wait for one.
    pub waiting: u32,
    /// State slots reserved.
    pub slots_used: u32,
    /// State slots there are.
    pub slots_total: u32,
    /// KV blocks reserved.
    pub kv_blocks_used: u32,
    /// KV blocks there are.
    pub kv_blocks_total: u32,
    /// KV blocks that those who wait will reserve.
    pub kv_blocks_waiting: u32,
}

/// What a sequence held that went in the middle of a step.
#[derive(Debug)]
struct Leaving {
    step: StepId,
    slot: SlotId,
    blocks: Vec<u32>,
    reserved: u64,
}

/// The sequences of one worker and the order they are served in.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    /// Ids that the tokenizer knows, and the whole vocabulary.
    known: Arc<AllowedIds>,
    every: Arc<AllowedIds>,
    next_id: u64,
    waiting: VecDeque<(SequenceId, SequenceSpec)>,
    /// By id, which is by arrival.
    running: BTreeMap<SequenceId, Sequence>,
    /// Running sequences with prompt left, whose turn is next in front; without those in a step.
    prefilling: VecDeque<SequenceId>,
    pool: Pool,
    leaving: Vec<Leaving>,
    /// Blocks that running and leaving sequences may come to use.
    kv_blocks_reserved: u64,
    last_step: StepId,
    last_kind: StepKind,
    /// Steps in flight.
    flying: Vec<(StepId, StepKind)>,
    /// Those that decode, by slot: memory of planning.
    ready: Vec<(SlotId, SequenceId)>,
    /// Memory of steps that have ended.
    spare: Vec<Step>,
    results: Vec<Results>,
    shape: RoutingShape,
    routing: RoutingCounts,
    tallies: BTreeMap<TallyId, RoutingCounts>,
}

impl Scheduler {
    /// An idle scheduler for a model of this shape that draws only `known` ids.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn new(config: SchedulerConfig, shape: RoutingShape, known: AllowedIds) -> Result<Self, SchedulerError> {
        let limits = config.limits;
        let settings = [
            ("vocab", limits.vocab),
            ("max_context", limits.max_context),
            ("slots", limits.slots),
            ("kv_block_tokens", limits.kv_block_tokens),
            ("kv_blocks", limits.kv_blocks),
            ("prefill_tokens", config.prefill_tokens),
        ];
        if let Some(&(field, _)) = settings.iter().find(|&&(_, value)| value == 0) {
            return Err(SchedulerError::Zero { field });
        }
        if known.vocab() != limits.vocab || known.is_empty() {
            return Err(SchedulerError::KnownIds { known: known.len(), of: known.vocab(), vocab: limits.vocab });
        }
        Ok(Self {
            config,
            every: Arc::new(AllowedIds::all(limits.vocab)),
            known: Arc::new(known),
            next_id: 0,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            prefilling: VecDeque::new(),
            pool: Pool::new(limits.slots, limits.kv_blocks),
            leaving: Vec::new(),
            kv_blocks_reserved: 0,
            last_step: StepId(0),
            last_kind: StepKind::Decode,
            flying: Vec::new(),
            ready: Vec::new(),
            spare: Vec::new(),
            results: Vec::new(),
            shape,
            routing: RoutingCounts::new(shape),
            tallies: BTreeMap::new(),
        })
    }

    /// What it was set up with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Takes a sequence in: it runs from the next step on, or waits its turn.
    ///
    /// # Errors
    /// `QueueFull` where it would have to wait and no place is left.
    pub fn submit(&mut self, spec: SequenceSpec) -> Result<SequenceId, SchedulerError> {
        let runs = self.waiting.is_empty() && self.fits(&spec);
        if !runs && self.waiting.len() >= self.config.queue as usize {
            return Err(SchedulerError::QueueFull { waiting: self.waiting.len(), queue: self.config.queue });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back((id, spec));
        if runs {
            self.admit_waiting();
        }
        Ok(id)
    }

    /// Drops a sequence without a word. What it held is free at once, or with the end of the step that it is part of, in which its rows
    /// are ignored. False where there is no such sequence (any more).
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.release(id).is_some()
    }

    /// Ends every sequence, waiting ones too, with this failure. Steps in flight are still to be handed back.
    pub fn fail_all(&mut self, failure: &Failure, out: &mut Vec<Outcome>) {
        // The waiting ones first: none of them is let in by the end of another.
        let waiting: Vec<SequenceId> = self.waiting.iter().rev().map(|(id, _)| *id).collect();
        let running: Vec<SequenceId> = self.running.keys().copied().collect();
        let ids = waiting.into_iter().chain(running);
        out.extend(ids.filter_map(|id| self.end(id, Finish::Failed(failure.clone()))));
    }

    /// What is used now.
    pub fn occupancy(&self) -> Occupancy {
        let Limits { slots, kv_blocks, .. } = self.config.limits;
        let running = self.running.len() as u32;
        Occupancy {
            running,
            waiting: self.waiting.len() as u32,
            slots_used: running + self.leaving.len() as u32,
            slots_total: slots,
            kv_blocks_used: self.kv_blocks_reserved as u32,
            kv_blocks_total: kv_blocks,
            kv_blocks_waiting: self.waiting.iter().fold(0u32, |sum, (_, spec)| sum.saturating_add(spec.kv_blocks() as u32)),
        }
    }

    /// Whether no sequence is left, running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Memory for what comes of the next step.
    pub fn blank_results(&mut self) -> Results {
        self.results.pop().unwrap_or_else(|| Results::new(self.shape))
    }

    /// Takes the memory back.
    pub fn reuse(&mut self, results: Results) {
        self.results.push(results);
    }

    /// What the experts did for all tokens of completed steps.
    pub fn routing(&self) -> &RoutingCounts {
        &self.routing
    }

    /// The same, of the sequences that named a tally, for each that is kept; weights are not.
    pub fn tallies(&self) -> impl Iterator<Item = (TallyId, &RoutingCounts)> {
        self.tallies.iter().map(|(&id, counts)| (id, counts))
    }

    /// One tally; `None` before its first token.
    pub fn tally(&self, id: TallyId) -> Option<&RoutingCounts> {
        self.tallies.get(&id)
    }

    /// Forgets tallies that nobody asks for any more.
    pub fn keep_tallies(&mut self, mut keep: impl FnMut(TallyId) -> bool) {
        self.tallies.retain(|&id, _| keep(id));
    }

    /// The one way in which a sequence ends with a word: it is taken out, so there is no second time. `None` where there is
    /// no such sequence (any more).
    fn end(&mut self, id: SequenceId, finish: Finish) -> Option<Outcome> {
        self.release(id).map(|sequence| sequence.finished(id, finish))
    }

    fn fits(&self, spec: &SequenceSpec) -> bool {
        let limits = &self.config.limits;
        let slots = self.running.len() + self.leaving.len();
        slots < limits.slots as usize && self.kv_blocks_reserved + spec.kv_blocks() <= u64::from(limits.kv_blocks)
    }

    fn admit_waiting(&mut self) {
        while self.waiting.front().is_some_and(|(_, spec)| self.fits(spec)) {
            let (Some(slot), Some((id, spec))) = (self.pool.take_slot(), self.waiting.pop_front()) else { return };
            self.kv_blocks_reserved += spec.kv_blocks();
            self.running.insert(id, Sequence::new(spec, Some(slot), self.shape));
            self.prefilling.push_back(id);
        }
    }

    /// Takes a sequence out, frees what it held and lets waiting ones in.
    fn release(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = match self.running.remove(&id) {
            Some(mut sequence) => {
                self.prefilling.retain(|other| *other != id);
                self.free(&mut sequence);
                sequence
            }
            None => {
                let place = self.waiting.iter().position(|(waiting, _)| *waiting == id)?;
                let (_, spec) = self.waiting.remove(place)?;
                Sequence::new(spec, None, self.shape)
            }
        };
        // A waiting one that leaves may have held up those behind it.
        self.admit_waiting();
        Some(sequence)
    }

    /// Gives back what a sequence holds, now or with the end of its step.
    fn free(&mut self, sequence: &mut Sequence) {
        let Some(slot) = sequence.slot else { return };
        let (blocks, reserved) = (std::mem::take(&mut sequence.blocks), sequence.spec.kv_blocks());
        match sequence.step {
            Some(step) => self.leaving.push(Leaving { step, slot, blocks, reserved }),
            None => {
                self.pool.give_back(slot, &blocks);
                self.kv_blocks_reserved -= reserved;
            }
        }
    }

    /// A step has ended: its sequences can take part in others, and what those held that went is free.
    fn land(&mut self, step: &Step) {
        self.flying.retain(|(id, _)| *id != step.id);
        for id in &step.owners {
            if let Some(sequence) = self.running.get_mut(id).filter(|sequence| sequence.step == Some(step.id)) {
                sequence.step = None;
            }
        }
        let (pool, reserved) = (&mut self.pool, &mut self.kv_blocks_reserved);
        self.leaving.retain(|leaving| {
            if leaving.step == step.id {
                pool.give_back(leaving.slot, &leaving.blocks);
                *reserved -= leaving.reserved;
            }
            leaving.step != step.id
        });
        self.admit_waiting();
    }
}

/// Why a scheduler cannot be set up or cannot take a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    /// A setting that must not be zero.
    #[error("{field} is 0; at least 1 is needed")]
    Zero {
        /// Name of the setting.
        field: &'static str,
    },
    /// A set of known ids that does not fit the model.
    #[error("{known} ids of a vocabulary of {of} are known; at least 1 of {vocab} is needed")]
    KnownIds {
        /// Ids in the set.
        known: usize,
        /// Vocabulary of the set.
        of: u32,
        /// Vocabulary of the model.
        vocab: u32,
    },
    /// No place left to wait in.
    #[error("{waiting} sequences wait; the queue holds {queue}")]
    QueueFull {
        /// Sequences that wait.
        waiting: usize,
        /// Places there are.
        queue: u32,
    },
}

impl SchedulerError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Zero { .. } | Self::KnownIds { .. } => "InvalidConfig",
            Self::QueueFull { .. } => "QueueFull",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::QueueFull { .. })
    }
}
