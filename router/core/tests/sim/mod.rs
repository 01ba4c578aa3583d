//! A router and its workers in simulated time: clients send requests, workers do what their script says, the balancer decides. Everything follows from the
//! seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use m1_router_core::{
    Balancer, Entry, MOST_WORKERS, Next, Outcome, Phase, Reason, Request, Rng, Seat, Standing, TicketId, Topology, WorkerId,
    WorkerStats,
};

/// How often workers say how they are.
const STATUS: Duration = Duration::from_millis(200);
/// How often the router looks again when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// How long a client waits for a worker.
const PATIENCE: Duration = Duration::from_secs(30);
/// The simulated deadline to the first token.
pub const DEADLINE: Duration = Duration::from_secs(2);

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a worker does with a request that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Serves it: first token and end after about so long.
    Serve(Duration, Duration),
    /// Fails it after so long, before its first token.
    Fail(Duration),
    /// Says nothing at all.
    Stall,
    /// Serves its first token after so long, then breaks.
    Break(Duration),
}

/// A worker that is well.
pub const WELL: Does = Does::Serve(ms(50), ms(300));

/// What a worker does at a time.
pub type Script = Box<dyn Fn(Duration) -> Does>;

/// Always the same.
pub fn always(does: Does) -> Script {
    Box::new(move |_| does)
}

/// One thing until a time, another one from then on.
pub fn until(end: Duration, first: Does, then: Does) -> Script {
    Box::new(move |now| if now < end { first } else { then })
}

/// One thing for so long, then another one for as long, and so on.
pub fn flapping(span: Duration, first: Does, then: Does) -> Script {
    Box::new(move |now| if (now.as_millis() / span.as_millis()).is_multiple_of(2) { first } else { then })
}

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Clients that send their next request when the last one has ended.
    pub closed: usize,
    /// Requests a second that come whatever happens.
    pub rate: u64,
    /// Of a hundred requests, those that every worker fails.
    pub poison: usize,
    /// What a worker does with those.
    pub poisoned: Does,
    /// How long.
    pub time: Duration,
}

pub const CLIENTS: Clients = Clients { closed: 0, rate: 40, poison: 0, poisoned: Does::Fail(ms(2)), time: secs(60) };

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests that were not poison: served, and not.
    pub served: usize,
    pub unserved: Vec<(Duration, Reason)>,
    /// Requests that their clients gave up waiting for.
    pub impatient: usize,
    /// Poison that was given up.
    pub poison: usize,
    /// Attempts per worker, and those of them that it did not serve whole.
    pub attempts: Vec<usize>,
    pub bad: Vec<usize>,
    /// When each worker was out, and came back for good.
    pub ejections: Vec<usize>,
    pub back: Vec<Option<Duration>>,
    /// First tokens per worker by second.
    pub served_by: Vec<BTreeMap<u64, usize>>,
}

impl Seen {
    /// Share of all attempts that went to workers which did not serve them whole.
    pub fn bad_share(&self) -> f64 {
        self.bad.iter().sum::<usize>() as f64 / self.attempts.iter().sum::<usize>().max(1) as f64
    }

    /// First tokens of a worker in a span of seconds.
    pub fn served_in(&self, worker: usize, from: u64, to: u64) -> usize {
        self.served_by[worker].range(from..to).map(|(_, count)| count).sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive { again: bool },
    Patience(u64),
    First(u64),
    Fail(u64),
    Deadline(u64),
    End(u64),
    Status(u64),
    Down(u64),
    Up(u64),
    Tick,
}

#[derive(Clone, Debug)]
struct Client {
    request: Request,
    poison: bool,
    again: bool,
    seat: Option<Seat>,
    began: bool,
    /// The attempt that its events belong to.
    attempt: u64,
    ended: bool,
}

pub struct Sim {
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, u64, Event)>>,
    sequence: u64,
    pub balancer: Balancer,
    scripts: Vec<Script>,
    slots: u32,
    up: Vec<bool>,
    /// Sequences each worker has.
    running: Vec<u32>,
    clients: Clients,
    requests: Vec<Client>,
    tickets: BTreeMap<TicketId, u64>,
    dice: Rng,
    seen: Seen,
    /// How each worker stood at the last look.
    stood: Vec<Standing>,
}

