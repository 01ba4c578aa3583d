//! The executor port: what the worker asks of the device that computes the model.
//!
//! A step is `begin_step`, then for every layer `attention`, the experts (`local` here, `gather` / `accumulate` for
//! those on peers), `combine`, and at last `end_step`. One step is in flight at a time; `serve` may come at any point
//! between two calls of it and leaves it alone. Below this file lies what every executor needs and none
//! has a reason to do differently: checks of arguments and order, accounts of slots and blocks, the router's choice.

mod checks;
mod choice;
mod held;
mod order;
mod slots;

use bytes::BytesMut;
use m1_arch::{ExpertId, LayerId};

pub use checks::{check_assignment, check_batch, check_rows};
pub use choice::choose_experts;
pub use held::Held;
pub use order::{StepOrder, in_flight};
pub use slots::{CacheSize, KV_BLOCK_TOKENS, Slots};

/// The expert id of an unused place in [`LayerRouting`] and [`Assignment`].
pub const UNUSED: u16 = u16::MAX;

/// A state slot of the executor: the lightning states and the KV of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// The tokens of one sequence within a packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// State slot of the sequence.
    pub slot: SlotId,
    /// Row of its first token in the packed batch.
    pub start: u32,
    /// Number of its tokens in this batch, at least 1.
    pub tokens: u32,
    /// Position of its first token in the sequence, from 0.
    pub position: u32,
    /// Tokens of its prompt. An executor may read the prompt in blocks from position 0; what was said comes one by one, also when an
    /// earlier attempt said it, so that a sequence goes on with the bits that it had.
    pub prompt: u32,
}

/// One step's input: sequences packed one after another, without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, one per row.
    pub ids: Vec<u32>,
    /// Who owns which rows; they cover `0..ids.len()` in order, and no slot comes twice.
    pub segments: Vec<Segment>,
    /// Rows whose logits `end_step` returns, ascending.
    pub logit_rows: Vec<u32>,
}

/// Routing of one layer for a packed batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerRouting {
    /// Rows of the batch.
    pub tokens: usize,
    /// Experts per token.
    pub top_k: usize,
    /// `[tokens, top_k]`, most probable first; [`UNUSED`] where the place is empty.
    pub experts: Vec<u16>,
    /// `[tokens, top_k]`, normalised: the used places of a row sum to 1.
    pub weights: Vec<f32>,
}

impl LayerRouting {
    /// Makes room for `tokens` rows of `top_k` places, all unused, keeping the allocation.
    pub fn reset(&mut self, tokens: usize, top_k: usize) {
        self.tokens = tokens;
        self.top_k = top_k;
        self.experts.clear();
        self.experts.resize(tokens * top_k, UNUSED);
        self.weights.clear();
        self.weights.resize(tokens * top_k, 0.0);
    }
}

/// Which experts compute which rows, with which weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assignment<'a> {
    /// Rows of the packed batch (for `serve`: `0..n` of the rows that came).
    pub rows: &'a [u32],
    /// Places per row.
    pub slots: usize,
    /// `[rows.len(), slots]`; [`UNUSED`] places are ignored.
    pub experts: &'a [u16],
    /// `[rows.len(), slots]`.
    pub weights: &'a [f32],
}

/// The device that computes the model. One thread owns it.
pub trait Executor {
    /// Takes a free state slot, its state zeroed.
    fn open_slot(&mut self) -> Result<SlotId, ExecutorError>;

    /// Gives a slot and its KV back. A slot that is not open is ignored.
    fn close_slot(&mut self, slot: SlotId);

    /// Starts a step: embeds the ids.
    fn begin_step(&mut self, batch: &Batch) -> Result<(), ExecutorError>;

    /// Attention, residual, post norm and router of one layer; fills `routing` (softmax over all experts, the `top_k`
    /// most probable, renormalised) and zeroes the accumulator of the experts' sums.
    fn attention(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), ExecutorError>;

    /// Appends the experts' input of these rows to `out`, `[rows.len(), hidden]` in wire format (fp32 little-endian on
    /// a CPU).
    fn gather(&mut self, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError>;

    /// Computes experts held here for the step's own rows and adds their weighted sums to the accumulator.
    fn local(&mut self, layer: LayerId, assignment: &Assignment<'_>) -> Result<(), ExecutorError>;

    /// Adds a peer's answer, fp32 little-endian `[rows.len(), hidden]`, to the accumulator.
    fn accumulate(&mut self, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError>;

    /// Ends the layer: `x = alpha * h + beta * accumulator`.
    fn combine(&mut self, layer: LayerId) -> Result<(), ExecutorError>;

    /// Ends the step: replaces the content of `logits` with fp32 `[logit_rows, vocabulary]`.
    fn end_step(&mut self, logits: &mut Vec<f32>) -> Result<(), ExecutorError>;

    /// Computes experts held here for a peer's rows (`hidden`: wire format, `assignment.rows` is `0..n`) and appends the
    /// fp32 little-endian sums `[n, hidden]` to `sums`. A leaf: it waits for nobody and leaves the own step alone.
    fn serve(
        &mut self,
        layer: LayerId,
        hidden: &[u8],
        assignment: &Assignment<'_>,
        sums: &mut BytesMut,
    ) -> Result<(), ExecutorError>;
}

/// Why the executor could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// Every state slot is open.
    #[error("no free state slot: all {slots} are open")]
    NoFreeSlot {
        /// Slots there are.
        slots: u32,
    },
    /// The slot was never opened, or is closed.
    #[error("state slot {} is not open", .0.0)]
    UnknownSlot(SlotId),
    /// The KV cache is full.
    #[error("the KV cache is full: {needed} tokens needed, {free} free")]
    NoFreeKv {
        /// Tokens the step needs room for.
        needed: u64,
        /// Tokens there is room for.
        free: u64,
    },
    /// An argument does not fit the model, the step or the batch.
    #[error("{what} is {given}, allowed: {allowed}")]
    InvalidArgument {
        /// What is wrong, by its name in the port.
        what: &'static str,
        /// The value given.
        given: u64,
        /// What is allowed, in words.
        allowed: String,
    },
    /// A call came where the step does not allow it.
    #[error("{call} came out of order: expected {expected}")]
    OutOfOrder {
        /// The call that came.
        call: &'static str,
        /// What the step was waiting for.
        expected: &'static str,
    },
    /// The expert's weights are not on this device.
    #[error("layer {} expert {} is not held here", .layer.0, .expert.0)]
    NotHeld {
        /// Layer of the expert.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
    },
    /// The device has no memory left for the step.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The device or its library failed.
    #[error("the device failed: {0}")]
    Device(String),
}

impl ExecutorError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoFreeSlot { .. } => "NoFreeSlot",
            Self::UnknownSlot(_) => "UnknownSlot",
            Self::NoFreeKv { .. } => "NoFreeKv",
            Self::InvalidArgument { .. } => "InvalidArgument",
            Self::OutOfOrder { .. } => "OutOfOrder",
            Self::NotHeld { .. } => "NotHeld",
            Self::OutOfMemory(_) => "OutOfMemory",
            Self::Device(_) => "DeviceFailed",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoFreeSlot { .. } | Self::NoFreeKv { .. } | Self::OutOfMemory(_))
    }
}
