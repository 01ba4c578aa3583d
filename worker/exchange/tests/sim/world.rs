//! The group: time, the network, and what goes wrong. First a storm, then everything heals, then a last round of steps
//! must end as it should.

mod agenda;
mod trouble;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use m1_arch::{ExpertId, ExpertSet, LayerId};
use m1_exchange::{Beat, Config, DispatchTable, Lane, PodId, Serve, TableVersion};

use agenda::{Next, Scheduled};

use super::network::{Connection, PULSE, Path, Wire};
use super::payload::StepRun;
use super::pod::{Effect, Inbound, Pod};
use super::rng::Rng;
use super::{LAYERS, Profile, Seen, Shape};

const MILLI: u64 = 1000;
const TICK: u64 = 100 * MILLI;
/// How long the storm lasts.
const STORM: u64 = 2500 * MILLI;
/// After it, until everything is in place and every peer is known to live.
const SETTLE: u64 = 1500 * MILLI;
/// Two lanes are enough to let them overtake each other.
const LANES: [Lane; 2] = [Lane::Decode, Lane::Prefill];

/// A place for a process: its life is counted, and it is empty between death and restart.
struct Slot {
    life: u64,
    pod: Option<Pod>,
}

pub struct World {
    rng: Rng,
    profile: Profile,
    shape: Shape,
    now: u64,
    turn: u64,
    agenda: BinaryHeap<Reverse<Scheduled>>,
    slots: Vec<Slot>,
    connections: BTreeMap<Path, Connection>,
    latency: u64,
    config: Config,
    epoch: u64,
    tables: Vec<Arc<DispatchTable>>,
    placement: Vec<ExpertSet>,
    next_step: u64,
    healed_at: Option<u64>,
    last_round: bool,
    seen: Seen,
    loud: bool,
}

impl World {
    pub fn new(seed: u64, profile: Profile, loud: bool) -> Self {
        let mut rng = Rng::new(seed);
        let experts = rng.one_of(&[4, 6, 8]);
        let mut shape = Shape { experts, top_k: rng.one_of(&[1, 2, 2, 2, 3]) };
        let count = rng.within(2..7) as usize;
        if profile == Profile::Stalls {
            shape.top_k = rng.within(2..4) as usize;
        }
        let mut config = Config::new(PodId(0), LAYERS, experts, shape.top_k, 4);
        let row = config.row_bytes_out + 6 * shape.top_k;
        config.max_frame_bytes = 64 + row * rng.one_of(&[1, 2, 4, 8]);
        config.credits = rng.one_of(&[1, 2, 3, 4, 9]);
        config.dead_after = Duration::from_millis(rng.within(600..1500));
        config.wait_for_expert = Duration::from_millis(rng.within(800..2000));
        config.resend_after = Duration::from_millis(rng.within(300..900));
        config.answer_within = Duration::from_millis(rng.within(700..2000));
        let latency = match profile {
            Profile::Calm => 2 * MILLI,
            Profile::Stalls | Profile::Announced | Profile::Storm => rng.one_of(&[MILLI, 5 * MILLI, 50 * MILLI]),
        };
        let world = Self {
            profile,
            shape,
            now: 0,
            turn: 0,
            agenda: BinaryHeap::new(),
            slots: (0..count).map(|_| Slot { life: 0, pod: None }).collect(),
            connections: BTreeMap::new(),
            latency,
            config,
            epoch: 0,
            tables: Vec::new(),
            placement: Vec::new(),
            next_step: 0,
            healed_at: None,
            last_round: false,
            seen: Seen::default(),
            loud,
            rng,
        };
        world.begin()
    }

    fn begin(mut self) -> Self {
        let pods: Vec<PodId> = self.pods().collect();
        self.placement = self.draw_placement();
        for pod in &pods {
            self.restart(*pod);
            self.plan(50 * MILLI, Next::Steps(*pod));
            for server in pods.iter().filter(|server| *server != pod) {
                for lane in LANES.into_iter().chain([PULSE]) {
                    let path = Path { requester: *pod, server: *server, lane };
                    self.connections.insert(path, Connection::default());
                    self.plan(0, Next::Connect(path));
                }
            }
        }
        self.place();
        self.plan(STORM, Next::Heal);
        if self.profile != Profile::Calm {
            self.plan(100 * MILLI, Next::Trouble);
        }
        self
    }

