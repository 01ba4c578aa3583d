//! Whether a worker is trusted with requests, by what became of those it had: outlier ejection. One machine per worker; how many of a revision may be out
//! at once is the [`crate::table`]'s.
//!
//! *Who is to blame.* A request that fails may be the worker's fault or its own, and its own must not put every worker out that it touches. So one
//! failure alone only makes a worker doubted: it gets no more than one request at a time while others have room. What puts it out is a failure that
//! another worker has made good, because it served the same request; of a request that failed on both its workers nobody learns anything. Answers that
//! break after their first token are not tried elsewhere: each makes the doubt last twice as long, until an answer is whole, and they put a worker out that
//! breaks far more of them than the others do.
//!
//! *Out* lasts a second, and twice as long each time in a row, at most a minute. Then exactly one request tries the worker: served, it is back (where answers
//! broke: when this one is whole, or ten seconds old); failed, it is out again, for longer if another worker served that request.

mod window;

use std::time::Duration;

pub use window::Tally;

use window::Window;

/// Failures in a row that others made good, with no success between: one may be a hiccup, two a coincidence.
const IN_A_ROW: u32 = 3;
/// The first pause: a restarted process is back in as much.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest pause, and how long a worker must have been back for its next one to be short again. What a worker that is well again waits at most.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a failure raises doubt when no success ends it. Doubt costs nothing while others have room.
const DOUBT: Duration = Duration::from_secs(10);
/// What breaks within so long breaks for one reason: a process that is killed breaks all it has.
const AT_ONCE: Duration = Duration::from_secs(1);
/// An answer that has gone on so long after its first token shows that the worker does not break all of them; a whole one may take hours.
const GOES_ON: Duration = Duration::from_secs(10);
/// A doubted worker is tried no sooner after its last failure: four requests a second are few to lose, and enough to find out.
const PROBE: Duration = Duration::from_millis(250);

/// How a worker stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Standing {
    /// Takes requests.
    #[default]
    Good,
    /// Its last request failed; takes one at a time while others are full.
    Doubted,
    /// Was out; the next request tries it.
    Due,
    /// Takes nothing, while anybody else can.
    Out,
}

/// A request as the worker that has it sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// Of its seat.
    pub number: u64,
    /// Sent to a worker that is out, because nobody else was left. It may bring the worker back, and never keeps it out.
    pub rescue: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    In,
    Out {
        until: Duration,
    },
    /// One request tries it.
    Tried {
        by: u64,
    },
    /// The one that tries it has a first token; it is back at this time, if the answer has not broken.
    Shown {
        by: u64,
        back: Duration,
    },
}

/// What is remembered of one worker's requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    state: State,
    /// Ejections in a row.
    ejections: u32,
    back_since: Duration,
    /// Its last trial failed, and nobody has made that good yet.
    trial_failed: bool,
    streak: u32,
    /// Broken answers in a row.
    breaks: u32,
    last_success: Option<Duration>,
    last_failure: Option<Duration>,
    window: Window,
}

impl Record {
    /// How it stands.
    pub fn standing(&self, now: Duration) -> Standing {
        match self.state {
            State::Tried { .. } => Standing::Out,
            State::Shown { back, .. } if now < back => Standing::Out,
            State::Shown { .. } => Standing::Good,
            State::Out { until } if now < until => Standing::Out,
            State::Out { .. } => Standing::Due,
            State::In => match self.last_failure {
                Some(failed) if now < failed + doubled(DOUBT, self.breaks) => Standing::Doubted,
                _ => Standing::Good,
            },
        }
    }

    /// A trial that has shown enough ends when time has passed.
    fn settle(&mut self, now: Duration) {
        if let State::Shown { back, .. } = self.state
            && now >= back
        {
            self.comes_back(now);
        }
    }

    fn comes_back(&mut self, now: Duration) {
        (self.state, self.back_since, self.window) = (State::In, now, Window::default());
        (self.streak, self.breaks, self.last_failure) = (0, 0, None);
    }

    /// Whether a doubted worker may be tried, as far as time goes.
    pub fn may_probe(&self, now: Duration) -> bool {
        self.last_failure.is_none_or(|failed| now >= failed + PROBE)
    }

    /// Whether the last thing it did was to serve a request.
    pub fn is_proven(&self) -> bool {
        self.last_success.is_some() && self.last_failure.is_none()
    }

    /// Whether it is not out, be it doubted or not.
    pub fn is_in(&self, now: Duration) -> bool {
        matches!(self.standing(now), Standing::Good | Standing::Doubted)
    }

