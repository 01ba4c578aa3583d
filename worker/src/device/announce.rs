//! [`Announcer`]: says, before a turn of the device that may take long, how long. Peers then know that the device is at work
//! and does not hang. What a turn takes is learned from those before it, by kind and size; before the first of a size it is
//! reckoned from its floating-point operations at a pace that any machine keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use m1_engine::{Due, Piece};
use m1_exchange::LONG_TURN;

use crate::status::SharedStatus;

/// Calls take up to this times as long as those before: another process may want the CPU, or caches are cold.
const MARGIN: f64 = 2.0;
/// Pace of calls of a size that none was of before: one core that waits for memory at each product does better.
const COLD: f64 = 1.0 / 2e9;
/// Part of a faster call that counts against the slower ones before it, so that one that was slow by chance is soon forgotten.
const FORGET: f64 = 0.25;
/// Rate at which weights are read at least. Also the one by which the probes' budget for starting is made.
const READ_RATE: f64 = 50e6;
/// What loading takes beside reading: memory is given back, asked for and zeroed.
const LOADING: Duration = Duration::from_secs(10);

/// Seconds per operation by size of the call: one place for each power of two.
#[derive(Debug, Clone)]
struct Pace([Option<f64>; 64]);

impl Pace {
    fn bucket(operations: f64) -> usize {
        (operations.max(1.0).log2() as usize).min(63)
    }

    /// Seconds that a call may take. A smaller one takes more for each operation, so that one's pace will do.
    fn expect(&self, operations: f64) -> f64 {
        let known = self.0[..=Self::bucket(operations)].iter().rev().find_map(|pace| *pace);
        operations * known.unwrap_or(COLD) * MARGIN
    }

    fn took(&mut self, operations: f64, seconds: f64) {
        let (pace, known) = (seconds / operations.max(1.0), &mut self.0[Self::bucket(operations)]);
        *known = Some(known.map_or(pace, |known| if pace > known { pace } else { known + (pace - known) * FORGET }));
    }
}

/// What is known of a device's pace.
#[derive(Debug)]
pub(super) struct Announcer {
    status: Arc<SharedStatus>,
    paces: [Pace; Piece::KINDS],
}

impl Announcer {
    /// Announces long turns through `status`.
    pub fn new(status: Arc<SharedStatus>) -> Self {
        Self { status, paces: std::array::from_fn(|_| Pace([None; 64])) }
    }

    /// Takes a turn, announced if need be, and learns.
    pub fn turn<T>(&mut self, due: Option<Due>, turn: impl FnOnce() -> T) -> T {
        let Some(Due { piece, operations }) = due else { return turn() };
        let expected = Duration::try_from_secs_f64(self.paces[piece as usize].expect(operations)).unwrap_or(Duration::MAX);
        let long = expected > LONG_TURN;
        if long {
            self.status.announce(expected);
        }
        let began = Instant::now();
        let done = turn();
        self.paces[piece as usize].took(operations, began.elapsed().as_secs_f64());
        if long {
            self.status.turn();
        }
        done
    }
}

/// The reading of so many bytes, for an executor that tells how far it is. Every piece that was read is progress, and what is
/// left is announced anew.
pub(super) fn reading(status: &SharedStatus, bytes: u64) -> impl FnMut(u64) + '_ {
    let announce = move |read: u64| {
        let left = bytes.saturating_sub(read) as f64 / READ_RATE;
        status.announce(LOADING.saturating_add(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)));
    };
    announce(0);
    move |read| {
        status.set_bytes_loaded(read);
        announce(read);
    }
}

#[cfg(test)]
mod tests {
    use m1_exchange::LONGEST_ANNOUNCED;

    use super::*;

    /// What was announced when the turn was taken.
    fn seen(announcer: &mut Announcer, piece: Piece, operations: f64) -> (u64, Duration) {
        let status = announcer.status.clone();
        announcer.turn(Some(Due { piece, operations }), || (status.progress(), status.announced()))
    }

    #[test]
    fn a_long_turn_is_announced_before_it_begins_and_is_over_when_it_ends() {
        let status = Arc::new(SharedStatus::new(Default::default()));
        let mut announcer = Announcer::new(status.clone());
        // Softmax attention of 512 rows of M1 behind 400,000 tokens.
        let (progress, announced) = seen(&mut announcer, Piece::Softmax, 6.8e12);
        assert!(progress == 1 && announced > LONG_TURN && announced <= LONGEST_ANNOUNCED, "{announced:?}");
        assert_eq!((status.progress(), status.announced()), (2, Duration::ZERO));
        assert_eq!(seen(&mut announcer, Piece::Softmax, 6.8e12), (2, Duration::ZERO), "it is known by now that this one is fast");
        assert!(seen(&mut announcer, Piece::Experts, 4e10).1 > LONG_TURN, "experts have a pace of their own");
        assert_eq!(seen(&mut announcer, Piece::Experts, 4e10).1, Duration::ZERO);
    }

    #[test]
    fn what_is_short_is_not_announced() {
        let status = Arc::new(SharedStatus::new(Default::default()));
        let mut announcer = Announcer::new(status.clone());
        assert_eq!(seen(&mut announcer, Piece::Lightning, 1e8), (0, Duration::ZERO));
        assert_eq!(announcer.turn(None, || status.announced()), Duration::ZERO);
        assert_eq!(status.progress(), 0);
    }

    #[test]
    fn a_pace_is_learned_by_size() {
        let mut pace = Pace([None; 64]);
        assert_eq!(pace.expect(2e9), MARGIN);
        pace.took(1e9, 5.0);
        assert_eq!((pace.expect(1e9), pace.expect(8e9)), (10.0, 80.0), "larger ones go by the next smaller size");
        assert_eq!(pace.expect(1e6), 1e6 * COLD * MARGIN, "and smaller ones do not");
        pace.took(1e9, 1.0);
        assert_eq!(pace.expect(1e9), 8.0);
        pace.took(1e9, 7.0);
        assert_eq!(pace.expect(1e9), 14.0, "a slower one counts at once");
        assert_eq!((Pace::bucket(0.0), Pace::bucket(f64::MAX)), (0, 63));
    }

    #[test]
    fn reading_announces_what_is_left_with_every_piece() {
        let status = SharedStatus::new(Default::default());
        let mut tell = reading(&status, 500_000_000);
        let near = |wanted: u64| {
            let announced = status.announced();
            announced <= Duration::from_secs(wanted) && announced > Duration::from_secs(wanted - 1)
        };
        assert!(status.progress() == 1 && near(20));
        tell(250_000_000);
        assert!(status.progress() == 2 && near(15));
        tell(600_000_000);
        assert!(status.progress() == 3 && near(10));
        let _ = reading(&status, u64::MAX);
        assert!(near(LONGEST_ANNOUNCED.as_secs()));
    }
}
