//! How dispatch frames travel between pods. The device thread sees only a [`Transport`], [`Link`]s and [`Inbound`] events, so
//! another transport replaces `grpc_client` and `grpc_server` without touching it. Owns connections and reconnects; decides nothing about experts.
//!
//! One stream per (requester, server, lane): the requester sends hidden states, the server answers with sums. Beside them one
//! of heartbeats, on a connection of its own, which the device thread has no part in. The device threads drive the decode lane's connections
//! themselves, where both do (`device_io`); IO threads drive all others.

mod device_io;
mod device_stream;
mod driven;
mod grpc_client;
mod grpc_server;
mod outgoing;
mod pulse;
mod wire;

use bytes::Bytes;
use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::Frame;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use device_io::{DeviceIo, DeviceIoHandle};
pub use driven::{DrivenPeers, serve_driven};
pub use grpc_client::Dialer;
pub use grpc_server::DispatchService;
pub use wire::{Identity, RequestFrame, RequestHead, WireError, check_answer, check_request, request_frame};

/// Frames of one lane that the server lets a requester have open. With frames of 512 KB this bounds what a slow pod
/// holds for one peer to 8 MB a lane; more would only queue behind a busy device.
pub const CREDITS: u32 = 16;

/// Frames that wait in front of one connection. Credits bound what is sent, so this is never reached by a peer that keeps
/// the rules.
const LINK_QUEUE: usize = 64;

/// HTTP/2 frame and window sizes: 1 MiB frames and 16 MiB windows carry all that a peer's credits allow without a window stall.
pub const HTTP2_FRAME: u32 = 1 << 20;
/// See [`HTTP2_FRAME`].
pub const HTTP2_WINDOW: u32 = 16 << 20;

/// Opens connections to peers. What they say reaches the device thread as [`Inbound`].
pub trait Transport: std::fmt::Debug + Send {
    /// Connects to `peer` on the decode and prefill lanes, and to its heartbeats, and keeps the connections up until `stop` is
    /// cancelled.
    fn dial(&self, peer: &PeerAddress, stop: &CancellationToken);
}

/// Where a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// The peer.
    pub pod: PodId,
    /// host:port.
    pub address: String,
}

/// The sending side of one connection. Cheap to clone; sending never waits.
#[derive(Debug, Clone)]
pub struct Link {
    sender: mpsc::Sender<Frame>,
    closed: CancellationToken,
    /// Distinguishes this connection from an earlier one of the same peer and lane.
    pub generation: u64,
}

impl Link {
    fn new(generation: u64) -> (Self, mpsc::Receiver<Frame>) {
        Self::with_room(generation, LINK_QUEUE)
    }

    pub(crate) fn with_room(generation: u64, frames: usize) -> (Self, mpsc::Receiver<Frame>) {
        let (sender, receiver) = mpsc::channel(frames);
        (Self { sender, closed: CancellationToken::new(), generation }, receiver)
    }

    /// Ends the connection; frames that were handed to it still go out.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Completes when the connection is to end.
    async fn until_closed(&self) {
        self.closed.cancelled().await;
    }

    /// Hands a frame to the connection. False: the connection is gone or stands still beyond its credits; drop it.
    pub fn send(&self, kind: m1_proto::dispatch::frame::Kind) -> bool {
        self.sender.try_send(Frame { kind: Some(kind) }).is_ok()
    }
}

/// What connections tell the device thread.
#[derive(Debug)]
pub enum Inbound {
    /// My connection to a peer stands; I may have `credits` frames open.
    LinkUp {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Where requests go.
        link: Link,
        /// Frames I may have open.
        credits: u32,
    },
    /// My connection to a peer is gone.
    LinkDown {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Which connection.
        generation: u64,
    },
    /// A peer refused this pod, with its words.
    PeerRefused {
        /// The server.
        peer: PodId,
        /// One CamelCase word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// A peer connected to be served.
    ClientUp {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Where answers go.
        link: Link,
    },
    /// A peer that was served is gone.
    ClientDown {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Which connection.
        generation: u64,
    },
    /// A checked request of a peer.
    ClientAsks {
        /// The requester.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Which connection.
        generation: u64,
        /// The rows.
        request: RequestFrame,
    },
    /// A server says something on my connection to it.
    LinkSays {
        /// The server.
        peer: PodId,
        /// Its lane.
        lane: Lane,
        /// Which connection.
        generation: u64,
        /// What.
        said: Said,
    },
}

/// What a server says to a requester.
#[derive(Debug)]
pub enum Said {
    /// The sums of a request of mine.
    Answer {
        /// The request.
        id: u64,
        /// Rows in `sums`.
        tokens: u32,
        /// Little-endian fp32 [tokens, hidden].
        sums: Bytes,
    },
    /// It does not hold what I asked for.
    NotHere {
        /// The request.
        id: u64,
        /// The server's epoch.
        epoch: u64,
    },
    /// I may send more.
    Credit {
        /// Frames.
        frames: u32,
    },
}
