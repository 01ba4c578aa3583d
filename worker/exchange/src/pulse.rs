//! [`Pulse`]: the life of one peer's device, as its heartbeats tell it. It is kept where heartbeats are read, not where the
//! own device looks at them: a pod that is busy itself must not take its peers for dead because their words lie unread.
//!
//! A device lives as long as its counter grows. A turn that takes long is announced with its length, and the counter may
//! stand still for as long; each value of the counter excuses one such time, at most [`LONGEST_ANNOUNCED`]. All lengths of
//! time are the reader's own: clocks of two pods are never compared.
//!
//! Silence counts only while this pod was able to hear ([`Listening`]): a process that was stopped, or had no CPU, finds
//! heartbeats of all that time unread, and must not judge before it has read them.

use std::time::Duration;

use crate::ids::Micros;

/// Interval of heartbeats.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// A turn that is expected to take longer is announced. As long as silence that makes suspect, see
/// [`Config::suspect_after`](crate::Config::suspect_after): a shorter one is noticed by nobody.
pub const LONG_TURN: Duration = Duration::from_millis(300);

/// Longest silence that one announcement excuses. The largest tensor of M1, 2.5 GB of embeddings, takes 49 s at 50 MB/s, the rate
/// at which weights are expected at least; this leaves more than as much again. So a device that hangs in the middle of what it
/// announced is known to be dead after two minutes at most, and none lives by words alone.
pub const LONGEST_ANNOUNCED: Duration = Duration::from_secs(120);

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Grows with every turn of the device, and with every announcement. Begins anew with the process.
    pub progress: u64,
    /// Its epoch.
    pub epoch: u64,
    /// How much longer the device's present turn may take, as it announced; zero where it announced nothing.
    pub busy: Duration,
}

/// What is known of a peer at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its epoch; none before its first heartbeat.
    pub epoch: Option<u64>,
    /// For how long its device has stood still, beyond what it announced.
    pub still: Duration,
    /// For how long its device is expected to do nothing but what it does now.
    pub busy: Duration,
    /// Since when it does nothing any more that it announced; none where it never announced anything.
    pub since_busy: Option<Duration>,
}

/// Since a peer was first connected.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// Counter and epoch of the last heartbeat.
    last: Option<(u64, u64)>,
    /// When the counter last changed, or the first connection stood.
    changed: Micros,
    /// Until when that counter is excused.
    excused: Micros,
    /// When an earlier counter was last excused.
    was_busy: Option<Micros>,
}

impl Heard {
    /// When it last did, or will last do, what it announced.
    fn busy_until(&self) -> Option<Micros> {
        if self.excused > self.changed { Some(self.excused) } else { self.was_busy }
    }
}

/// One peer's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pulse(Option<Heard>);

impl Pulse {
    /// A connection to the peer stands. Only the very first one is a sign of life: connections of a pod whose device hangs
    /// come back too.
    pub fn greeted(&mut self, now: Micros) {
        self.0.get_or_insert(Heard { last: None, changed: now, excused: now, was_busy: None });
    }

    /// A heartbeat is read. Any change of the counter is progress, since that of a restarted process begins anew.
    pub fn read(&mut self, beat: Beat, now: Micros) {
        let excused = now.after(beat.busy.min(LONGEST_ANNOUNCED));
        let last = Some((beat.progress, beat.epoch));
        self.0 = Some(match self.0 {
            // What was announced may end sooner, never later.
            Some(heard) if heard.last.is_some_and(|(progress, _)| progress == beat.progress) => {
                Heard { last, excused: heard.excused.min(excused), ..heard }
            }
            heard => {
                let was_busy = heard.and_then(|heard| heard.busy_until()).map(|until| until.min(now));
                Heard { last, changed: now, excused, was_busy }
            }
        });
    }

    /// What is known now; none where the peer was never connected.
    pub fn life(&self, now: Micros) -> Option<Life> {
        self.0.map(|heard| Life {
            epoch: heard.last.map(|(_, epoch)| epoch),
            still: now.since(heard.changed.max(heard.excused)),
            busy: heard.excused.since(now),
            since_busy: heard.busy_until().map(|until| now.since(until)),
        })
    }
}

/// A clock that runs while this pod is able to hear. Whoever reads heartbeats looks at it often; where it could not for a
/// while, no more than [`HEARTBEAT`] of that while counts, because what came meanwhile is not read yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Listening {
    looked: Micros,
    heard: Micros,
}

impl Listening {
    /// Looks. `now` is the time of a clock that never stands.
    pub fn look(&mut self, now: Micros) {
        (self.heard, self.looked) = (self.at(now), now.max(self.looked));
    }

