//! What is handed over to an executor, and what comes back.

use std::sync::Arc;

use bytes::Bytes;
use m1_arch::{ExpertSet, LayerId};

use super::batch::{Batch, LayerRouting, Results, SlotId, StepId};
use super::error::ExecutorError;

/// Number of a peer's request among those handed over; the host's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub u64);

/// Which experts compute which rows of a step, with which weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// Rows of the packed batch.
    pub rows: Vec<u32>,
    /// `[rows.len(), top_k]`; [`UNUSED`](super::UNUSED) places are ignored.
    pub experts: Vec<u16>,
    /// `[rows.len(), top_k]`.
    pub weights: Vec<f32>,
}

/// A peer's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Comes back with the sums.
    pub key: RequestKey,
    /// `[rows, hidden]` in wire format.
    pub hidden: Bytes,
    /// How many.
    pub rows: u32,
    /// `[rows, places]`; [`UNUSED`](super::UNUSED) places are ignored.
    pub experts: Vec<u16>,
    /// `[rows, places]`.
    pub weights: Vec<f32>,
}

/// A sequence's states and KV, as an executor of the same kind and model takes them in again.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceState {
    /// Tokens that it has seen.
    pub tokens: u64,
    /// The executor's own format.
    pub bytes: Bytes,
}

impl SequenceState {
    /// Refuses one that is not of so many bytes.
    ///
    /// # Errors
    /// It has another size.
    pub fn check(&self, wanted: usize) -> Result<(), ExecutorError> {
        if self.bytes.len() == wanted {
            return Ok(());
        }
        let allowed = format!("{wanted} bytes, for {} tokens", self.tokens);
        Err(ExecutorError::InvalidArgument { what: "state", given: self.bytes.len() as u64, allowed })
    }
}

/// What is handed over to an executor.
#[derive(Debug)]
pub enum Command<W> {
    /// Starts a step.
    Begin {
        /// The step.
        step: StepId,
        /// Streams wait for it, rather than prompts.
        urgent: bool,
        /// Its input.
        batch: Arc<Batch>,
        /// Memory of what comes of it.
        results: Results,
    },
    /// Wants the experts' input of these rows: `Gathered`.
    Gather {
        /// The step; it stands at a layer's experts.
        step: StepId,
        /// Rows of the batch.
        rows: Vec<u32>,
    },
    /// Computes experts that are held here for the step's own rows and adds their weighted sums.
    Local {
        /// The step; it stands at a layer's experts.
        step: StepId,
        /// Who for whom.
        work: Work,
    },
    /// Adds a peer's answer.
    Accumulate {
        /// The step; it stands at a layer's experts.
        step: StepId,
        /// Rows of the batch.
        rows: Vec<u32>,
        /// fp32 little-endian, `[rows.len(), hidden]`.
        sums: Bytes,
    },
    /// The layer's sums are complete: the step goes on.
    Combine {
        /// The step; it stands at a layer's experts.
        step: StepId,
        /// The memory of what `Routed` told.
        routing: LayerRouting,
    },
    /// The step is wanted no more: nothing of it comes back. The states of its slots are of no use any more.
    Abort {
        /// The step; an unknown one is ignored.
        step: StepId,
    },
    /// Computes experts that are held here for peers. Those of one command are computed together, so that weights are read once.
    Serve {
        /// Streams wait for them, rather than prompts.
        urgent: bool,
        /// Layer of all of them.
        layer: LayerId,
        /// At least one.
        requests: Vec<Request>,
    },
    /// Brings experts in, beside what else is done: `Loading`, then `Loaded`.
    Load {
        /// Where they come from.
        weights: W,
        /// Those that are held already are left alone.
        experts: ExpertSet,
    },
    /// Lets go of experts, once nothing that was handed over before needs them.
    Unload {
        /// Those that are not held are ignored.
        experts: ExpertSet,
    },
    /// Moves a sequence's state, which no step in flight may use.
    Move(Move),
}

/// What is to become of a sequence's state.
#[derive(Debug, PartialEq)]
pub enum Move {
    /// It is wanted: `Exported`.
    Export {
        /// Its slot, which stays as it is.
        slot: SlotId,
    },
    /// It comes into a slot: `Imported`.
    Import {
        /// The slot.
        slot: SlotId,
        /// Its KV blocks, in the order of tokens.
        blocks: Vec<u32>,
        /// What `Exported` told.
        state: SequenceState,
    },
    /// A second sequence begins as a copy of it: `Imported`.
    Fork {
        /// Slot of the first.
        from: SlotId,
        /// Slot of the second.
        to: SlotId,
        /// Where the first one's last block goes if it is not full; full ones are shared.
        last: Option<u32>,
    },
}

/// What comes back from an executor.
#[derive(Debug)]
pub enum Completion {
    /// A step stands at a layer, of whose experts some are not here.
    Routed {
        /// The step.
        step: StepId,
        /// The layer.
        layer: LayerId,
        /// Who is needed, thresholds applied.
        routing: LayerRouting,
    },
    /// The experts' input of some rows; in the order of `Gather`s of the step.
    Gathered {
        /// The step.
        step: StepId,
        /// `[rows, hidden]` in wire format.
        hidden: Bytes,
    },
    /// A step has come to its end.
    Ended {
        /// The step.
        step: StepId,
        /// What came of it.
        results: Results,
    },
    /// A step could not be computed and is gone.
    Failed {
        /// The step.
        step: StepId,
        /// Why.
        error: ExecutorError,
    },
    /// A peer's request was computed.
    Served {
        /// The request.
        key: RequestKey,
        /// fp32 little-endian, `[rows, hidden]`.
        sums: Result<Bytes, ExecutorError>,
    },
    /// A load goes on.
    Loading {
        /// Stored bytes that it has read so far.
        read: u64,
    },
    /// A load has ended. What it brought is held, also where it failed in the end.
    Loaded {
        /// How.
        result: Result<(), ExecutorError>,
    },
    /// A sequence's state.
    Exported {
        /// Its slot.
        slot: SlotId,
        /// The state.
        state: Result<SequenceState, ExecutorError>,
    },
    /// A slot holds what `Import` or `Fork` brought.
    Imported {
        /// The slot.
        slot: SlotId,
        /// How.
        result: Result<(), ExecutorError>,
    },
}