    /// Runs until every step has ended and nothing is open.
    pub fn run(mut self) -> Seen {
        let limit = STORM + SETTLE + 30_000 * MILLI;
        while let Some(Reverse(Scheduled { at, next, .. })) = self.agenda.pop() {
            self.now = at;
            assert!(self.now < limit, "steps never end: {:?}", self.open_steps());
            self.happen(next);
            if self.last_round && self.is_quiet() {
                break;
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Seen {
        for pod in self.slots.iter().filter_map(|slot| slot.pod.as_ref()) {
            pod.check_quiet();
            assert!(pod.steps.is_empty());
        }
        // Whoever waited since the world healed waited for something that nobody holds.
        let fair = self.healed_at.unwrap_or(0) + SETTLE + self.config.wait_for_expert.as_micros() as u64;
        let failed = std::mem::take(&mut self.seen.unavailable);
        let unfair =
            failed.iter().find(|(at, layer, expert)| *at > fair && self.placement.iter().any(|set| set.contains(*layer, *expert)));
        assert!(unfair.is_none(), "failed although it is held: {unfair:?}");
        self.seen
    }

    fn is_quiet(&self) -> bool {
        let quiet = |pod: &Pod| pod.steps.is_empty() && pod.inbox.is_empty() && pod.exchange.is_quiet();
        // Credits on their way would be missed otherwise.
        let travelling = |next: &Next| matches!(next, Next::Arrive { wire: Wire::Credit { .. } | Wire::HelloBack { .. }, .. });
        self.slots.iter().all(|slot| slot.pod.as_ref().is_some_and(quiet))
            && !self.agenda.iter().any(|Reverse(scheduled)| travelling(&scheduled.next))
    }

    fn open_steps(&self) -> Vec<(PodId, Vec<u64>)> {
        let open = |pod: &Pod| (pod.id, pod.steps.keys().copied().collect());
        self.slots.iter().filter_map(|slot| slot.pod.as_ref()).map(open).collect()
    }

    fn pods(&self) -> impl Iterator<Item = PodId> + use<> {
        (0..self.slots.len() as u16).map(PodId)
    }

    fn pod(&mut self, id: PodId, life: u64) -> Option<&mut Pod> {
        let slot = &mut self.slots[id.index()];
        slot.pod.as_mut().filter(|_| slot.life == life)
    }

    fn plan(&mut self, after: u64, next: Next) {
        self.turn += 1;
        self.agenda.push(Reverse(Scheduled { at: self.now + after, turn: self.turn, next }));
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Arrive { path, generation, wire } => self.arrive(path, generation, wire),
            Next::Notice { path, generation, server } => {
                let inbound = match server {
                    true => Inbound::ClientDown { peer: (path.requester, path.lane), generation },
                    false => Inbound::LinkDown { peer: (path.server, path.lane), generation },
                };
                self.tell(if server { path.server } else { path.requester }, inbound);
            }
            Next::Connect(path) => self.connect(path),
            Next::Inbox { pod, life, inbound } => {
                if let Some(pod) = self.pod(pod, life) {
                    pod.inbox.push_back(inbound);
                }
                self.turn(pod, life);
            }
            Next::Tick { pod, life } => self.tick(pod, life),
            Next::Turn { pod, life } => self.turn(pod, life),
            Next::Served { pod, life, serve } => self.served(pod, life, serve),
            Next::Restart(pod) => self.restart(pod),
            Next::Steps(pod) => self.begin_steps(pod),
            Next::Trouble => self.trouble(),
            Next::Heal => self.heal(),
            Next::LastRound => self.begin_last_round(),
        }
    }

    // ---- pods

    fn restart(&mut self, id: PodId) {
        let slot = &mut self.slots[id.index()];
        if slot.pod.is_some() {
            return;
        }
        slot.life += 1;
        let life = slot.life;
        let config = Config { me: id, first_id: life << 32 | self.now, ..self.config.clone() };
        slot.pod = Some(Pod::new(config, self.shape, self.loud));
        let offset = self.rng.within(0..TICK);
        self.plan(offset, Next::Tick { pod: id, life });
        if self.epoch > 0 {
            let table = self.tables[self.epoch as usize - 1].clone();
            self.place_at(id, table);
        }
    }

    fn crash(&mut self, id: PodId) {
        let slot = &mut self.slots[id.index()];
        if slot.pod.take().is_none() {
            return;
        }
        self.seen.crashes += 1;
        for path in self.paths(|path| path.requester == id || path.server == id) {
            self.cut(path);
        }
        let after = self.rng.within(50..1200) * MILLI;
        self.plan(after, Next::Restart(id));
    }

    /// A device thread that is not stalled handles what waits, then computes for peers.
    fn turn(&mut self, id: PodId, life: u64) {
        let (now, mut planned, mut seen) = (self.now, Vec::new(), std::mem::take(&mut self.seen));
        if let Some(pod) = self.pod(id, life).filter(|pod| now >= pod.stalled_until) {
            pod.now = now;
            while pod.may_handle() {
                let Some(inbound) = pod.inbox.pop_front() else { break };
                pod.handle(inbound, &mut seen);
            }
            while pod.serving.len() < 2
                && let Some(serve) = pod.next_request()
            {
                planned.push(serve);
            }
        }
        self.seen = seen;
        for serve in planned {
            let after = self.rng.within(20..2 * MILLI);
            self.plan(after, Next::Served { pod: id, life, serve });
        }
        self.effects(id, life);
    }

    fn served(&mut self, id: PodId, life: u64, serve: Serve) {
        let (now, mut seen) = (self.now, std::mem::take(&mut self.seen));
        let mut later = None;
        if let Some(pod) = self.pod(id, life) {
            if pod.stalled_until > now {
                later = Some(pod.stalled_until - now);
            } else {
                pod.now = now;
                pod.served(serve, &mut seen);
            }
        }
        self.seen = seen;
        match later {
            Some(after) => self.plan(after, Next::Served { pod: id, life, serve }),
            None => self.turn(id, life),
        }
    }

    /// The device thread ticks unless it is stalled; heartbeats come from elsewhere and tell whether it does.
    fn tick(&mut self, id: PodId, life: u64) {
        let now = self.now;
        let Some(pod) = self.pod(id, life) else { return };
        if now >= pod.stalled_until {
            pod.progress += 1;
            pod.inbox.push_back(Inbound::Tick);
        }
        let busy = Duration::from_micros(pod.announced_until.saturating_sub(now));
        let beat = Beat { progress: pod.progress, epoch: pod.table.version().epoch, busy };
        self.plan(TICK, Next::Tick { pod: id, life });
        for path in self.paths(|path| path.server == id && path.lane == PULSE) {
            let connection = &self.connections[&path];
            if connection.open && connection.greeted {
                self.transmit(path, connection.generation, Wire::Beat(beat));
            }
        }
        self.turn(id, life);
    }

    fn effects(&mut self, id: PodId, life: u64) {
        let Some(pod) = self.pod(id, life) else { return };
        for effect in std::mem::take(&mut pod.effects) {
            match effect {
                Effect::Send { peer: (server, lane), generation, wire } => {
                    self.transmit(Path { requester: id, server, lane }, generation, wire);
                }
                Effect::Back { peer: (requester, lane), generation, wire } => {
                    self.transmit(Path { requester, server: id, lane }, generation, wire);
                }
                Effect::DropLink { peer: (server, lane), generation } => {
                    let path = Path { requester: id, server, lane };
                    if self.connections[&path].generation == generation {
                        self.cut(path);
                    }
                }
            }
        }
    }

    fn tell(&mut self, id: PodId, inbound: Inbound) {
        let life = self.slots[id.index()].life;
        if let Some(pod) = self.pod(id, life) {
            pod.inbox.push_back(inbound);
            self.turn(id, life);
        }
    }

    // ---- network

    fn paths(&self, which: impl Fn(&Path) -> bool) -> Vec<Path> {
        self.connections.keys().filter(|path| which(path)).copied().collect()
    }

    fn transmit(&mut self, path: Path, generation: u64, wire: Wire) {
        let (now, latency) = (self.now, self.latency);
        let Some(connection) = self.connections.get_mut(&path).filter(|c| c.open && c.generation == generation) else { return };
        let at = connection.arrival(&mut self.rng, now, wire.to_server(), latency);
        self.plan(at - now, Next::Arrive { path, generation, wire });
    }

    fn arrive(&mut self, path: Path, generation: u64, wire: Wire) {
        let Some(connection) = self.connections.get_mut(&path).filter(|c| c.open && c.generation == generation) else { return };
        let (client, server) = ((path.requester, path.lane), (path.server, path.lane));
        let now = self.now;
        match wire {
            Wire::Hello if path.lane == PULSE => {
                connection.greeted = true;
                self.transmit(path, generation, Wire::HelloBack { credits: 0 });
            }
            Wire::HelloBack { .. } | Wire::Beat(_) if path.lane == PULSE => {
                let Some(pod) = self.slots[path.requester.index()].pod.as_mut() else { return };
                match wire {
                    Wire::Beat(beat) => pod.read(path.server, beat, now),
                    _ => pod.greeted(path.server, now),
                }
            }
            Wire::Hello => {
                connection.greeted = true;
                let credits = self.config.credits;
                self.tell(path.server, Inbound::ClientUp { peer: client, generation });
                self.transmit(path, generation, Wire::HelloBack { credits });
            }
            Wire::HelloBack { credits } => self.tell(path.requester, Inbound::LinkUp { peer: server, generation, credits }),
            wire if wire.to_server() => self.tell(path.server, Inbound::FromClient { peer: client, generation, wire }),
            wire => self.tell(path.requester, Inbound::FromServer { peer: server, generation, wire }),
        }
    }

    fn connect(&mut self, path: Path) {
        let both = [path.requester, path.server].iter().all(|pod| self.slots[pod.index()].pod.is_some());
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&path).filter(|connection| !connection.open) else { return };
        if !both || connection.cut_until > now {
            return self.plan(40 * MILLI, Next::Connect(path));
        }
        connection.begin();
        let generation = connection.generation;
        self.transmit(path, generation, Wire::Hello);
    }

    /// A connection breaks; its ends notice that each in its time, maybe only when the next one stands.
    fn cut(&mut self, path: Path) {
        let Some(connection) = self.connections.get_mut(&path).filter(|connection| connection.open) else { return };
        let generation = connection.generation;
        connection.end();
        for server in [true, false].into_iter().filter(|_| path.lane != PULSE) {
            let after = self.rng.within(0..150) * MILLI;
            self.plan(after, Next::Notice { path, generation, server });
        }
        let after = self.rng.within(1..100) * MILLI;
        self.plan(after, Next::Connect(path));
    }

    // ---- steps

    fn begin_steps(&mut self, id: PodId) {
        if self.healed_at.is_some() {
            return;
        }
        let rows = self.rng.one_of(&[1, 2, 5, 20]);
        self.open(id, rows);
        let after = self.rng.within(20..250) * MILLI;
        self.plan(after, Next::Steps(id));
        if self.profile == Profile::Storm && self.rng.percent(15) {
            let (pick, life) = (self.rng.index(8), self.slots[id.index()].life);
            let after = self.rng.within(0..30) * MILLI;
            self.plan(after, Next::Inbox { pod: id, life, inbound: Inbound::Abort { pick } });
        }
    }

    fn open(&mut self, id: PodId, rows: usize) {
        let (first, last) = (self.rng.index(LAYERS) as u16, LAYERS as u16 - 1);
        let run = StepRun::new(&mut self.rng, first, last, rows, self.shape.routing());
        let (step, lane) = (self.next_step, self.rng.one_of(&LANES));
        let life = self.slots[id.index()].life;
        let Some(pod) = self.pod(id, life) else { return };
        pod.steps.insert(step, (lane, run));
        self.next_step += 1;
        self.tell(id, Inbound::Open { step, lane });
    }

    fn begin_last_round(&mut self) {
        for pod in self.pods() {
            self.open(pod, 8);
        }
        self.last_round = true;
    }

    // ---- placement

    /// Every expert of every layer at one pod or two, now and then at none.
    fn draw_placement(&mut self) -> Vec<ExpertSet> {
        let mut sets = vec![ExpertSet::empty(LAYERS, self.shape.experts); self.slots.len()];
        let copies = if self.profile == Profile::Stalls { 3 } else { self.rng.within(1..3) };
        let lacking = self.profile == Profile::Storm && self.rng.percent(25);
        for layer in 0..LAYERS as u16 {
            for expert in 0..self.shape.experts as u16 {
                if lacking && self.rng.percent(10) {
                    continue;
                }
                for _ in 0..copies {
                    let pod = self.rng.index(sets.len());
                    sets[pod].insert(LayerId(layer), ExpertId(expert));
                }
            }
        }
        sets
    }

    /// The placement becomes a table that reaches each pod in its own time, as do the experts.
    fn place(&mut self) {
        self.epoch += 1;
        let version = TableVersion { lease_transitions: 1, epoch: self.epoch };
        let held: Vec<_> = self.pods().zip(self.placement.iter().cloned()).collect();
        let table = Arc::new(DispatchTable::new(version, LAYERS, self.shape.experts, &held).unwrap());
        self.tables.push(table.clone());
        for pod in self.pods() {
            self.place_at(pod, table.clone());
        }
    }

    fn place_at(&mut self, id: PodId, table: Arc<DispatchTable>) {
        let (epoch, life) = (table.version().epoch, self.slots[id.index()].life);
        let wanted = self.placement[id.index()].clone();
        let Some(held) = self.pod(id, life).map(|pod| pod.held.clone()) else { return };
        let slowest = if matches!(self.profile, Profile::Calm | Profile::Announced) { 1 } else { self.rng.one_of(&[10, 200, 800]) };
        let mut after = || self.rng.within(0..slowest) * MILLI;
        let (told, loaded, freed) = (after(), after(), after());
        self.plan(told, Next::Inbox { pod: id, life, inbound: Inbound::Table(table) });
        let both = Inbound::Hold { epoch, set: Arc::new(held.union(&wanted)) };
        self.plan(loaded, Next::Inbox { pod: id, life, inbound: both });
        let only = Inbound::Hold { epoch, set: Arc::new(wanted) };
        self.plan(loaded + freed, Next::Inbox { pod: id, life, inbound: only });
    }
}
