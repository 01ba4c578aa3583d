//! The executor port: what the worker asks of the device that computes the model, whichever device that is.
//!
//! [`Command`]s are handed over and never wait; what came of them is picked up as [`Completion`]s. A step begins with `Begin` and goes
//! on by itself, layer by layer, as long as this device holds the experts that its rows need: where it holds them all, the host hears
//! of the step once, at its end. Where some are elsewhere, the step stands at that layer (`Routed`) until the host has handed over
//! the layer's work (`Gather`, `Local`, `Accumulate`) and `Combine`. Several steps may be in flight: one waits for peers while the
//! other computes. Ids are drawn where the logits are; whole rows of logits come only for who asks.
//!
//! Below this file lies what every executor needs and none has a reason to do differently: checks, tables of blocks, the router's
//! choice, and [`Inline`], the port for a network that computes when it is called.

mod batch;
mod checks;
mod choice;
mod command;
mod cost;
mod error;
mod held;
mod inline;
mod network;
mod tables;
mod uses;

use m1_arch::ExpertSet;

pub use batch::{Batch, Draw, Drawn, HeadRows, LayerRouting, Results, Segment, SlotId, StepId, UNUSED};
pub use choice::choose_experts;
pub use command::{Command, Completion, Move, Request, RequestKey, SequenceState, Work};
pub use cost::{Due, Piece};
pub use error::ExecutorError;
pub use held::{Brought, Held};
pub use inline::{Inline, cut};
pub use network::{Network, Progress};
pub use tables::{CacheSize, KV_BLOCK_TOKENS, Tables};
pub use uses::Use;

/// What an executor computes with: data, for logs and for those who plan with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// What computes, in a few words: `cpu, avx2, 2 threads`.
    pub device: String,
    /// State slots and KV blocks.
    pub size: CacheSize,
    /// Bytes of one number of a hidden state on the wire to peers; 4 is fp32, 2 bf16. Sums that come back are fp32 always.
    pub wire_bytes: usize,
    /// A position's logits have the same bits whatever else is in the batch and whoever computes its experts.
    pub same_bits: bool,
}

/// What came of looking after an executor once.
#[derive(Debug)]
pub enum Turn {
    /// Something has come to its end.
    Done(Completion),
    /// Something was done, or is being done; more is to be done.
    Working,
    /// Nothing can be done until the host hands something over.
    Idle,
}

/// The device that computes the model. One thread looks after it.
pub trait Executor {
    /// Where experts are loaded from.
    type Weights;

    /// What it is.
    fn capabilities(&self) -> &Capabilities;

    /// The experts whose weights are here and are not to go.
    fn held(&self) -> &ExpertSet;

    /// Hands a command over. Commands of one step are carried out in order; so are those for peers. One that does not fit ends its step,
    /// or its request, as a completion says.
    fn submit(&mut self, command: Command<Self::Weights>);

    /// What the next turn would compute, if it computes: for whoever has to say how long that may take.
    fn due(&mut self) -> Option<Due>;

    /// Looks after the device: picks up a completion, or does one piece of work. Own steps and peers' requests, streams and prompts share the time,
    /// so that none of them starves.
    fn turn(&mut self) -> Turn;
}
