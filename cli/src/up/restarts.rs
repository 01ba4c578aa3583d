//! When a process that died is started again: `spec.worker.restartBudget`, with a growing pause. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Pause before the first restart: long enough for the kernel to give memory back.
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// The restarts of one process.
#[derive(Debug, Clone)]
pub struct Restarts {
    budget: u32,
    window: Duration,
    times: VecDeque<Instant>,
}

impl Restarts {
    /// At most `budget` restarts within `window`.
    pub fn new(budget: u32, window: Duration) -> Self {
        Self { budget, window, times: VecDeque::new() }
    }

    /// The process died at `now`: the pause before it is started again; none where the budget is spent.
    pub fn died(&mut self, now: Instant) -> Option<Duration> {
        while self.times.front().is_some_and(|&time| now.duration_since(time) >= self.window) {
            self.times.pop_front();
        }
        if self.times.len() >= self.budget as usize {
            return None;
        }
        let doublings = u32::try_from(self.times.len()).unwrap_or(u32::MAX);
        self.times.push_back(now);
        Some(FIRST.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST))
    }

    /// Restarts within the window that ended with the last death.
    pub fn used(&self) -> usize {
        self.times.len()
    }

    /// Restarts that the window allows.
    pub fn budget(&self) -> u32 {
        self.budget
    }

    /// The window.
    pub fn window(&self) -> Duration {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_until_the_budget_is_spent() {
        let (mut restarts, now) = (Restarts::new(3, Duration::from_secs(3600)), Instant::now());
        let pauses: Vec<_> = (0..4).map(|_| restarts.died(now).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [Some(250), Some(500), Some(1000), None]);
        assert_eq!((restarts.used(), restarts.budget()), (3, 3));
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let (mut restarts, now) = (Restarts::new(1, Duration::from_secs(60)), Instant::now());
        assert!(restarts.died(now).is_some());
        assert_eq!(restarts.died(now + Duration::from_secs(59)), None);
        assert_eq!(restarts.died(now + Duration::from_secs(60)), Some(FIRST));
    }

    #[test]
    fn the_pause_is_bounded_and_no_budget_is_no_restart() {
        let (mut restarts, now) = (Restarts::new(100, Duration::from_secs(3600)), Instant::now());
        assert_eq!((0..100).filter_map(|_| restarts.died(now)).last(), Some(LONGEST));
        assert_eq!(Restarts::new(0, Duration::from_secs(60)).died(now), None);
    }
}
