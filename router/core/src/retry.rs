//! The retry budget: within ten seconds a fifth of the requests may be retries, and beyond these ten a second. Without it a fault of all workers would
//! double the load on them just when they can bear it least.

use std::time::Duration;

/// Ten buckets of a second: long enough to hold a burst, short enough to forget one.
const BUCKETS: usize = 10;
/// Retries per hundred requests. Envoy's and Finagle's default: a worker of five may fail everything.
const PERCENT: u64 = 20;
/// Retries a second that are always allowed: what a small deployment fails at once overloads nobody.
const FLOOR: u64 = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    requests: u64,
    retries: u64,
}

/// Counts requests and retries of the last ten seconds.
#[derive(Clone, Debug, Default)]
pub struct RetryBudget {
    buckets: [Bucket; BUCKETS],
}

impl RetryBudget {
    /// A request came.
    pub fn requested(&mut self, now: Duration) {
        if let Some(bucket) = self.bucket(now) {
            bucket.requests += 1;
        }
    }

    /// Takes one retry, if there is one.
    pub fn try_spend(&mut self, now: Duration) -> bool {
        let since = now.as_secs().saturating_sub(BUCKETS as u64 - 1);
        let recent = self.buckets.iter().filter(|bucket| bucket.second >= since);
        let (requests, retries) = recent.fold((0, 0), |(requests, retries), b| (requests + b.requests, retries + b.retries));
        let allowed = FLOOR * BUCKETS as u64 + requests * PERCENT / 100;
        let spends = retries < allowed;
        if let Some(bucket) = self.bucket(now).filter(|_| spends) {
            bucket.retries += 1;
        }
        spends
    }

    fn bucket(&mut self, now: Duration) -> Option<&mut Bucket> {
        let second = now.as_secs();
        let bucket = self.buckets.get_mut(usize::try_from(second % BUCKETS as u64).unwrap_or(0))?;
        if bucket.second != second {
            *bucket = Bucket { second, ..Bucket::default() };
        }
        Some(bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Retries that are granted when so many are asked for at once.
    fn granted(budget: &mut RetryBudget, now: Duration, asked: usize) -> usize {
        (0..asked).filter(|_| budget.try_spend(now)).count()
    }

    #[test]
    fn a_fifth_of_the_requests_and_a_floor() {
        let mut budget = RetryBudget::default();
        let now = Duration::from_secs(77);
        assert_eq!(granted(&mut budget, now, 1000), 100, "the floor");
        (0..1000).for_each(|_| budget.requested(now));
        assert_eq!(granted(&mut budget, now, 1000), 200, "a fifth");
        assert_eq!(granted(&mut budget, now, 10), 0);
    }

    #[test]
    fn it_is_full_again_when_the_window_has_passed() {
        let mut budget = RetryBudget::default();
        let start = Duration::from_millis(5900);
        (0..500).for_each(|_| budget.requested(start));
        assert_eq!(granted(&mut budget, start, 1000), 200);
        assert_eq!(granted(&mut budget, Duration::from_millis(14900), 1000), 0, "nine seconds later the burst still counts");
        assert_eq!(granted(&mut budget, Duration::from_millis(15000), 1000), 100, "the old requests are forgotten too");
        assert_eq!(granted(&mut budget, Duration::from_secs(3600), 1000), 100);
    }

    #[test]
    fn the_share_holds_over_a_long_time() {
        let mut budget = RetryBudget::default();
        let (mut requests, mut retries) = (0u32, 0u32);
        for millis in (0..120_000).step_by(5) {
            let now = Duration::from_millis(millis);
            budget.requested(now);
            requests += 1;
            retries += u32::from(budget.try_spend(now));
        }
        // 200 requests a second, all of which fail: 20 % and the floor of 10 a second.
        let most = requests / 5 + 120 * 10 + 300;
        assert!(retries <= most && retries >= requests / 5, "{retries} of {requests}, at most {most}");
    }
}
