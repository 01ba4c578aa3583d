//! One pod that listens to another one's heartbeats, over many seeds: long turns, announced or not, devices that hang or lie,
//! processes and networks that stand still, threads that read late. `M1_SIM_SEED=17 cargo test -p m1-exchange --test liveness`
//! replays one seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

#[path = "sim/rng.rs"]
mod rng;

use std::collections::VecDeque;
use std::time::Duration;

use m1_exchange::{Beat, HEARTBEAT, LONGEST_ANNOUNCED, Life, Listening, Micros, Pulse};
use rng::Rng;

/// One step of a world, and all times below, in milliseconds.
const STEP: u64 = 5;
const BEAT: u64 = HEARTBEAT.as_millis() as u64;
/// How often the listener's IO side looks, and a device that has nothing else to do turns.
const TICK: u64 = 20;
const SUSPECT: u64 = 300;
const DEAD: u64 = 2000;
/// Longest way of a heartbeat where nothing is wrong.
const LATENCY: u64 = 60;
/// Longest turn that nobody announces.
const SHORT: u64 = 150;
/// What a judgement may be off by: a heartbeat is due, on its way, read at the next look, and each step counts once.
const SLACK: u64 = BEAT + LATENCY + 2 * TICK + 2 * STEP;

/// Who speaks: a device, and an IO side that tells of it.
struct Speaker {
    progress: u64,
    turn_ends: u64,
    announced_until: u64,
    /// From then on its device does nothing; its IO side goes on.
    hangs_at: u64,
    /// Its IO side announces the longest turn with every heartbeat.
    lies: bool,
    /// The whole process stands still.
    stopped: (u64, u64),
    next_beat: u64,
}

/// Who listens. What comes while nobody reads is kept.
struct Listener {
    pulse: Pulse,
    ears: Listening,
    unread: VecDeque<Beat>,
    stopped: (u64, u64),
    next_look: u64,
    /// Nothing is read before, though it has looked: threads run in any order.
    reads_from: u64,
    /// Time in which it was not stopped.
    awake: u64,
}

struct World {
    rng: Rng,
    now: u64,
    speaker: Speaker,
    listener: Listener,
    /// Arrival and word.
    wire: VecDeque<(u64, Beat)>,
    /// Nothing gets through, or what was on its way is lost.
    cut: (u64, u64),
    cut_loses: bool,
}

fn within((from, to): (u64, u64), now: u64) -> bool {
    (from..to).contains(&now)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let never = (u64::MAX, u64::MAX);
        let next_beat = rng.within(0..BEAT);
        let speaker = Speaker {
            progress: rng.within(0..9),
            turn_ends: 0,
            announced_until: 0,
            hangs_at: u64::MAX,
            lies: false,
            stopped: never,
            next_beat,
        };
        let mut listener = Listener {
            pulse: Pulse::default(),
            ears: Listening::default(),
            unread: VecDeque::new(),
            stopped: never,
            next_look: 0,
            reads_from: 0,
            awake: 0,
        };
        listener.pulse.greeted(Micros(0));
        Self { rng, now: 0, speaker, listener, wire: VecDeque::new(), cut: never, cut_loses: false }
    }

    /// One step; what the listener's device would find now. None: it is stopped.
    fn step(&mut self) -> Option<Life> {
        self.now += STEP;
        self.speak();
        if within(self.listener.stopped, self.now) {
            return None;
        }
        self.listen();
        let now = self.listener.ears.at(Micros(self.now * 1000));
        self.listener.pulse.life(now)
    }

    fn speak(&mut self) {
        let (now, rng, speaker) = (self.now, &mut self.rng, &mut self.speaker);
        if within(speaker.stopped, now) {
            return;
        }
        if now >= speaker.turn_ends && now < speaker.hangs_at {
            speaker.progress += 1;
            let length = match rng.within(0..40) {
                0 => rng.within(SUSPECT..5000),
                1 => rng.within(TICK..SHORT),
                _ => TICK,
            };
            speaker.announced_until = 0;
            if length > SHORT {
                speaker.progress += 1;
                speaker.announced_until = now + length + rng.within(0..length);
            }
            speaker.turn_ends = now + length;
        }
        if now >= speaker.next_beat {
            speaker.next_beat = now + BEAT;
            let left = Duration::from_millis(speaker.announced_until.saturating_sub(now));
            let busy = if speaker.lies { Duration::MAX } else { left };
            let beat = Beat { progress: speaker.progress, epoch: 1, busy };
            let arrives = (now + rng.within(1..LATENCY)).max(self.wire.back().map_or(0, |(at, _)| *at));
            if !(within(self.cut, now) && self.cut_loses) {
                self.wire.push_back((arrives, beat));
            }
        }
    }

    fn listen(&mut self) {
        let (now, listener) = (self.now, &mut self.listener);
        listener.awake += STEP;
        if within(self.cut, now) && self.cut_loses {
            self.wire.clear();
        }
        while !within(self.cut, now) && self.wire.front().is_some_and(|(at, _)| *at <= now) {
            listener.unread.extend(self.wire.pop_front().map(|(_, beat)| beat));
        }
        if now >= listener.next_look {
            listener.ears.look(Micros(now * 1000));
            // A thread that comes late looks only once for all the time it missed.
            listener.next_look = now + self.rng.within(TICK..2 * TICK);
        }
        if now >= listener.reads_from {
            let heard = listener.ears.at(Micros(now * 1000));
            listener.unread.drain(..).for_each(|beat| listener.pulse.read(beat, heard));
        }
    }

    /// Stops the listener for a while. After that it may look a few times before it reads.
    fn stop_listener(&mut self, length: u64) {
        let until = self.now + length;
        self.listener.stopped = (self.now, until);
        self.listener.reads_from = until + self.rng.within(0..100);
    }
}

