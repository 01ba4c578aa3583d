//! What happens to an exchange. Payload bytes (hidden states, sums, weights) stay with the caller.
//!
//! A *link* is my connection to a peer, on which I request; a *client* is a peer's connection to me, on which I serve.
//! Both exist once per (peer, lane). When a connection replaces another one, the caller says down, then up, and tells
//! nothing any more of what the older connection still has to say.

use std::sync::Arc;

use m1_arch::{ExpertSet, LayerId};

use crate::ids::{Lane, PodId, RequestId, StepId};
use crate::pulse::Life;
use crate::table::DispatchTable;

/// An input of [`Exchange::handle`](crate::Exchange::handle).
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// My own step reached the MoE boundary of `layer` with this routing. Leads to `Local` and `Send` now or later, and
    /// in the end to exactly one of `Complete` and `Failed`, unless `Abort` comes first.
    Open {
        /// The step; it has no other exchange open.
        step: StepId,
        /// Lane of its frames.
        lane: Lane,
        /// The MoE layer.
        layer: LayerId,
        /// `[rows, top_k]`, [`UNUSED`](crate::UNUSED) where a place is unused; top_k as configured.
        experts: &'a [u16],
    },
    /// The step waits for nobody: what it is parked for is given up now (`GivenUp`). Nothing where it is not parked.
    GiveUp {
        /// The step; an unknown one is ignored.
        step: StepId,
    },
    /// The step's exchange is no longer wanted: its sequences are gone. Late answers to it are discarded.
    Abort {
        /// The step; an unknown one is ignored.
        step: StepId,
    },
    /// The frame of a `Send` was not sent, and will not be: its step has ended before the rows were there. Its credit is free again.
    Unsent {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// My request; an unknown one is ignored.
        id: RequestId,
    },
    /// A peer's sums for a request of mine. The action list of this very event holds one `Accept` or one `Discard` with
    /// this id.
    Answer {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// My request.
        id: RequestId,
        /// Rows of sums that came.
        rows: usize,
    },
    /// A peer does not hold an expert that my request asks for; it computed nothing of it.
    NotHere {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// My request.
        id: RequestId,
        /// The peer's epoch.
        epoch: u64,
    },
    /// A peer refuses this pod (other weights, other protocol): none of my links to it can be used until `LinkUp`.
    PeerRefused {
        /// The server.
        peer: PodId,
    },
    /// My connection to a peer stands, greetings done.
    LinkUp {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Frames that I may have open on it.
        credits: u32,
    },
    /// My connection to a peer is gone. What I asked there is lost and asked elsewhere, or again.
    LinkDown {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
    },
    /// A peer lets me send more frames.
    CreditGranted {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// How many more.
        frames: u32,
    },
    /// What is known of a peer by its heartbeats. Told of every peer before each `Tick`.
    Life {
        /// The peer.
        peer: PodId,
        /// As of now, from its [`Pulse`](crate::Pulse).
        life: Life,
    },
    /// A new placement. An older one than the present is refused (`TableRefused`), the same one again is ignored.
    Table(Arc<DispatchTable>),
    /// What this pod really holds from now on, whatever the table says. What is taken away must no longer be computed
    /// by requests that `next_request` returned before, so the caller serves those first.
    Hold(Arc<ExpertSet>),
    /// A peer connected to be served; it was granted the configured credits in the greeting.
    ClientUp {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
    },
    /// A served peer's connection is gone; what it asked is forgotten.
    ClientDown {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
    },
    /// A peer asks me. The caller keeps the payload under (peer, lane, id) until `Serve` gave it back and `Reply`,
    /// `ReplyNotHere` or `Forget` came.
    Request {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Its number for the request.
        id: RequestId,
        /// Its epoch; I answer for what I hold whatever it is.
        epoch: u64,
        /// The MoE layer.
        layer: LayerId,
        /// Rows.
        rows: usize,
        /// `[rows, slots]`, [`UNUSED`](crate::UNUSED) where a place is not for me.
        experts: &'a [u16],
    },
    /// The device finished a request that `next_request` returned; the caller has its sums.
    Served {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Its number for the request.
        id: RequestId,
    },
    /// Time passes. Comes at least every 100 ms, or the end of waiting comes late by as much.
    Tick,
}
