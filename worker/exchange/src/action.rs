//! What an exchange wants done. Actions are carried out in the order given.

use m1_arch::{ExpertId, LayerId};

use crate::error::ExchangeError;
use crate::ids::{Lane, PodId, RequestId, StepId};
use crate::table::TableVersion;

/// An output of [`Exchange::handle`](crate::Exchange::handle).
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Compute these with own experts. It counts as done when it is handed out: the caller may put it off behind peers'
    /// requests, but not behind `combine` of the layer. Sends of the same event come before it, so that the network works
    /// while the device does.
    Local {
        /// The step.
        step: StepId,
        /// The MoE layer.
        layer: LayerId,
        /// Rows of the step, ascending.
        rows: Vec<u32>,
        /// `[rows.len(), top_k]`: the routing's experts, [`UNUSED`](crate::UNUSED) where a place is not part of this. The
        /// weight of a place is the routing's at (row, place).
        experts: Vec<u16>,
    },
    /// Send one request frame to a peer. A credit is already taken for it. If it cannot be sent, the caller drops the link
    /// and says `LinkDown`.
    Send {
        /// The step.
        step: StepId,
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Number of the request.
        id: RequestId,
        /// Epoch of the newest table.
        epoch: u64,
        /// The MoE layer.
        layer: LayerId,
        /// Rows of the step: hidden states of these are gathered, in this order.
        rows: Vec<u32>,
        /// `[rows.len(), top_k]`, as in `Local`.
        experts: Vec<u16>,
    },
    /// Add the sums of the answer just handled to the step's accumulator.
    Accept {
        /// The step.
        step: StepId,
        /// The request.
        id: RequestId,
        /// Rows of the step.
        rows: Vec<u32>,
        /// `None`: `rows[i]` gets row i of the answer, all of them. `Some(p)`: `rows[i]` gets row `p[i]` of the answer, and
        /// rows of the answer that `p` does not name came too late.
        positions: Option<Vec<u32>>,
    },
    /// Throw the answer just handled away: late, a duplicate, or of an aborted step.
    Discard {
        /// The request.
        id: RequestId,
    },
    /// Every (row, place) of the step is accounted for exactly once: combine and go on. Its id is free again.
    Complete {
        /// The step.
        step: StepId,
    },
    /// The step stands still: no reachable, living pod holds these experts. It goes on by itself (`Resumed`) when a table,
    /// a link or a pod comes back, else without the rows that need them (`GivenUp`) after the configured wait.
    Parked {
        /// The step.
        step: StepId,
        /// The MoE layer.
        layer: LayerId,
        /// The experts, ascending.
        missing: Vec<ExpertId>,
    },
    /// A parked step goes on.
    Resumed {
        /// The step.
        step: StepId,
    },
    /// A parked step goes on without these rows, because nobody could be asked for their experts for the configured wait, or
    /// the caller waits no longer. Nothing more comes for them: their sums are worthless, all other rows' are whole.
    GivenUp {
        /// The step.
        step: StepId,
        /// Rows of the step, ascending; at least one.
        rows: Vec<u32>,
        /// Why.
        error: ExchangeError,
    },
    /// The step's exchange ended without success; late answers to it are discarded.
    Failed {
        /// The step.
        step: StepId,
        /// Why.
        error: ExchangeError,
    },
    /// Close my connection to this peer: it broke the protocol or owes an answer for too long. It already counts as down;
    /// a later `LinkDown` for it does no harm.
    DropLink {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Why.
        error: ExchangeError,
    },
    /// Close this peer's connection to me: it broke the protocol. It already counts as down. The request that broke it, if
    /// any, is not kept.
    DropClient {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Why.
        error: ExchangeError,
    },
    /// Tell a requester that it may send more frames.
    Grant {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// How many more.
        frames: u32,
    },
    /// Send the sums of the request just served.
    Reply {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Its number for the request.
        id: RequestId,
    },
    /// Tell a requester that I do not hold what it asks for; its payload can go.
    ReplyNotHere {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Its number for the request.
        id: RequestId,
        /// Epoch of my table.
        epoch: u64,
    },
    /// Nobody waits for this request any more (its connection is gone, or it came twice): its payload can go, and its sums
    /// if it was being served. Where the same number is still queued, that one is another request and stays.
    Forget {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Its number for the request.
        id: RequestId,
    },
    /// The table of the event is older than the present one and was not taken.
    TableRefused {
        /// The refused one.
        given: TableVersion,
        /// The present one.
        current: TableVersion,
    },
}

/// A peer's request to compute now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serve {
    /// The requester.
    pub peer: PodId,
    /// Its lane.
    pub lane: Lane,
    /// Its number for the request.
    pub id: RequestId,
    /// The MoE layer.
    pub layer: LayerId,
    /// Rows.
    pub rows: usize,
}
