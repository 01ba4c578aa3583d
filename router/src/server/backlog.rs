//! What is kept for clients that do not take it: whole answers that the kernel has no room for, log-probabilities that nobody has read. There is a bound on
//! all of it together; beyond it whoever has more than most, and does not move, is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of all connections together, beyond which slow clients are given up.
const MOST: usize = 128 << 20;
/// A client that has taken nothing for so long does not move. Where twice the bound is kept half of it is enough, and so on, so that what is kept is
/// bounded by what clients really take.
const STILL: Duration = Duration::from_secs(1);

static ALL: Sums = Sums::new();

/// The sums over some connections.
#[derive(Debug)]
struct Sums {
    bytes: AtomicUsize,
    /// Connections for which anything is kept.
    holders: AtomicUsize,
}

impl Sums {
    const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0), holders: AtomicUsize::new(0) }
    }

    fn is_hog(&self, bytes: usize, still: Duration) -> bool {
        let (all, holders) = (self.bytes.load(Ordering::Relaxed), self.holders.load(Ordering::Relaxed));
        all > MOST && bytes >= all / holders.max(1) && still.as_secs_f64() * all as f64 >= STILL.as_secs_f64() * MOST as f64
    }
}

/// What is kept for one connection's client.
#[derive(Debug, Default)]
pub struct Backlog(AtomicUsize);

impl Backlog {
    /// Of a new connection.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// More is kept.
    pub fn add(&self, bytes: usize) {
        if bytes > 0 && self.0.fetch_add(bytes, Ordering::Relaxed) == 0 {
            ALL.holders.fetch_add(1, Ordering::Relaxed);
        }
        ALL.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Some of it is not any more.
    pub fn remove(&self, bytes: usize) {
        if bytes > 0 && self.0.fetch_sub(bytes, Ordering::Relaxed) == bytes {
            ALL.holders.fetch_sub(1, Ordering::Relaxed);
        }
        ALL.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether anything is.
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether a client that has taken nothing for so long is given up for the sake of the others.
    pub fn is_hog(&self, still: Duration) -> bool {
        ALL.is_hog(self.0.load(Ordering::Relaxed), still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_those_go_that_have_most_and_do_not_move() {
        const MIB: usize = 1 << 20;
        let sums = |mib: usize, holders: usize| Sums { bytes: AtomicUsize::new(mib * MIB), holders: AtomicUsize::new(holders) };
        let (second, moment) = (Duration::from_secs(1), Duration::from_millis(100));
        assert!(!sums(128, 1).is_hog(128 * MIB, second), "within the bound everybody has the time that they need");
        let over = sums(129, 50);
        assert!(over.is_hog(3 * MIB, second) && !over.is_hog(3 * MIB, moment), "whoever moves stays");
        assert!(!over.is_hog(2 * MIB, second), "and whoever has little");
        assert!(sums(3000, 1000).is_hog(3 * MIB, moment), "the more is kept, the less is borne");
    }
}
