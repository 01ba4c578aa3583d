//! What a worker did of late, and whether that is worse than what the others did.

use std::time::Duration;

/// Three buckets of ten seconds.
const BUCKETS: usize = 3;
const BUCKET_SECONDS: u64 = 10;
/// Fewer failures say nothing.
const LEAST_FAILURES: u32 = 5;
/// A worker that fails less than this of its requests is kept, whatever the others do.
const LEAST_SHARE: f64 = 0.3;
/// How many standard errors worse than the others: by chance once in a thousand times.
const STANDARD_ERRORS: f64 = 3.0;

/// Requests served and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// That had a first token.
    pub served: u32,
    /// That failed by the worker's fault, or broke after their first token.
    pub failed: u32,
}

impl Tally {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self { served: self.served.saturating_add(other.served), failed: self.failed.saturating_add(other.failed) }
    }

    /// Whether this is far worse than what the others did, so that chance does not explain it: a test of two proportions.
    pub fn is_outlier(self, others: Self) -> bool {
        // Where the others did nothing, they are taken to have served as many.
        let others = if others == Self::default() { Self { served: self.served + self.failed, failed: 0 } } else { others };
        let (own_all, others_all) = (self.all(), others.all());
        let (own, theirs) = (f64::from(self.failed) / own_all, f64::from(others.failed) / others_all);
        let both = f64::from(self.failed.saturating_add(others.failed)) / (own_all + others_all);
        let error = (both * (1.0 - both) * (1.0 / own_all + 1.0 / others_all)).sqrt();
        self.failed >= LEAST_FAILURES && own >= LEAST_SHARE && own - theirs >= STANDARD_ERRORS * error
    }

    fn all(self) -> f64 {
        f64::from(self.served) + f64::from(self.failed)
    }
}

/// Tallies of the last half minute.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    buckets: [(u64, Tally); BUCKETS],
}

impl Window {
    /// Counts one.
    pub fn count(&mut self, now: Duration, served: bool) {
        let span = now.as_secs() / BUCKET_SECONDS;
        let Some(bucket) = self.buckets.get_mut(usize::try_from(span % BUCKETS as u64).unwrap_or(0)) else { return };
        if bucket.0 != span {
            *bucket = (span, Tally::default());
        }
        bucket.1 = bucket.1.plus(Tally { served: u32::from(served), failed: u32::from(!served) });
    }

    /// All of them.
    pub fn tally(&self, now: Duration) -> Tally {
        let since = (now.as_secs() / BUCKET_SECONDS).saturating_sub(BUCKETS as u64 - 1);
        self.buckets.iter().filter(|(span, _)| *span >= since).fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(served: u32, failed: u32) -> Tally {
        Tally { served, failed }
    }

    #[test]
    fn an_outlier_is_far_worse_than_the_others() {
        let cases = [
            (tally(0, 8), tally(20, 0), true, "breaks all it has"),
            (tally(0, 5), tally(0, 0), true, "nobody else did anything"),
            (tally(0, 4), tally(90, 0), false, "four are too few"),
            (tally(30, 10), tally(90, 0), false, "a quarter is bearable"),
            (tally(30, 20), tally(90, 0), true, "two fifths are not"),
            (tally(10, 6), tally(30, 18), false, "all are as bad"),
            (tally(10, 8), tally(30, 12), false, "somewhat worse, as chance will have it"),
            (tally(100, 80), tally(300, 120), true, "the same shares of ten times as many are no chance"),
            (tally(u32::MAX, u32::MAX), tally(u32::MAX, 0), true, "no overflow"),
        ];
        for (own, others, outlier, why) in cases {
            assert_eq!(own.is_outlier(others), outlier, "{own:?} beside {others:?}: {why}");
        }
    }

    #[test]
    fn the_window_forgets_after_half_a_minute() {
        let mut window = Window::default();
        let at = Duration::from_secs;
        (0..3).for_each(|_| window.count(at(105), false));
        window.count(at(112), true);
        assert_eq!(window.tally(at(129)), tally(1, 3));
        assert_eq!(window.tally(at(130)), tally(1, 0));
        assert_eq!(window.tally(at(140)), tally(0, 0));
        window.count(at(1105), true);
        assert_eq!(window.tally(at(1105)), tally(1, 0));
    }
}
