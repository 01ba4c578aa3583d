//! How long is waited for workers that do not serve yet. What counts is progress, of any of them: a group that reads weights for an hour is waited for, and one
//! in which nothing moves for [`PATIENCE`] is given up, by the name of the worker that has come least far. Pure: time is given.

use std::time::Duration;

use m1_proto::worker::{Phase, StatusResponse};
use tokio::time::Instant;

/// Without any progress for this long nothing will come any more. A worker reads the headers of its checkpoint before it answers at all, from a slow disk
/// in a minute or two, and on a machine that starts many at once everything takes its time.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How far a worker has come in its present life; only ever rises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    phase: u8,
    epoch: u64,
    bytes: u64,
}

impl Progress {
    /// By its own words.
    pub fn of(status: &StatusResponse) -> Self {
        let phase = match status.phase() {
            Phase::Unspecified | Phase::Failed => 1,
            Phase::Waiting => 2,
            Phase::Loading => 3,
            Phase::Connecting => 4,
            Phase::Ready | Phase::Draining => 5,
        };
        Self { phase, epoch: status.epoch, bytes: status.bytes_loaded }
    }
}

/// When a group of workers moved last.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    moved: Instant,
    best: Vec<Progress>,
}

impl Patience {
    /// With so many workers, none of which has said anything.
    pub fn new(limit: Duration, workers: usize, now: Instant) -> Self {
        Self { limit, moved: now, best: vec![Progress::default(); workers] }
    }

    /// A worker has come this far.
    pub fn reached(&mut self, seat: usize, progress: Progress, now: Instant) {
        if let Some(best) = self.best.get_mut(seat).filter(|best| **best < progress) {
            *best = progress;
            self.moved = now;
        }
    }

    /// A worker begins anew.
    pub fn begins(&mut self, seat: usize, now: Instant) {
        if let Some(best) = self.best.get_mut(seat) {
            *best = Progress::default();
            self.moved = now;
        }
    }

    /// When nothing will come any more, unless something moves before.
    pub fn ends(&self) -> Instant {
        self.moved + self.limit
    }

    /// How long nothing has moved.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Which of these workers has come least far; the first of several.
    pub fn last(&self, seats: impl Iterator<Item = usize>) -> Option<usize> {
        seats.filter_map(|seat| Some((self.best.get(seat)?, seat))).min().map(|(_, seat)| seat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: Phase, bytes: u64) -> Progress {
        Progress::of(&StatusResponse { phase: phase.into(), bytes_loaded: bytes, ..StatusResponse::default() })
    }

    #[test]
    fn what_moves_is_waited_for_and_what_stands_still_is_not() {
        let start = Instant::now();
        let minute = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut patience = Patience::new(PATIENCE, 2, start);
        assert_eq!(patience.ends(), minute(5));
        patience.reached(1, at(Phase::Loading, 0), minute(4));
        assert_eq!(patience.ends(), minute(9), "one that moves is enough: others wait for it");
        for read in 1..100 {
            patience.reached(1, at(Phase::Loading, read), minute(4 + read));
        }
        assert_eq!(patience.ends(), minute(108), "an hour of weights");
        patience.reached(1, at(Phase::Loading, 99), minute(106));
        patience.reached(1, at(Phase::Waiting, 0), minute(107));
        patience.reached(1, at(Phase::Loading, 98), minute(107));
        assert_eq!(patience.ends(), minute(108), "to and fro is no progress");
        patience.begins(1, minute(107));
        patience.reached(1, at(Phase::Waiting, 0), minute(108));
        assert_eq!(patience.ends(), minute(113), "a process of its own");
    }

    #[test]
    fn the_one_that_has_come_least_far_is_named() {
        let now = Instant::now();
        let mut patience = Patience::new(PATIENCE, 3, now);
        patience.reached(0, at(Phase::Connecting, 7), now);
        assert_eq!(patience.last(0..3), Some(1));
        patience.reached(1, at(Phase::Waiting, 0), now);
        assert_eq!(patience.last(0..3), Some(2));
        assert_eq!(patience.last(0..2), Some(1));
        assert_eq!(patience.last(0..0), None);
    }
}
