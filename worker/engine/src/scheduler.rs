//! Iteration-level batching of one worker: who waits, who runs, what the next step computes.
//!
//! A sequence runs once a state slot and the KV blocks of its prompt and all its output are reserved, first come first
//! served, so that none that runs can starve for memory. Decode steps (one token of every decoding sequence) and
//! prefill steps (prompt chunks within a budget, sequences taking turns) alternate while there is work for both.
//! One step is in flight at a time. What a cancelled sequence held is free at once, for admission; the executor's slot is
//! closed before the next step, because the one in flight may still read it.
//!
//! `plan` builds steps, `settle` takes their results; `sequence` is the state of one sequence.

use std::collections::{BTreeMap, VecDeque};

use crate::allowed::AllowedIds;
use crate::executor::SlotId;
use crate::routing::{RoutingCounts, RoutingShape, StepRouting, TallyId};
use crate::sampler::Sampler;
use crate::spec::{Limits, SequenceSpec};
use crate::step::{Failure, Finish, Outcome, SequenceId, Step, StepKind};
use sequence::Sequence;

mod plan;
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

/// The sequences of one worker and the order they are served in.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    sampler: Sampler,
    next_id: u64,
    waiting: VecDeque<(SequenceId, SequenceSpec)>,
    /// By id, which is by arrival.
    running: BTreeMap<SequenceId, Sequence>,
    /// Running sequences with prompt left, whose turn is next in front; without those of the step in flight.
    prefilling: VecDeque<SequenceId>,
    /// Slots to close before the next step.
    closing: Vec<SlotId>,
    kv_blocks_used: u64,
    last_kind: StepKind,
    in_flight: bool,
    /// The last step's memory.
    spare: Option<Step>,
    shape: RoutingShape,
    staged: StepRouting,
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
            sampler: Sampler::new(known),
            next_id: 0,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            prefilling: VecDeque::new(),
            closing: Vec::new(),
            kv_blocks_used: 0,
            last_kind: StepKind::Decode,
            in_flight: false,
            spare: None,
            shape,
            staged: StepRouting::new(shape),
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
        if runs {
            self.admit(id, spec);
        } else {
            self.waiting.push_back((id, spec));
        }
        Ok(id)
    }

    /// Drops a sequence without a word. What it held is free at once; rows of it in the step in flight are ignored.
    /// False where there is no such sequence (any more).
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.release(id).is_some()
    }

    /// Ends every sequence, waiting ones too, with this failure. The step in flight, if any, is still to be handed back.
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
            slots_used: running,
            slots_total: slots,
            kv_blocks_used: self.kv_blocks_used as u32,
            kv_blocks_total: kv_blocks,
            kv_blocks_waiting: self.waiting.iter().fold(0u32, |sum, (_, spec)| sum.saturating_add(spec.kv_blocks() as u32)),
        }
    }

    /// Whether no sequence is left, running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
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
        self.running.len() < limits.slots as usize && self.kv_blocks_used + spec.kv_blocks() <= u64::from(limits.kv_blocks)
    }

    fn admit(&mut self, id: SequenceId, spec: SequenceSpec) {
        self.kv_blocks_used += spec.kv_blocks();
        self.running.insert(id, Sequence::new(spec, self.shape));
        self.prefilling.push_back(id);
    }

    fn admit_waiting(&mut self) {
        while let Some((id, spec)) = self.waiting.pop_front() {
            if !self.fits(&spec) {
                self.waiting.push_front((id, spec));
                return;
            }
            self.admit(id, spec);
        }
    }

    /// Takes a sequence out, frees what it held and lets waiting ones in.
    fn release(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = match self.running.remove(&id) {
            Some(sequence) => {
                self.kv_blocks_used -= sequence.spec.kv_blocks();
                self.closing.extend(sequence.slot);
                self.prefilling.retain(|other| *other != id);
                sequence
            }
            None => {
                let place = self.waiting.iter().position(|(waiting, _)| *waiting == id)?;
                let (_, spec) = self.waiting.remove(place)?;
                Sequence::new(spec, self.shape)
            }
        };
        // A waiting one that leaves may have held up those behind it.
        self.admit_waiting();
        Some(sequence)
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
