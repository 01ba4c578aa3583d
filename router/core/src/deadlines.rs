//! How long a worker may be silent before it counts as stalled.

use std::time::Duration;

/// The bounds of a worker's silence. Both are generous, because to give up costs what was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To the first token of a short prompt.
    pub first: Duration,
    /// Prompt tokens per second of the slowest worker that is still of use; what a prompt needs beyond `first`. 0 is taken as 1.
    pub rate: u32,
    /// Between two events of an answer that has begun.
    pub between: Duration,
}

/// A worker that gives signs of progress has so many times as long to the first token, and no longer: signs are no tokens.
const WITH_SIGNS: u32 = 4;

impl Default for Deadlines {
    /// 40 s, because a step may park 30 s for a lost expert (`experts.loss.waitSeconds`) and its worker should be heard on that first. 200 tokens/s: a
    /// pod reads thousands, and shares them among the prompts it reads at once, some tens of them.
    fn default() -> Self {
        Self { first: Duration::from_secs(40), rate: 200, between: Duration::from_secs(40) }
    }
}

impl Deadlines {
    /// How long the first token of a prompt of so many tokens may take once a worker has it.
    pub fn first_token(&self, prompt: u32) -> Duration {
        self.first.saturating_add(Duration::from_secs_f64(f64::from(prompt) / f64::from(self.rate.max(1))))
    }

    /// How long the next event may take after one that came: the rest of the prompt's time while the worker still reads it, else `between`.
    ///
    /// `began` is the time since the worker has the request. A sign of progress (a part of the prompt is read) never shortens the time that is left, but
    /// there is an end to them.
    pub fn next_event(&self, prompt: u32, began: Duration, has_token: bool) -> Duration {
        if has_token {
            return self.between;
        }
        let first = self.first_token(prompt);
        let last = first.saturating_mul(WITH_SIGNS).saturating_sub(began);
        first.saturating_sub(began).max(self.between).min(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_token_may_take_what_its_prompt_takes() {
        let deadlines = Deadlines { first: 3 * SECOND, rate: 100, between: 2 * SECOND };
        assert_eq!(deadlines.first_token(0), 3 * SECOND);
        assert_eq!(deadlines.first_token(250), 3 * SECOND + Duration::from_millis(2500));
        let never_nothing = Deadlines { rate: 0, ..deadlines };
        assert_eq!(never_nothing.first_token(5), 8 * SECOND);
        assert!(never_nothing.first_token(u32::MAX) > SECOND * (u32::MAX));
        assert_eq!(Deadlines { first: Duration::MAX, ..deadlines }.first_token(1), Duration::MAX);
    }

    #[test]
    fn progress_never_shortens_the_time_left() {
        let deadlines = Deadlines { first: 10 * SECOND, rate: 1, between: 4 * SECOND };
        assert_eq!(deadlines.next_event(20, 5 * SECOND, false), 25 * SECOND);
        assert_eq!(deadlines.next_event(20, 29 * SECOND, false), 4 * SECOND, "it is alive: it gets as long as between tokens");
        assert_eq!(deadlines.next_event(20, 5 * SECOND, true), 4 * SECOND);
        assert_eq!(deadlines.next_event(20, 118 * SECOND, false), 2 * SECOND, "signs are no tokens");
        assert_eq!(deadlines.next_event(20, 130 * SECOND, false), Duration::ZERO);
    }

    #[test]
    fn a_step_that_parks_is_not_a_stall() {
        let parks = Duration::from_secs(30);
        let deadlines = Deadlines::default();
        assert!(deadlines.first_token(0) > parks && deadlines.between > parks);
    }
}
