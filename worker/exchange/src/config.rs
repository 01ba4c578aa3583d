//! What an exchange is told once.

use std::time::Duration;

use thiserror::Error;

use crate::ids::{MAX_FRAME_BYTES, MAX_PODS, PodId};
use crate::pulse::LONG_TURN;

/// Bytes of a frame beside its rows: message heads and numbers.
const FRAME_HEAD_BYTES: usize = 64;
/// Bytes of one place of a row: expert id and weight.
const PLACE_BYTES: usize = 2 + 4;
/// Places of a row are bits of a 16-bit word.
pub(crate) const MAX_TOP_K: usize = 16;

/// Settings of one exchange. [`Config::new`] fills everything but the shape with defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This pod.
    pub me: PodId,
    /// Layers of the model.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Places of a routing row, at most 16.
    pub top_k: usize,
    /// Bytes of a row's hidden state on the wire.
    pub row_bytes_out: usize,
    /// Bytes of a row's sums on the wire.
    pub row_bytes_back: usize,
    /// Request and answer frames are no larger than this.
    pub max_frame_bytes: usize,
    /// Frames that each client may have open on each lane; the caller's greeting says the same number.
    pub credits: u32,
    /// A peer whose device makes no progress for this long, beyond what it announced, is suspect: what it owes is asked of
    /// another holder too. So is what one owes that announced more than this.
    pub suspect_after: Duration,
    /// A peer whose device makes no progress for this long, beyond what it announced, is asked nothing any more. An answer it
    /// still gives is taken.
    pub dead_after: Duration,
    /// How long a parked step waits before it goes on without the rows that need what is missing. The CR's `experts.loss.waitSeconds`.
    pub wait_for_expert: Duration,
    /// A request of a living peer unanswered for this long is asked of another holder too.
    pub resend_after: Duration,
    /// A request unanswered for this long is lost: its link is dropped and begun anew. Time in which the server's device
    /// does something long that it announced does not count, up to `answer_at_last`.
    pub answer_within: Duration,
    /// A request unanswered for this long is lost, whatever was announced.
    pub answer_at_last: Duration,
    /// How long a peer that said `NotHere` is not asked for the same experts again, unless its epoch, its link or the
    /// table change first.
    pub ask_again_after: Duration,
    /// Number of the first request. Different for every start of the process (its clock in microseconds will do), so that
    /// an answer to an earlier life is never taken for one to this.
    pub first_id: u64,
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {given} given, allowed: {low} to {high}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub given: usize,
    /// Lowest allowed.
    pub low: usize,
    /// Highest allowed.
    pub high: usize,
}

impl ConfigError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        "ValueOutOfRange"
    }
}

impl Config {
    /// The defaults for a model of this shape, with fp32 rows of `hidden` elements both ways.
    pub fn new(me: PodId, layers: usize, experts: usize, top_k: usize, hidden: usize) -> Self {
        Config {
            me,
            layers,
            experts,
            top_k,
            row_bytes_out: hidden * 4,
            row_bytes_back: hidden * 4,
            max_frame_bytes: MAX_FRAME_BYTES,
            credits: 16,
            suspect_after: LONG_TURN,
            dead_after: Duration::from_secs(2),
            wait_for_expert: Duration::from_secs(30),
            resend_after: Duration::from_secs(5),
            answer_within: Duration::from_secs(60),
            // A pod of the smallest shape of M1 loads 217 GB: 73 minutes at 50 MB/s.
            answer_at_last: Duration::from_secs(90 * 60),
            ask_again_after: Duration::from_millis(100),
            first_id: 1,
        }
    }

    /// Rows of one frame at most: requests and answers both stay within `max_frame_bytes`. At least 1.
    pub fn rows_per_frame(&self) -> usize {
        let row = self.row_bytes_back.max(self.row_bytes_out + self.top_k * PLACE_BYTES).max(1);
        (self.max_frame_bytes.saturating_sub(FRAME_HEAD_BYTES) / row).max(1)
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let within = |field, given, low, high| match (low..=high).contains(&given) {
            true => Ok(()),
            false => Err(ConfigError { field, given, low, high }),
        };
        within("me", self.me.index(), 0, MAX_PODS - 1)?;
        within("layers", self.layers, 1, usize::from(u16::MAX))?;
        within("experts", self.experts, 1, usize::from(u16::MAX))?;
        within("top_k", self.top_k, 1, MAX_TOP_K)?;
        within("credits", self.credits as usize, 1, u16::MAX.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_m1_stay_within_their_bytes() {
        let mut m1 = Config::new(PodId(0), 80, 32, 2, 6144);
        m1.row_bytes_out = 6144 * 2;
        assert_eq!(m1.rows_per_frame(), 21);
        m1.max_frame_bytes = 10;
        assert_eq!(m1.rows_per_frame(), 1);
    }

    #[test]
    fn wrong_numbers_are_named() {
        let mut config = Config::new(PodId(0), 80, 32, 17, 6144);
        assert_eq!(config.check().unwrap_err().to_string(), "top_k: 17 given, allowed: 1 to 16");
        config.top_k = 2;
        config.me = PodId(64);
        assert_eq!(config.check().unwrap_err().to_string(), "me: 64 given, allowed: 0 to 63");
    }
}
