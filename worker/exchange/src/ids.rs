//! Ids, lanes and time of expert dispatch.

use std::fmt;
use std::time::Duration;

pub use m1_arch::UNUSED;

/// Largest request or answer on the wire. Small enough that a decode frame never waits long behind another one on the
/// same link, large enough that a prefill chunk of M1 (24,576 bytes back a row) still batches 21 rows.
pub const MAX_FRAME_BYTES: usize = 512 * 1024;

/// Pods of one group at most: holders of an expert are one machine word. M1 has 32 experts, so 64 pods hold two copies
/// of everything with one expert index each.
pub const MAX_PODS: usize = 64;

/// A pod of the group, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u16);

impl PodId {
    /// The id as an index into per-pod tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of this pod's own steps. A step opens one exchange per layer, one after the other, under the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A request frame, numbered by the requester; it strictly grows on every link and never comes twice in the life of a
/// process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Lanes are separate connections, so that a long transfer never stands before a short one. Ordered by urgency: the
/// smallest is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Steps that decode: few rows, somebody waits for each.
    Decode,
    /// Steps that read prompts.
    Prefill,
    /// Peers may ask on it last of all; no pod of this version opens it.
    Bulk,
}

impl Lane {
    /// Every lane, most urgent first.
    pub const ALL: [Lane; 3] = [Lane::Decode, Lane::Prefill, Lane::Bulk];

    /// The lane as a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Decode => "decode",
            Lane::Prefill => "prefill",
            Lane::Bulk => "bulk",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A moment of the caller's monotonic clock, in microseconds since any fixed start. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Micros(pub u64);

impl Micros {
    /// Time since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Micros) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment `span` earlier, or the start of the clock.
    pub fn before(self, span: Duration) -> Micros {
        Micros(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The moment `span` later.
    pub fn after(self, span: Duration) -> Micros {
        Micros(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}