    /// The time of this clock.
    pub fn at(&self, now: Micros) -> Micros {
        self.heard.after(now.since(self.looked).min(HEARTBEAT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(time: u64) -> Micros {
        Micros(time * 1000)
    }

    fn beat(progress: u64, busy: u64) -> Beat {
        Beat { progress, epoch: 7, busy: millis(busy) }
    }

    /// (still, busy) in milliseconds.
    fn known(pulse: &Pulse, time: u64) -> (u128, u128) {
        let life = pulse.life(at(time)).unwrap();
        (life.still.as_millis(), life.busy.as_millis())
    }

    #[test]
    fn a_counter_that_stands_is_no_life() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.life(at(5)), None, "never connected");
        pulse.greeted(at(10));
        assert_eq!((known(&pulse, 60), pulse.life(at(60)).unwrap().epoch), ((50, 0), None));
        pulse.greeted(at(60));
        assert_eq!(known(&pulse, 60), (50, 0), "only the first connection counts");
        pulse.read(beat(0, 0), at(100));
        assert_eq!((known(&pulse, 100), pulse.life(at(100)).unwrap().epoch), ((0, 0), Some(7)));
        pulse.read(beat(0, 0), at(300));
        assert_eq!(known(&pulse, 300), (200, 0));
        pulse.read(beat(1, 0), at(400));
        assert_eq!(known(&pulse, 450), (50, 0));
        pulse.read(beat(0, 0), at(500));
        assert_eq!(known(&pulse, 500), (0, 0), "a new process begins anew");
    }

    #[test]
    fn what_was_announced_is_excused_and_no_more() {
        let mut pulse = Pulse::default();
        pulse.read(beat(4, 3000), at(1000));
        assert_eq!(known(&pulse, 3500), (0, 500));
        // Each heartbeat says what is left.
        pulse.read(beat(4, 400), at(3600));
        assert_eq!(known(&pulse, 4300), (300, 0));
        pulse.read(beat(5, 0), at(4400));
        assert_eq!(known(&pulse, 4400), (0, 0));
    }

    #[test]
    fn the_end_of_what_was_announced_is_known_however_late_one_looks() {
        let since = |pulse: &Pulse, time| pulse.life(at(time)).unwrap().since_busy.map(|since| since.as_millis());
        let mut pulse = Pulse::default();
        pulse.read(beat(4, 0), at(900));
        assert_eq!(since(&pulse, 950), None);
        pulse.read(beat(5, 3000), at(1000));
        assert_eq!(since(&pulse, 2000), Some(0));
        pulse.read(beat(6, 0), at(2500));
        pulse.read(beat(7, 0), at(2600));
        assert_eq!(since(&pulse, 5000), Some(2500));
        pulse.read(beat(8, 100), at(5000));
        pulse.read(beat(9, 0), at(9000));
        assert_eq!(since(&pulse, 9100), Some(4000), "it overstayed");
    }

    #[test]
    fn one_turn_is_excused_once() {
        let mut pulse = Pulse::default();
        pulse.read(beat(4, 0), at(1000));
        pulse.read(beat(4, 3000), at(1100));
        assert_eq!(known(&pulse, 1400), (400, 0), "nothing was announced before the counter stood still");
        pulse.read(beat(5, 1000), at(1500));
        pulse.read(beat(5, 1000), at(2400));
        assert_eq!(known(&pulse, 3000), (500, 0), "nor is it put off");
        pulse.read(beat(6, 500), at(3000));
        pulse.read(beat(6, 0), at(3100));
        assert_eq!(known(&pulse, 3300), (200, 0), "but it may end sooner");
        pulse.read(beat(7, u64::MAX / 1000), at(4000));
        let longest = LONGEST_ANNOUNCED.as_millis() as u64;
        assert_eq!(known(&pulse, 4000 + longest + 2000), (2000, 0), "none lives by words alone");
    }

    #[test]
    fn time_without_looking_is_no_silence() {
        let mut ears = Listening::default();
        ears.look(at(20));
        ears.look(at(40));
        assert_eq!((ears.at(at(40)), ears.at(at(100))), (at(40), at(100)));
        assert_eq!(ears.at(at(5040)), at(140), "stopped for five seconds");
        ears.look(at(5040));
        ears.look(at(5060));
        assert_eq!(ears.at(at(5060)), at(160));
        ears.look(at(50));
        assert_eq!(ears.at(at(5060)), at(160), "it never goes back");
    }
}
