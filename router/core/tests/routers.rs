//! Several routers before the same workers, each with its own picture: what they send fits by slots and by KV, next to nothing is refused or waits in a
//! worker, and no room stays empty while somebody waits for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use m1_router_core::{Balancer, Entry, Next, Outcome, Phase, Request, Rng, Seat, TicketId, Topology, WorkerId, WorkerStats};

const SLOTS: u32 = 8;
const BLOCKS: u32 = 100;
const BLOCK_TOKENS: u32 = 16;
/// Sequences that may wait in a worker.
const WORKER_QUEUE: usize = 4;
/// A worker tells of changes at most so often.
const STATUS: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(250);
/// From a router to a worker, and back.
const WAY: Duration = Duration::from_millis(3);
const TIME: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    /// A job reaches its worker.
    Reach(usize),
    /// A worker has refused a job.
    Refused(usize),
    /// A job's computing ends in the worker, and then in its router.
    Done(usize),
    Ended(usize),
    /// A worker tells what it has, and a router hears it.
    Tell(usize),
    Hear(usize, usize, u32, u32, u32, u32),
    Tick(usize),
}

#[derive(Clone, Debug)]
struct Job {
    router: usize,
    tokens: u32,
    runs: Duration,
    came: Duration,
    seat: Option<Seat>,
}

#[derive(Clone, Debug, Default)]
struct Worker {
    running: u32,
    blocks: u32,
    waiting: VecDeque<usize>,
    waited: usize,
    /// Blocks in use, summed over time.
    used: f64,
    since: Duration,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    ended: usize,
    refusals: usize,
    queued_in_workers: usize,
    longest_wait: Duration,
    /// Share of slots or KV in use while somebody waited in a router.
    usage: f64,
}

struct Sim {
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    routers: Vec<Balancer>,
    tickets: Vec<BTreeMap<TicketId, usize>>,
    workers: Vec<Worker>,
    jobs: Vec<Job>,
    dice: Rng,
    rate: f64,
    /// Of a hundred jobs, large ones.
    large: usize,
    seen: Seen,
}

fn run(seed: u64, routers: usize, workers: usize, rate: f64, large: usize) -> Seen {
    let pods: Vec<String> = (0..workers).map(|n| format!("w{n}:1")).collect();
    let router = |n: u64| {
        let mut balancer = Balancer::new(100_000, Duration::ZERO, Rng::new(seed * 31 + n));
        balancer.apply(&Topology::fixed(std::slice::from_ref(&pods)));
        balancer
    };
    let mut sim = Sim {
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        sequence: 0,
        routers: (0..routers as u64).map(router).collect(),
        tickets: vec![BTreeMap::new(); routers],
        workers: vec![Worker::default(); workers],
        jobs: Vec::new(),
        dice: Rng::new(seed),
        rate,
        large,
        seen: Seen::default(),
    };
    (0..routers).for_each(|router| (0..workers).for_each(|worker| sim.hear(router, worker, [0; 4])));
    (0..workers).for_each(|worker| sim.after(STATUS.mul_f64(worker as f64 / workers as f64), Event::Tell(worker)));
    for router in 0..routers {
        sim.after(TICK, Event::Tick(router));
        sim.after(Duration::from_millis(router as u64), Event::Arrive(router));
    }
    sim.play();
    sim.seen
}