/// Runs clients against workers with so many slots each; gives what happened. Checks at every step that not all workers are out and no request has visited
/// more than two.
pub fn run(seed: u64, slots: u32, scripts: Vec<Script>, clients: Clients) -> Seen {
    with_deaths(seed, slots, scripts, clients, &[])
}

/// The same, with workers that are killed at a time and are back two seconds later.
pub fn with_deaths(seed: u64, slots: u32, scripts: Vec<Script>, clients: Clients, deaths: &[(u64, Duration)]) -> Seen {
    let mut sim = Sim::new(seed, slots, scripts, clients);
    for (worker, at) in deaths {
        sim.at(*at, *worker, Event::Down(*worker));
        sim.at(*at + secs(2), *worker, Event::Up(*worker));
    }
    sim.play();
    sim.seen
}

impl Sim {
    fn new(seed: u64, slots: u32, scripts: Vec<Script>, clients: Clients) -> Self {
        let count = scripts.len();
        let mut balancer = Balancer::new(10_000, Duration::ZERO, Rng::new(seed));
        balancer.apply(&Topology::fixed(&[(0..count).map(|n| format!("w{n}:1")).collect()]));
        let seen = Seen {
            attempts: vec![0; count],
            bad: vec![0; count],
            ejections: vec![0; count],
            back: vec![None; count],
            served_by: vec![BTreeMap::new(); count],
            ..Seen::default()
        };
        let mut sim = Self {
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            balancer,
            scripts,
            slots,
            up: vec![true; count],
            running: vec![0; count],
            clients,
            requests: Vec::new(),
            tickets: BTreeMap::new(),
            dice: Rng::new(seed ^ 0x51),
            seen,
            stood: vec![Standing::Good; count],
        };
        for worker in 0..count as u64 {
            sim.status(worker);
            sim.at(STATUS, worker, Event::Status(worker));
        }
        sim.at(TICK, 0, Event::Tick);
        (0..clients.closed).for_each(|n| sim.at(ms(n as u64 % 3), 0, Event::Arrive { again: true }));
        if clients.rate > 0 {
            sim.at(ms(1), 0, Event::Arrive { again: false });
        }
        sim
    }

