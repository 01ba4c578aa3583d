//! Connections: one per (requester, server, lane). Each direction keeps its order; different ones do not wait for each
//! other. What is under way when a connection breaks is lost.

use m1_exchange::{Beat, Lane, PodId, RequestId};

use super::payload::{AskedRow, Sum};
use super::rng::Rng;

/// Heartbeats have a connection of their own. No data goes on this lane here, so it stands for that one.
pub const PULSE: Lane = Lane::Bulk;

/// Names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    pub requester: PodId,
    pub server: PodId,
    pub lane: Lane,
}

/// What travels.
#[derive(Debug, Clone)]
pub enum Wire {
    Hello,
    HelloBack { credits: u32 },
    Request { id: RequestId, epoch: u64, layer: u16, rows: Vec<AskedRow> },
    Answer { id: RequestId, sums: Vec<Sum> },
    NotHere { id: RequestId, epoch: u64 },
    Credit { frames: u32 },
    Beat(Beat),
}

impl Wire {
    pub fn to_server(&self) -> bool {
        matches!(self, Wire::Hello | Wire::Request { .. })
    }
}

#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Grows with every beginning and every end, so that nothing of an older one is taken for this one's.
    pub generation: u64,
    pub open: bool,
    /// The server's greeting is on its way or there: heartbeats may follow.
    pub greeted: bool,
    /// Until when nothing gets through.
    pub stalled_until: u64,
    /// Not connected anew before.
    pub cut_until: u64,
    /// Arrival of the last message, to the server and back.
    last: [u64; 2],
}

impl Connection {
    /// When a message that is sent now arrives.
    pub fn arrival(&mut self, rng: &mut Rng, now: u64, to_server: bool, latency: u64) -> u64 {
        let sent = now.max(self.stalled_until) + rng.within(latency / 4..latency);
        let last = &mut self.last[usize::from(to_server)];
        *last = sent.max(*last + 1);
        *last
    }

    pub fn begin(&mut self) {
        *self = Connection { generation: self.generation + 1, open: true, ..Connection::default() };
    }

    pub fn end(&mut self) {
        *self = Connection { generation: self.generation + 1, cut_until: self.cut_until, ..Connection::default() };
    }
}