impl Sim {
    fn after(&mut self, wait: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + wait, self.sequence, event)));
    }

    fn play(&mut self) {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            let busy = self.jobs.len() > self.seen.ended || time < TIME;
            if !busy {
                break;
            }
            assert!(time < TIME * 4, "{} of {} jobs never ended", self.jobs.len() - self.seen.ended, self.jobs.len());
            self.happens(event);
        }
        for (router, balancer) in self.routers.iter().enumerate() {
            assert_eq!((balancer.running(), balancer.queued()), (0, 0), "router {router} is done");
        }
        let used: f64 = self.workers.iter().map(|worker| worker.used).sum();
        self.seen.usage = used / (TIME.as_secs_f64() * self.workers.len() as f64);
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrive(router) => self.arrive(router),
            Event::Reach(job) => self.reach(job),
            Event::Refused(job) => self.refused(job),
            Event::Done(job) => self.done(job),
            Event::Ended(job) => self.ended(job),
            Event::Tell(worker) => self.tell(worker),
            Event::Hear(router, worker, running, waiting, blocks, blocks_waiting) => {
                self.hear(router, worker, [running, waiting, blocks, blocks_waiting]);
                self.settle(router);
            }
            Event::Tick(router) => {
                self.after(TICK, event);
                self.settle(router);
            }
        }
    }

    fn arrive(&mut self, router: usize) {
        if self.now >= TIME {
            return;
        }
        let mean = self.routers.len() as f64 / self.rate;
        let gap = Duration::from_secs_f64(2.0 * mean * self.dice.unit());
        self.after(gap, Event::Arrive(router));
        let large = self.dice.below(100) < self.large;
        // Some 12 blocks, or most of a worker.
        let tokens = if large { 1200 + self.dice.below(400) } else { 16 + self.dice.below(360) };
        let runs = Duration::from_millis(200 + self.dice.below(1800) as u64);
        self.jobs.push(Job { router, tokens: tokens as u32, runs, came: self.now, seat: None });
        self.enter(self.jobs.len() - 1, false);
        self.settle(router);
    }

    fn enter(&mut self, job: usize, urgent: bool) {
        let Job { router, tokens, .. } = self.jobs[job];
        match self.routers[router].enter(Request::new(tokens), urgent, self.now) {
            Entry::Run(seat, _) => self.send(job, seat),
            Entry::Queued(ticket) => drop(self.tickets[router].insert(ticket, job)),
            Entry::Refused(reason) => unreachable!("{reason:?}"),
        }
    }

    fn settle(&mut self, router: usize) {
        for (ticket, entry) in self.routers[router].grants(self.now) {
            let Some(job) = self.tickets[router].remove(&ticket) else { unreachable!("it waits") };
            let Entry::Run(seat, _) = entry else { unreachable!("it fits") };
            self.send(job, seat);
        }
    }

    fn send(&mut self, job: usize, seat: Seat) {
        self.seen.longest_wait = self.seen.longest_wait.max(self.now - self.jobs[job].came);
        self.jobs[job].seat = Some(seat);
        self.after(WAY, Event::Reach(job));
    }

    fn worker_of(&self, job: usize) -> usize {
        self.jobs[job].seat.map_or(0, |seat| seat.worker.0 as usize)
    }

    fn fits(&self, worker: usize, job: usize) -> bool {
        let blocks = self.jobs[job].tokens.div_ceil(BLOCK_TOKENS);
        self.workers[worker].running < SLOTS && self.workers[worker].blocks + blocks <= BLOCKS
    }

    fn reach(&mut self, job: usize) {
        let worker = self.worker_of(job);
        let queue = self.workers[worker].waiting.len();
        if queue == 0 && self.fits(worker, job) {
            self.begin(worker, job);
        } else if queue < WORKER_QUEUE {
            self.workers[worker].waiting.push_back(job);
            self.workers[worker].waited += 1;
            self.seen.queued_in_workers += 1;
        } else {
            self.after(WAY, Event::Refused(job));
        }
    }

    /// Counts what was used until now, up to the end of arrivals.
    fn account(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        let until = self.now.min(TIME);
        let share = (f64::from(worker.running) / f64::from(SLOTS)).max(f64::from(worker.blocks) / f64::from(BLOCKS));
        worker.used += share * until.saturating_sub(worker.since).as_secs_f64();
        worker.since = until;
    }

    fn begin(&mut self, worker: usize, job: usize) {
        self.account(worker);
        self.workers[worker].running += 1;
        self.workers[worker].blocks += self.jobs[job].tokens.div_ceil(BLOCK_TOKENS);
        self.after(self.jobs[job].runs, Event::Done(job));
    }

    fn refused(&mut self, job: usize) {
        self.seen.refusals += 1;
        let Some(seat) = self.jobs[job].seat.take() else { return };
        let router = self.jobs[job].router;
        let next = self.routers[router].report(seat, &mut Request::default(), Outcome::Full, self.now);
        assert_eq!(next, Next::Again);
        self.routers[router].release(seat, self.now);
        self.enter(job, true);
        self.settle(router);
    }

    fn done(&mut self, job: usize) {
        let worker = self.worker_of(job);
        self.account(worker);
        self.workers[worker].running -= 1;
        self.workers[worker].blocks -= self.jobs[job].tokens.div_ceil(BLOCK_TOKENS);
        while let Some(next) = self.workers[worker].waiting.front().copied().filter(|next| self.fits(worker, *next)) {
            self.workers[worker].waiting.pop_front();
            self.begin(worker, next);
        }
        self.after(WAY, Event::Ended(job));
    }

    fn ended(&mut self, job: usize) {
        self.seen.ended += 1;
        let router = self.jobs[job].router;
        let Some(seat) = self.jobs[job].seat.take() else { return };
        self.routers[router].report(seat, &mut Request::default(), Outcome::Whole, self.now);
        self.routers[router].release(seat, self.now);
        self.settle(router);
    }

    fn tell(&mut self, worker: usize) {
        self.after(STATUS, Event::Tell(worker));
        let Worker { running, blocks, waiting, .. } = &self.workers[worker];
        let blocks_waiting = waiting.iter().map(|job| self.jobs[*job].tokens.div_ceil(BLOCK_TOKENS)).sum();
        let (running, waiting, blocks) = (*running, waiting.len() as u32, *blocks);
        (0..self.routers.len())
            .for_each(|router| self.after(WAY, Event::Hear(router, worker, running, waiting, blocks, blocks_waiting)));
    }

    fn hear(&mut self, router: usize, worker: usize, [running, waiting, kv_used, kv_waiting]: [u32; 4]) {
        let stats = WorkerStats {
            phase: Phase::Ready,
            running,
            waiting,
            slots_used: running,
            slots_total: SLOTS,
            kv_used,
            kv_waiting,
            kv_total: BLOCKS,
            kv_block_tokens: BLOCK_TOKENS,
            ..WorkerStats::default()
        };
        self.routers[router].heard(WorkerId(worker as u64), stats);
    }
}

