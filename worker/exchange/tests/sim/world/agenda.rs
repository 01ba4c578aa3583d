//! What is going to happen, in the order of its time.

use m1_exchange::{PodId, Serve};

use crate::sim::network::{Path, Wire};
use crate::sim::pod::Inbound;

/// Something that is going to happen.
#[derive(Debug, Clone)]
pub(super) enum Next {
    Arrive {
        path: Path,
        generation: u64,
        wire: Wire,
    },
    /// One end notices that a connection is gone.
    Notice {
        path: Path,
        generation: u64,
        server: bool,
    },
    Connect(Path),
    Inbox {
        pod: PodId,
        life: u64,
        inbound: Inbound,
    },
    Tick {
        pod: PodId,
        life: u64,
    },
    Turn {
        pod: PodId,
        life: u64,
    },
    Served {
        pod: PodId,
        life: u64,
        serve: Serve,
    },
    Restart(PodId),
    Steps(PodId),
    Trouble,
    Heal,
    LastRound,
}

#[derive(Debug)]
pub(super) struct Scheduled {
    pub(super) at: u64,
    /// Keeps what is due at the same time in the order of planning.
    pub(super) turn: u64,
    pub(super) next: Next,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}
