//! [`Turns`]: whose piece is next where several could be. The device's time is shared by weight: streams and prompts, own and peers', and nobody
//! waits for ever.

use std::time::Duration;

/// Who wants the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Rows that peers' streams wait for.
    PeersDecode,
    /// The own step of streams.
    Decode,
    /// Rows that peers' prompts wait for.
    PeersPrefill,
    /// The own step of prompts.
    Prefill,
}

impl Class {
    /// Of equals the first goes first.
    pub(super) const ALL: [Self; 4] = [Self::PeersDecode, Self::Decode, Self::PeersPrefill, Self::Prefill];

    /// Shares of the time where all want it. Prompts get twice what streams get: a stream's gap is then at most three of its steps, if a piece is as
    /// short as two of them, and a prompt is read at two thirds of its speed.
    fn weight(self) -> u32 {
        match self {
            Self::PeersDecode | Self::Decode => 1,
            Self::PeersPrefill | Self::Prefill => 2,
        }
    }
}

/// What each class has had: weighted fair queueing, by time taken.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Time taken by weight, from where the others were when the class came.
    had: [Duration; 4],
    wanted: [bool; 4],
    /// Where the last that was chosen was.
    now: Duration,
}

impl Turns {
    /// Whose turn it is, of those that want one.
    pub(super) fn choose(&mut self, wants: [bool; 4]) -> Option<Class> {
        for class in Class::ALL {
            let place = class as usize;
            if wants[place] && !self.wanted[place] {
                // Who was away saves nothing up.
                self.had[place] = self.had[place].max(self.now);
            }
        }
        self.wanted = wants;
        let wanting = Class::ALL.into_iter().filter(|class| wants[*class as usize]);
        let chosen = wanting.min_by_key(|class| self.had[*class as usize])?;
        self.now = self.had[chosen as usize];
        Some(chosen)
    }

    /// A class has taken so long.
    pub(super) fn took(&mut self, class: Class, time: Duration) {
        self.had[class as usize] += time / class.weight();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns of a class while these want the device, each of which takes so many milliseconds.
    fn share(turns: &mut Turns, takes: [u64; 4], wants: [bool; 4], rounds: usize) -> [Duration; 4] {
        let mut had = [Duration::ZERO; 4];
        for _ in 0..rounds {
            let class = turns.choose(wants).unwrap();
            let time = Duration::from_millis(takes[class as usize]);
            turns.took(class, time);
            had[class as usize] += time;
        }
        had
    }

    #[test]
    fn time_is_shared_by_weight_whatever_a_piece_takes() {
        let [_, decode, _, prefill] = share(&mut Turns::default(), [1, 11, 1, 7], [false, true, false, true], 3000);
        let ratio = prefill.as_secs_f64() / decode.as_secs_f64();
        assert!((ratio - 2.0).abs() < 0.02, "{ratio}");
        let all = share(&mut Turns::default(), [3, 5, 17, 2], [true; 4], 6000);
        let whole: Duration = all.iter().sum();
        for (class, wanted) in Class::ALL.into_iter().zip([1.0, 1.0, 2.0, 2.0]) {
            let part = all[class as usize].as_secs_f64() / whole.as_secs_f64() * 6.0;
            assert!((part - wanted).abs() < 0.05, "{class:?}: {part}");
        }
    }

    #[test]
    fn who_was_away_goes_first_and_saves_nothing_up() {
        let mut turns = Turns::default();
        share(&mut turns, [1; 4], [false, false, false, true], 1000);
        assert_eq!(turns.choose([false, true, false, true]), Some(Class::Decode));
        let [_, decode, _, prefill] = share(&mut turns, [1; 4], [false, true, false, true], 30);
        assert!(decode <= prefill, "{decode:?} {prefill:?}");
        assert_eq!(turns.choose([false; 4]), None);
    }
}
