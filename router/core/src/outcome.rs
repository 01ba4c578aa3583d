//! What a caller tells of an attempt, and what it is told to do: the words between the balancer and whoever sends requests.

use crate::choice::Reason;
use crate::worker::WorkerId;

/// A request's place on a worker. Each is given once, so what is told of one is never taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat {
    /// Never given again.
    pub number: u64,
    /// Where.
    pub worker: WorkerId,
}

/// What became of an attempt. A client that went away, or a request that is wrong in itself, says nothing of the worker: such a seat is only released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its first token came, or its end where there was none. Told once, when it happens.
    Served,
    /// Its answer is whole. After `Served`, or instead of it.
    Whole,
    /// It failed before its first token: an error, garbage, an end without a beginning.
    Failed,
    /// The connection could not be made, or ended, before the first token: the worker's process is likely gone.
    Lost,
    /// No first token came by its deadline. Where the sequence may still wait in the worker's own queue ([`crate::Balancer::queues`]) that is `Full`.
    Stalled,
    /// After its first token it failed, was lost, sent garbage, or stalled.
    Broken,
    /// The worker has no room, or had none by the deadline.
    Full,
    /// The worker takes nothing now: it loads or drains.
    NotReady,
}

impl Outcome {
    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Whole => "whole",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Stalled => "stalled",
            Self::Broken => "broken",
            Self::Full => "full",
            Self::NotReady => "not_ready",
        }
    }
}

/// What to do with a request after what was told of its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing more is to be decided: it runs, or it has ended.
    Settled,
    /// Release the seat and enter the request again, urgent.
    Again,
    /// Release the seat and tell the client: no further worker may try it.
    GiveUp(Reason),
}
