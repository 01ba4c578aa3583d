//! A group of pods, each with its own exchange, over a network that delays, stalls and breaks; see [`world`]. Every
//! action is checked where it is carried out, see [`pod`].

mod network;
mod payload;
mod pod;
mod rng;
mod world;

use std::ops::AddAssign;
use std::thread;

use m1_arch::{ExpertId, LayerId};

pub const LAYERS: usize = 3;

/// What a world is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Nothing goes wrong.
    Calm,
    /// Devices and links stand still for a while; every expert has copies.
    Stalls,
    /// Devices stand still for a while, and say so before.
    Announced,
    /// Everything goes wrong for a while.
    Storm,
}

/// Of the model, beside its layers.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub experts: usize,
    pub top_k: usize,
}

impl Shape {
    pub fn routing(self) -> (usize, usize) {
        (self.experts, self.top_k)
    }
}

/// What happened, so that a run that shows nothing is seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub events: u64,
    pub sent: u64,
    /// Requests that nothing but a tick led to.
    pub late: u64,
    pub accepted: u64,
    pub partial: u64,
    pub discarded: u64,
    pub complete: u64,
    pub parked: u64,
    pub resumed: u64,
    /// Steps that gave rows up, and those of them that went on for others.
    pub failed: u64,
    pub spared: u64,
    pub aborted: u64,
    pub dropped: u64,
    pub forgotten: u64,
    pub not_here: u64,
    pub refused: u64,
    pub crashes: u64,
    /// Looks at peers that had announced a long turn, and at dead ones.
    pub busy: u64,
    pub dead: u64,
    /// (when, layer, expert) of every failure of the seed that runs.
    pub unavailable: Vec<(u64, LayerId, ExpertId)>,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.sent += other.sent;
        self.late += other.late;
        self.accepted += other.accepted;
        self.partial += other.partial;
        self.discarded += other.discarded;
        self.complete += other.complete;
        self.parked += other.parked;
        self.resumed += other.resumed;
        self.failed += other.failed;
        self.spared += other.spared;
        self.aborted += other.aborted;
        self.dropped += other.dropped;
        self.forgotten += other.forgotten;
        self.not_here += other.not_here;
        self.refused += other.refused;
        self.crashes += other.crashes;
        self.busy += other.busy;
        self.dead += other.dead;
    }
}

/// Names the seed when a check panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("seed {} failed: replay it with M1_SIM_SEED={}", self.0, self.0);
        }
    }
}

/// Runs seeds 0 to `count` and sums up what happened; or replays the one that M1_SIM_SEED names, and sums up nothing.
pub fn run_seeds(count: u64, profile: Profile) -> Option<Seen> {
    if let Ok(seed) = std::env::var("M1_SIM_SEED") {
        let seed = seed.parse().expect("M1_SIM_SEED is a number");
        run_seed(seed, profile, true);
        return None;
    }
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    thread::scope(|scope| {
        let part = |first: u64| {
            let mut seen = Seen::default();
            (first..count).step_by(threads as usize).for_each(|seed| seen += run_seed(seed, profile, false));
            seen
        };
        let parts: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
        let mut seen = Seen::default();
        parts.into_iter().for_each(|part| seen += part.join().expect("a seed failed"));
        Some(seen)
    })
}

fn run_seed(seed: u64, profile: Profile, loud: bool) -> Seen {
    let _named = Named(seed);
    world::World::new(seed, profile, loud).run()
}
