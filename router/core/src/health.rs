//! Whether a worker can be reached. `Up` from its first status until its stream breaks; then the next try comes after a backoff that doubles.

use std::time::Duration;

use crate::rng::Rng;
use crate::worker::{Phase, WorkerStats};

/// Waits between tries: `first * 2^failures`, at most `most`, of which the upper half is random so that routers do not knock in step.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer.
    pub most: Duration,
}

/// A restarted pod is found within two seconds, and a pod that is gone costs a connection attempt every one to two.
pub const RECONNECT: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(2) };

impl Backoff {
    /// The wait after `failures` failures in a row (at least one).
    pub fn wait(&self, failures: u32, rng: &mut Rng) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1).min(30)).unwrap_or(u32::MAX));
        doubled.min(self.most).mul_f64(0.5 + rng.unit() / 2.0)
    }
}

/// One worker's reachability and last status.
#[derive(Clone, Debug, Default)]
pub struct Health {
    stats: Option<WorkerStats>,
    failures: u32,
}

impl Health {
    /// A status came.
    pub fn heard(&mut self, stats: WorkerStats) {
        self.stats = Some(stats);
        self.failures = 0;
    }

    /// The stream broke or could not be opened; says how long to wait before the next try.
    pub fn lost(&mut self, backoff: Backoff, rng: &mut Rng) -> Duration {
        self.stats = None;
        self.failures = self.failures.saturating_add(1);
        backoff.wait(self.failures, rng)
    }

    /// The last status, while the worker can be reached.
    pub fn stats(&self) -> Option<&WorkerStats> {
        self.stats.as_ref()
    }

    /// Reachable and ready.
    pub fn is_ready(&self) -> bool {
        self.stats.is_some_and(|stats| stats.phase == Phase::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let mut rng = Rng::new(1);
        let mut health = Health::default();
        let waits: Vec<f64> = (0..12).map(|_| health.lost(RECONNECT, &mut rng).as_secs_f64()).collect();
        assert!((0.025..=0.05).contains(&waits[0]), "{waits:?}");
        assert!((0.1..=0.2).contains(&waits[2]), "{waits:?}");
        assert!((1.0..=2.0).contains(&waits[11]), "{waits:?}");
        assert!(Backoff::wait(&RECONNECT, u32::MAX, &mut rng) <= RECONNECT.most);
    }

    #[test]
    fn a_status_ends_the_failures() {
        let mut rng = Rng::new(1);
        let mut health = Health::default();
        for _ in 0..9 {
            health.lost(RECONNECT, &mut rng);
        }
        health.heard(WorkerStats { phase: Phase::Ready, ..WorkerStats::default() });
        assert!(health.is_ready());
        assert!(health.lost(RECONNECT, &mut rng) <= RECONNECT.first);
        assert!(!health.is_ready() && health.stats().is_none());
    }
}