    /// The request with this seat's number is given to it.
    pub fn give(&mut self, number: u64, now: Duration) -> Given {
        self.settle(now);
        let standing = self.standing(now);
        if standing == Standing::Due {
            self.state = State::Tried { by: number };
        }
        Given { number, rescue: standing == Standing::Out }
    }

    /// Whether this request tries it, or might bring it back.
    pub fn is_trial(&self, given: Given) -> bool {
        given.rescue || self.is_tried_by(given)
    }

    fn is_tried_by(&self, given: Given) -> bool {
        matches!(self.state, State::Tried { by } | State::Shown { by, .. } if by == given.number)
    }

    /// A request ended without a word on the worker: if that one tried it, the next one does.
    pub fn untried(&mut self, given: Given, now: Duration) {
        self.settle(now);
        if self.is_tried_by(given) {
            self.state = State::Out { until: now };
        }
    }

    /// It served a request's first token.
    pub fn served(&mut self, given: Given, now: Duration) {
        self.settle(now);
        self.window.count(now, true);
        if self.state != State::In && !self.is_trial(given) {
            // An older request: it says nothing of what the worker does with new ones.
            return;
        }
        (self.streak, self.trial_failed, self.last_success) = (0, false, Some(now));
        match self.state {
            State::In if self.breaks == 0 => self.last_failure = None,
            State::In => {}
            _ if self.breaks == 0 => self.comes_back(now),
            _ => self.state = State::Shown { by: given.number, back: now + GOES_ON },
        }
    }

    /// An answer of it is whole.
    pub fn whole(&mut self, given: Given, now: Duration) {
        self.settle(now);
        match self.state {
            State::In => (self.breaks, self.last_failure) = (0, None),
            _ if self.is_trial(given) => self.comes_back(now),
            _ => {}
        }
    }

    /// It failed a request; who is to blame is not known.
    pub fn failed(&mut self, given: Given, now: Duration) {
        self.settle(now);
        self.last_failure = Some(now);
        self.trial_fails(given, now);
    }

    /// An answer broke after its first token.
    pub fn broke(&mut self, given: Given, now: Duration) {
        self.settle(now);
        self.window.count(now, false);
        if self.last_failure.is_none_or(|failed| now >= failed + AT_ONCE) || self.breaks == 0 {
            self.breaks = self.breaks.saturating_add(1);
        }
        self.last_failure = Some(now);
        if self.trial_fails(given, now) {
            // Nobody tries a broken answer again, so nobody will make this good.
            self.lengthen(now);
        }
    }

    fn trial_fails(&mut self, given: Given, now: Duration) -> bool {
        let fails = self.is_tried_by(given);
        if fails {
            self.state = State::Out { until: now + doubled(SHORTEST, self.ejections) };
            self.trial_failed = true;
        }
        fails
    }

    /// A failed trial was the worker's fault.
    fn lengthen(&mut self, since: Duration) {
        self.trial_failed = false;
        self.ejections = self.ejections.saturating_add(1);
        self.state = State::Out { until: since + doubled(SHORTEST, self.ejections) };
    }

    /// Another worker served what this one had failed at `failed_at`; whether it should be out for that.
    pub fn blamed(&mut self, failed_at: Duration, now: Duration) -> bool {
        self.settle(now);
        self.window.count(now, false);
        if self.trial_failed {
            self.lengthen(failed_at);
            return false;
        }
        // What it has served since then outweighs it.
        if self.last_success.is_none_or(|success| success < failed_at) {
            self.streak = self.streak.saturating_add(1);
        }
        self.is_in(now) && self.streak >= IN_A_ROW
    }

    /// Whether it breaks far more than `others` do, so that it should be out.
    pub fn is_outlier(&self, others: Tally, now: Duration) -> bool {
        self.is_in(now) && self.tally(now).is_outlier(others)
    }

    /// What it did of late.
    pub fn tally(&self, now: Duration) -> Tally {
        self.window.tally(now)
    }

    /// Out it goes.
    pub fn eject(&mut self, now: Duration) {
        if now.saturating_sub(self.back_since) >= LONGEST {
            self.ejections = 0;
        }
        self.ejections = self.ejections.saturating_add(1);
        self.state = State::Out { until: now + doubled(SHORTEST, self.ejections) };
        self.streak = 0;
        self.window = Window::default();
    }
}

/// A span that doubles with every time in a row after the first.
fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1u32 << times.saturating_sub(1).min(16)).min(LONGEST)
}