    fn at(&mut self, time: Duration, attempt: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, attempt, event)));
    }

    fn after(&mut self, wait: Duration, attempt: u64, event: Event) {
        self.at(self.now + wait, attempt, event);
    }

    fn play(&mut self) {
        while let Some(Reverse((time, _, attempt, event))) = self.events.pop() {
            self.now = time;
            if time > self.clients.time + 2 * PATIENCE {
                break;
            }
            self.happens(attempt, event);
            self.settle();
            self.look();
        }
        let left = self.requests.iter().filter(|client| !client.ended).count();
        assert_eq!((left, self.balancer.running(), self.balancer.queued()), (0, 0, 0), "every request has ended");
    }

    fn happens(&mut self, attempt: u64, event: Event) {
        match event {
            Event::Arrive { again } => self.arrive(again),
            Event::Status(worker) => {
                self.status(worker);
                self.after(STATUS, worker, event);
            }
            Event::Tick => self.after(TICK, 0, event),
            Event::Down(worker) => self.down(worker),
            Event::Up(worker) => self.up[worker as usize] = true,
            Event::Patience(id) => self.give_up_waiting(id),
            Event::First(id) | Event::Fail(id) | Event::Deadline(id) | Event::End(id) => {
                let client = &self.requests[id as usize];
                if client.attempt == attempt && !client.ended && client.seat.is_some() {
                    self.goes_on(id, event);
                }
            }
        }
    }

    fn arrive(&mut self, again: bool) {
        if self.now >= self.clients.time {
            return;
        }
        if !again {
            // Gaps of random length with the right mean.
            let mean = 1_000_000 / self.clients.rate;
            let gap = Duration::from_micros(self.dice.below(2 * mean as usize) as u64);
            self.after(gap, 0, Event::Arrive { again: false });
        }
        let id = self.requests.len() as u64;
        let poison = self.dice.below(100) < self.clients.poison;
        let client = Client { request: Request::default(), poison, again, seat: None, began: false, attempt: 0, ended: false };
        self.requests.push(client);
        self.enter(id, false);
        self.after(PATIENCE, 0, Event::Patience(id));
    }

    fn enter(&mut self, id: u64, urgent: bool) {
        let request = self.requests[id as usize].request.clone();
        match self.balancer.enter(request, urgent, self.now) {
            Entry::Run(seat, _) => self.runs(id, seat),
            Entry::Queued(ticket) => drop(self.tickets.insert(ticket, id)),
            Entry::Refused(reason) => self.ends(id, Err(reason)),
        }
    }

    fn settle(&mut self) {
        for (ticket, entry) in self.balancer.grants(self.now) {
            let Some(id) = self.tickets.remove(&ticket) else { unreachable!("it waits") };
            match entry {
                Entry::Run(seat, _) => self.runs(id, seat),
                Entry::Refused(reason) => self.ends(id, Err(reason)),
                Entry::Queued(_) => unreachable!("nobody is queued twice"),
            }
        }
    }

    fn runs(&mut self, id: u64, seat: Seat) {
        let worker = seat.worker.0 as usize;
        self.sequence += 1;
        let attempt = self.sequence;
        let client = &mut self.requests[id as usize];
        assert!(!client.request.avoid.contains(&seat.worker), "it failed this request before");
        (client.seat, client.attempt) = (Some(seat), attempt);
        self.seen.attempts[worker] += 1;
        self.running[worker] += 1;
        assert!(self.running[worker] <= self.slots, "a slot for each");
        let does = match (self.up[worker], client.poison) {
            (false, _) => Does::Fail(ms(1)),
            (true, true) => self.clients.poisoned,
            (true, false) => (self.scripts[worker])(self.now),
        };
        if !matches!(does, Does::Serve(..)) && !client.poison {
            self.seen.bad[worker] += 1;
        }
        // A tenth more or less, so that nothing stays in step.
        let jitter = 0.9 + self.dice.unit() / 5.0;
        match does {
            Does::Serve(first, end) => {
                self.after(first.mul_f64(jitter), attempt, Event::First(id));
                self.after(end.mul_f64(jitter), attempt, Event::End(id));
            }
            Does::Fail(wait) => self.after(wait.mul_f64(jitter), attempt, Event::Fail(id)),
            Does::Stall => {}
            Does::Break(first) => {
                self.after(first.mul_f64(jitter), attempt, Event::First(id));
                self.after(first.mul_f64(2.0 * jitter), attempt, Event::Fail(id));
            }
        }
        self.after(DEADLINE, attempt, Event::Deadline(id));
    }

    /// Something happens to a request that runs.
    fn goes_on(&mut self, id: u64, event: Event) {
        let client = &self.requests[id as usize];
        let (began, Some(seat)) = (client.began, client.seat) else { return };
        let up = self.up[seat.worker.0 as usize];
        match event {
            Event::First(_) => {
                self.requests[id as usize].began = true;
                let second = self.now.as_secs();
                *self.seen.served_by[seat.worker.0 as usize].entry(second).or_default() += 1;
                self.report(id, Outcome::Served);
            }
            Event::End(_) => {
                self.report(id, Outcome::Whole);
                self.ends(id, Ok(()));
            }
            Event::Fail(_) if began => {
                self.report(id, Outcome::Broken);
                self.ends(id, Err(Reason::AllFailed));
            }
            Event::Fail(_) => self.report(id, if up { Outcome::Failed } else { Outcome::Lost }),
            Event::Deadline(_) if !began => self.report(id, Outcome::Stalled),
            _ => {}
        }
    }

    fn report(&mut self, id: u64, outcome: Outcome) {
        let client = &mut self.requests[id as usize];
        let Some(seat) = client.seat else { return };
        let next = self.balancer.report(seat, &mut client.request, outcome, self.now);
        assert!(client.request.avoid.len() <= MOST_WORKERS, "two workers at most touch a request");
        match next {
            Next::Settled => {}
            Next::Again => {
                client.seat = None;
                self.free(seat);
                self.enter(id, true);
            }
            Next::GiveUp(reason) => self.ends(id, Err(reason)),
        }
    }

    fn free(&mut self, seat: Seat) {
        self.running[seat.worker.0 as usize] -= 1;
        self.balancer.release(seat, self.now);
    }

    fn ends(&mut self, id: u64, how: Result<(), Reason>) {
        let client = &mut self.requests[id as usize];
        client.ended = true;
        let (poison, again, seat) = (client.poison, client.again, client.seat.take());
        if let Some(seat) = seat {
            self.free(seat);
        }
        match how {
            _ if poison => self.seen.poison += 1,
            Ok(()) => self.seen.served += 1,
            Err(reason) => self.seen.unserved.push((self.now, reason)),
        }
        if again {
            // Refused at once, a client takes a breath.
            self.after(if how.is_ok() { Duration::ZERO } else { ms(20) }, 0, Event::Arrive { again: true });
        }
    }

    fn give_up_waiting(&mut self, id: u64) {
        let waits = self.tickets.iter().find(|(_, waiting)| **waiting == id).map(|(ticket, _)| *ticket);
        if let Some(ticket) = waits {
            self.tickets.remove(&ticket);
            self.balancer.leave(ticket);
            self.seen.impatient += usize::from(!self.requests[id as usize].poison);
            self.ends(id, Err(Reason::AllFull));
        }
    }

    fn status(&mut self, worker: u64) {
        if !self.up[worker as usize] {
            return;
        }
        let stats = WorkerStats {
            phase: Phase::Ready,
            running: self.running[worker as usize],
            slots_total: self.slots,
            ..WorkerStats::default()
        };
        self.balancer.heard(WorkerId(worker), stats);
    }

    /// A worker is killed: whatever it had is lost, and the router hears that.
    fn down(&mut self, worker: u64) {
        self.up[worker as usize] = false;
        self.balancer.lost(WorkerId(worker));
        let on = |client: &Client| client.seat.is_some_and(|seat| seat.worker.0 == worker);
        let had: Vec<u64> = (0..self.requests.len() as u64).filter(|id| on(&self.requests[*id as usize])).collect();
        for id in had {
            let attempt = self.requests[id as usize].attempt;
            self.after(Duration::ZERO, attempt, Event::Fail(id));
        }
    }

    /// Holds what must be so at any time.
    fn look(&mut self) {
        let standings: Vec<(Standing, bool)> =
            self.balancer.groups(self.now).flat_map(|group| group.pods).map(|pod| (pod.standing, pod.stats.is_some())).collect();
        let serving = standings.iter().filter(|(_, reachable)| *reachable).count();
        let out = standings.iter().filter(|(standing, reachable)| *reachable && *standing == Standing::Out).count();
        assert!(serving < 2 || self.up.iter().any(|up| !up) || out < serving, "all are out at {:?}", self.now);
        for (worker, (standing, _)) in standings.into_iter().enumerate() {
            let before = std::mem::replace(&mut self.stood[worker], standing);
            let is_in = |standing| matches!(standing, Standing::Good | Standing::Doubted);
            self.seen.ejections[worker] += usize::from(is_in(before) && !is_in(standing));
            if is_in(standing) && !is_in(before) {
                self.seen.back[worker] = Some(self.now);
            }
        }
    }
}