/// Runs seeds, or the one that is asked for, and names the one that fails.
fn seeds(count: u64, run: impl Fn(&mut World)) {
    let one = std::env::var("M1_SIM_SEED").ok().map(|seed| seed.parse().expect("M1_SIM_SEED is a number"));
    for seed in one.map_or(0..count, |seed: u64| seed..seed + 1) {
        let world = std::panic::AssertUnwindSafe(|| run(&mut World::new(seed)));
        if let Err(panic) = std::panic::catch_unwind(world) {
            eprintln!("seed {seed} failed: replay it with M1_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn still(life: Life) -> u64 {
    life.still.as_millis() as u64
}

#[test]
fn an_honest_device_is_never_suspect_however_late_its_words_are_read() {
    seeds(500, |world| {
        while world.now < 20_000 {
            if world.rng.percent(1) && world.now > world.listener.reads_from {
                let length = world.rng.within(0..6000);
                world.stop_listener(length);
            }
            if let Some(life) = world.step() {
                // Once it listens again, it may look for 100 ms before it has read.
                assert!(still(life) < SHORT + SLACK + 100, "at {}: {life:?}", world.now);
            }
        }
    });
}

#[test]
fn a_network_that_stands_for_less_is_no_death() {
    seeds(500, |world| {
        while world.now < 20_000 {
            if world.rng.percent(1) && (world.cut.1 == u64::MAX || world.now > world.cut.1 + 500) {
                let length = world.rng.within(0..DEAD - SHORT - SLACK - BEAT);
                (world.cut, world.cut_loses) = ((world.now, world.now + length), world.rng.percent(50));
            }
            if let Some(life) = world.step() {
                assert!(still(life) < DEAD, "at {}: {life:?}", world.now);
            }
        }
    });
}

#[test]
fn a_device_that_hangs_is_dead_two_seconds_beyond_what_it_announced_and_stays_so() {
    let mut seen = [0, 0];
    let count = std::cell::RefCell::new(&mut seen);
    seeds(500, |world| {
        let hangs_at = world.rng.within(500..8000);
        world.speaker.hangs_at = hangs_at;
        while world.now < hangs_at {
            world.step();
        }
        // It hangs once its present turn would be over, or at the end of what it announced for it.
        let until = world.speaker.announced_until.max(world.speaker.turn_ends).max(hangs_at);
        count.borrow_mut()[usize::from(world.speaker.announced_until > hangs_at)] += 1;
        let mut known = None;
        while world.now < until + DEAD + 3000 {
            let life = world.step().unwrap();
            let dead = still(life) >= DEAD;
            assert!(
                !dead || world.now + SHORT + SLACK >= until.min(world.speaker.announced_until.max(hangs_at)) + DEAD,
                "too soon"
            );
            assert!(dead || known.is_none(), "back from the dead at {}: {life:?}", world.now);
            known = known.or(dead.then_some(world.now));
        }
        let known = known.expect("it is never dead");
        assert!(known <= until + DEAD + SLACK, "{known}, though it stood still at {until}");
    });
    if std::env::var("M1_SIM_SEED").is_err() {
        assert!(seen.iter().all(|count| *count > 50), "not both kinds of turns: {seen:?}");
    }
}

#[test]
fn a_device_that_stands_still_lives_no_longer_by_what_its_pod_says() {
    seeds(20, |world| {
        let hangs_at = world.rng.within(500..8000);
        world.speaker.lies = true;
        world.speaker.hangs_at = hangs_at;
        let limit = hangs_at + 5000 + LONGEST_ANNOUNCED.as_millis() as u64 + DEAD + SLACK;
        while world.step().is_none_or(|life| still(life) < DEAD) {
            assert!(world.now < limit, "it lives by words alone");
        }
    });
}

#[test]
fn a_process_that_is_stopped_is_dead_after_two_seconds_and_back_at_once() {
    seeds(500, |world| {
        // The last heartbeat before it stops announces nothing.
        let mut calm = 0;
        while world.now < 2000 || calm <= BEAT {
            world.step();
            calm = if world.speaker.announced_until == 0 { calm + STEP } else { 0 };
        }
        let length = world.rng.within(0..6000);
        let (from, until) = (world.now, world.now + length);
        world.speaker.stopped = (from, until);
        // The listener may be stopped too, for a part of the time.
        let late = world.rng.within(0..3000);
        if world.rng.percent(50) {
            world.stop_listener(late);
        }
        let before = world.listener.awake;
        while world.now < until {
            let Some(life) = world.step() else { continue };
            let heard = world.listener.awake - before;
            assert!(still(life) < DEAD || heard + SHORT + SLACK >= DEAD, "after {heard}: {life:?}");
            assert!(still(life) >= DEAD || heard < DEAD + SLACK + 100, "after {heard}: {life:?}");
        }
        while world.now < until.max(world.listener.reads_from) + SHORT + SLACK {
            world.step();
        }
        assert!(still(world.step().unwrap()) < SUSPECT);
    });
}