/// Jobs a second that so many workers can do: 8 at a time, 1.1 s each, 100 blocks for some 12 each.
fn capacity(workers: usize) -> f64 {
    workers as f64 * 8.0 / 1.1
}

#[test]
fn one_router_sends_nothing_that_does_not_fit() {
    for (seed, load, large) in [(1, 0.6, 0), (2, 1.3, 0), (3, 0.5, 5), (4, 1.0, 5)] {
        let seen = run(seed, 1, 4, load * capacity(4), large);
        assert_eq!((seen.refusals, seen.queued_in_workers), (0, 0), "load {load}, {large} % large: {seen:?}");
    }
}

#[test]
fn many_routers_are_seldom_refused() {
    for routers in [2, 4] {
        for seed in 0..4 {
            let seen = run(seed, routers, 4, 0.9 * capacity(4), 0);
            let (waits, ended) = (seen.queued_in_workers, seen.ended);
            assert!(seen.refusals * 10 < ended && waits * 10 < ended * 6, "{routers} routers, seed {seed}: {seen:?}");
        }
    }
}

#[test]
fn no_room_stays_empty_while_somebody_waits() {
    for routers in [1, 2, 4] {
        for seed in 0..3 {
            let seen = run(seed, routers, 4, 1.3 * capacity(4), 0);
            assert!(seen.usage > 0.92, "{routers} routers, seed {seed}: {seen:?}");
        }
    }
}

#[test]
fn large_ones_get_in_beside_the_small_ones_of_all_routers() {
    for routers in [1, 2, 4] {
        for seed in 0..6 {
            let seen = run(seed, routers, 4, 0.5 * capacity(4), 5);
            // Two seconds until it goes to wait in its worker, two until those end that run there, and others before it.
            assert!(seen.longest_wait < Duration::from_secs(10), "{routers} routers, seed {seed}: {seen:?}");
        }
    }
}
