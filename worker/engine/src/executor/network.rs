//! [`Network`]: a model that computes when it is called, on the thread that calls.

use bytes::{Bytes, BytesMut};
use m1_arch::{Architecture, ExpertSet, LayerId};

use super::Capabilities;
use super::batch::{Batch, LayerRouting, Results, SlotId};
use super::command::{Request, SequenceState};
use super::error::ExecutorError;
use super::tables::Tables;
use super::uses::Use;

/// Told the sum of stored bytes that were read so far.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// A model that computes when it is called. [`Inline`](super::Inline) makes an executor of it: that one keeps the order of calls and has
/// checked every argument before.
pub trait Network: 'static {
    /// Where experts are loaded from.
    type Weights: Send + 'static;
    /// Experts that were brought in and are not held yet.
    type Brought: Send + 'static;
    /// A step in flight: its rows' numbers.
    type InFlight;

    /// The network's shape.
    fn architecture(&self) -> &Architecture;

    /// What it computes with.
    fn capabilities(&self) -> Capabilities;

    /// The experts whose weights are here.
    fn held(&self) -> &ExpertSet;

    /// Starts a step: forgets what slots at position 0 hold, embeds the ids. `tables` has admitted the batch.
    fn begin(&mut self, batch: &Batch, tables: &Tables) -> Result<Self::InFlight, ExecutorError>;

    /// Attention, residual, post norm and router of one layer; fills `routing` (softmax over all experts, the `top_k` most probable,
    /// renormalised) and zeroes the accumulator of the experts' sums. False: only a part of it was done, because all would take too long for those
    /// who wait; it goes on with the next call, between which other steps may be computed.
    fn attention(&mut self, step: &mut Self::InFlight, layer: LayerId, routing: &mut LayerRouting) -> Result<bool, ExecutorError>;

    /// Appends the experts' input of these rows to `out`, `[rows.len(), hidden]` in wire format.
    fn gather(&mut self, step: &Self::InFlight, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError>;

    /// Computes these uses of held experts by the step's own rows and adds their weighted sums to the accumulator. `uses` are sorted by
    /// expert.
    fn local(&mut self, step: &mut Self::InFlight, layer: LayerId, uses: &[Use]) -> Result<(), ExecutorError>;

    /// Adds a peer's answer, fp32 little-endian `[rows.len(), hidden]`, to the accumulator.
    fn accumulate(&mut self, step: &mut Self::InFlight, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError>;

    /// Ends the layer: `x = alpha * h + beta * accumulator`.
    fn combine(&mut self, step: &mut Self::InFlight, layer: LayerId) -> Result<(), ExecutorError>;

    /// Ends the step: draws, and fills in whole rows of logits.
    fn end(&mut self, step: &mut Self::InFlight, batch: &Batch, results: &mut Results) -> Result<(), ExecutorError>;

    /// Takes the memory of a step back.
    fn reuse(&mut self, step: Self::InFlight);

    /// Computes these uses of held experts by peers' rows, `uses` sorted by expert, rows counted over all requests; the fp32
    /// little-endian sums of each request, `[rows, hidden]`. A leaf: it leaves steps alone.
    fn serve(&mut self, layer: LayerId, requests: &[Request], uses: &[Use]) -> Result<Vec<Bytes>, ExecutorError>;

    /// What brings experts in, on another thread. Each that has come is handed to `take`.
    #[allow(clippy::type_complexity, reason = "a function that is sent to a thread")]
    fn bring(
        &self,
        experts: ExpertSet,
    ) -> Box<dyn FnOnce(&Self::Weights, Progress<'_>, &mut dyn FnMut(Self::Brought)) -> Result<(), ExecutorError> + Send>;

    /// Holds experts that were brought in.
    fn hold(&mut self, brought: Self::Brought);

    /// Lets go of experts.
    fn let_go(&mut self, experts: &ExpertSet);

    /// A sequence's states and KV.
    fn export(&mut self, slot: SlotId, tables: &Tables) -> Result<SequenceState, ExecutorError>;

    /// Puts them into a slot whose blocks `tables` has taken in.
    fn import(&mut self, slot: SlotId, tables: &Tables, state: &SequenceState) -> Result<(), ExecutorError>;

    /// Copies a slot's states to another, whose blocks `tables` has taken in, and the content of block `copy.0` to block `copy.1`.
    fn fork(&mut self, from: SlotId, to: SlotId, copy: Option<(u32, u32)>) -> Result<(), ExecutorError>;
}
