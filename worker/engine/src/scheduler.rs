//! Iteration-level batching of one worker: who waits, who runs, what the next step computes.
//!
//! A sequence runs once a state slot is free and its prompt fits into the KV blocks that are, first come first served; it takes blocks as it
//! grows. Where they run out, the youngest running sequence is set aside: its state is exported to host memory, and comes back before anything
//! else is let in; where that memory is used up it is read again from its ids, which gives the same state. None fails for it. One that alone
//! fills all blocks has reached its length. Decode steps (one token of every decoding sequence) and prefill steps (prompt chunks within
//! a budget, sequences taking turns) alternate while there is work for both. A step of each kind can be in flight, which share no
//! sequence. Interactive sequences go before batch ones, in the queue, in prefill steps and in coming back, four times at most before one of those is
//! due; batch ones are set aside first. What a sequence held that goes in the middle of a step or of a move is free when that has ended, because the executor may
//! still use it.
//!
//! `plan` builds steps, `settle` takes their results, `room` lets in and sets aside; `sequence` is the state of one sequence, `pool` the slots and
//! blocks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::allowed::AllowedIds;
use crate::executor::{Move, Results, SequenceState, SlotId, StepId};
use crate::routing::{RoutingCounts, RoutingShape, TallyId};
use crate::spec::{Limits, Priority, SequenceSpec};
use crate::step::{Failure, Finish, SequenceEvent, SequenceId, Step, StepKind};
use pool::Pool;
use room::{Aside, Leaving};
use sequence::Sequence;

mod plan;
mod pool;
mod room;
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
    /// The same while streams wait for their next tokens: a piece of it is what they wait for. At least 1.
    pub prefill_beside: u32,
    /// Bytes of states that may be set aside; what is beyond is computed again.
    pub aside_bytes: u64,
}

/// What a scheduler uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Sequences that have a slot.
    pub running: u32,
    /// Sequences that wait for one, those set aside among them.
    pub waiting: u32,
    /// Sequences set aside.
    pub set_aside: u32,
    /// State slots in use.
    pub slots_used: u32,
    /// State slots there are.
    pub slots_total: u32,
    /// KV blocks in use, or needed by prompts that are being read.
    pub kv_blocks_used: u32,
    /// KV blocks there are.
    pub kv_blocks_total: u32,
    /// KV blocks that those who wait need to run.
    pub kv_blocks_waiting: u32,
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
    /// Running sequences with prompt left, whose turn is next in front; without those in a step or on the move.
    prefilling: VecDeque<SequenceId>,
    /// Of each priority older than all that wait.
    aside: BTreeMap<(Priority, SequenceId), Aside>,
    aside_bytes: u64,
    /// Interactive sequences that were let in since a batch one was, while one waited.
    overtaken: u32,
    /// The same for prefill steps.
    overtaken_prefill: u32,
    /// For the executor.
    moves: Vec<Move>,
    pool: Pool,
    leaving: Vec<Leaving>,
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
            ("prefill_beside", config.prefill_beside),
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
            aside: BTreeMap::new(),
            aside_bytes: 0,
            overtaken: 0,
            overtaken_prefill: 0,
            moves: Vec::new(),
            pool: Pool::new(limits.slots, limits.kv_blocks),
            leaving: Vec::new(),
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
        let runs = self.runs_at_once(&spec);
        if !runs && self.waiting.len() >= self.config.queue as usize {
            return Err(SchedulerError::QueueFull { waiting: self.waiting.len(), queue: self.config.queue });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back((id, spec));
        if runs {
            self.let_in();
        }
        Ok(id)
    }

    /// Drops a sequence without a word. What it held is free at once, or with the end of the step that it is part of, in which its rows
    /// are ignored. False where there is no such sequence (any more).
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.release(id).is_some()
    }

    /// Ends every sequence, waiting ones too, with this failure. Steps in flight are still to be handed back.
    pub fn fail_all(&mut self, failure: &Failure, out: &mut Vec<SequenceEvent>) {
        // The waiting ones first: none of them is let in by the end of another.
        let waiting: Vec<SequenceId> = self.waiting.iter().rev().map(|(id, _)| *id).collect();
        let running: Vec<SequenceId> = self.aside.keys().map(|(_, id)| *id).chain(self.running.keys().copied()).collect();
        let ids = waiting.into_iter().chain(running);
        out.extend(ids.filter_map(|id| self.end(id, Finish::Failed(failure.clone()))));
    }

    /// What is used now.
    pub fn occupancy(&self) -> Occupancy {
        let Limits { slots, kv_blocks, .. } = self.config.limits;
        let (running, set_aside) = (self.running.len() as u32, self.aside.len() as u32);
        let needs = self.waiting.iter().map(|(_, spec)| self.blocks_to_begin(spec.given_tokens()));
        let needs = needs.chain(self.aside.values().map(|aside| self.blocks_to_begin(aside.sequence.known())));
        Occupancy {
            running,
            waiting: self.waiting.len() as u32 + set_aside,
            set_aside,
            slots_used: running + self.leaving.len() as u32,
            slots_total: slots,
            kv_blocks_used: u32::try_from(self.committed()).unwrap_or(u32::MAX).min(kv_blocks),
            kv_blocks_total: kv_blocks,
            kv_blocks_waiting: u32::try_from(needs.sum::<usize>()).unwrap_or(u32::MAX),
        }
    }

    /// Whether no sequence is left, running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.aside.is_empty()
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
    fn end(&mut self, id: SequenceId, finish: Finish) -> Option<SequenceEvent> {
        self.release(id).map(|sequence| sequence.finished(id, finish))
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
