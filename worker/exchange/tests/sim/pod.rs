//! One pod: an exchange and all that its caller keeps for it, with a check at every action.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use m1_arch::{ExpertId, ExpertSet, LayerId};
use m1_exchange::{
    Action, Beat, Config, DispatchTable, Event, Exchange, ExchangeError, Health, Lane, Micros, PodId, Pulse, RequestId, Serve,
    StepId, UNUSED,
};

use super::network::Wire;
use super::payload::{AskedRow, StepRun, Sum};
use super::{Seen, Shape};

type Peer = (PodId, Lane);

/// What reaches the device thread, in order.
#[derive(Debug, Clone)]
pub enum Inbound {
    LinkUp { peer: Peer, generation: u64, credits: u32 },
    LinkDown { peer: Peer, generation: u64 },
    ClientUp { peer: Peer, generation: u64 },
    ClientDown { peer: Peer, generation: u64 },
    FromServer { peer: Peer, generation: u64, wire: Wire },
    FromClient { peer: Peer, generation: u64, wire: Wire },
    Table(Arc<DispatchTable>),
    Hold { epoch: u64, set: Arc<ExpertSet> },
    Open { step: u64, lane: Lane },
    Abort { pick: usize },
    Tick,
}

/// What a pod does to the world.
#[derive(Debug)]
pub enum Effect {
    Send { peer: Peer, generation: u64, wire: Wire },
    Back { peer: Peer, generation: u64, wire: Wire },
    DropLink { peer: Peer, generation: u64 },
}

/// My connection to a peer, as its caller sees it.
#[derive(Debug)]
struct Link {
    generation: u64,
    credits: u32,
    /// Frames that I may still send.
    left: u32,
}

#[derive(Debug)]
pub struct Pod {
    pub id: PodId,
    pub exchange: Exchange,
    pub inbox: VecDeque<Inbound>,
    pub progress: u64,
    pub stalled_until: u64,
    /// Until when it said that it would stand still.
    pub announced_until: u64,
    /// Of peers, by their heartbeats: read when they come, whatever the device does.
    pulses: BTreeMap<PodId, Pulse>,
    pub held: Arc<ExpertSet>,
    hold_epoch: u64,
    pub table: Arc<DispatchTable>,
    shape: Shape,
    config: Config,
    pub steps: BTreeMap<u64, (Lane, StepRun)>,
    links: BTreeMap<Peer, Link>,
    clients: BTreeMap<Peer, u64>,
    /// Payloads of requests and, once computed, their sums.
    kept: BTreeMap<(Peer, RequestId), (LayerId, Vec<AskedRow>)>,
    pub serving: Vec<Serve>,
    answer: Option<(RequestId, Vec<Sum>)>,
    pub effects: Vec<Effect>,
    actions: Vec<Action>,
    pub now: u64,
    pub loud: bool,
}

impl Pod {
    pub fn new(config: Config, shape: Shape, loud: bool) -> Self {
        let table = Arc::new(DispatchTable::empty(config.layers, config.experts));
        Self {
            id: config.me,
            exchange: Exchange::new(config.clone(), table.clone()).unwrap(),
            inbox: VecDeque::new(),
            progress: 0,
            stalled_until: 0,
            announced_until: 0,
            pulses: BTreeMap::new(),
            held: Arc::new(ExpertSet::empty(config.layers, config.experts)),
            hold_epoch: 0,
            table,
            shape,
            config,
            steps: BTreeMap::new(),
            links: BTreeMap::new(),
            clients: BTreeMap::new(),
            kept: BTreeMap::new(),
            serving: Vec::new(),
            answer: None,
            effects: Vec::new(),
            actions: Vec::new(),
            now: 0,
            loud,
        }
    }

    /// Whether the first message may be handled: what is taken away must not be computed any more.
    pub fn may_handle(&self) -> bool {
        self.inbox.front().is_some_and(|first| self.serving.is_empty() || !matches!(first, Inbound::Hold { .. }))
    }

    /// Handles one message.
    pub fn handle(&mut self, inbound: Inbound, seen: &mut Seen) {
        match inbound {
            Inbound::LinkUp { peer, generation, credits } => {
                if self.links.remove(&peer).is_some() {
                    self.on(Event::LinkDown { peer: peer.0, lane: peer.1 }, seen);
                }
                self.links.insert(peer, Link { generation, credits, left: credits });
                self.on(Event::LinkUp { peer: peer.0, lane: peer.1, credits }, seen);
            }
            Inbound::LinkDown { peer, generation } => {
                if self.links.get(&peer).is_some_and(|link| link.generation == generation) {
                    self.links.remove(&peer);
                    self.on(Event::LinkDown { peer: peer.0, lane: peer.1 }, seen);
                }
            }
            Inbound::ClientUp { peer, generation } => {
                if self.clients.remove(&peer).is_some() {
                    self.on(Event::ClientDown { peer: peer.0, lane: peer.1 }, seen);
                }
                self.clients.insert(peer, generation);
                self.on(Event::ClientUp { peer: peer.0, lane: peer.1 }, seen);
            }
            Inbound::ClientDown { peer, generation } => {
                if self.clients.get(&peer) == Some(&generation) {
                    self.clients.remove(&peer);
                    self.on(Event::ClientDown { peer: peer.0, lane: peer.1 }, seen);
                }
            }
            Inbound::FromServer { peer, generation, wire } => {
                if self.links.get(&peer).is_some_and(|link| link.generation == generation) {
                    self.of_server(peer, wire, seen);
                }
            }
            Inbound::FromClient { peer, generation, wire } => {
                if self.clients.get(&peer) == Some(&generation) {
                    self.of_client(peer, wire, seen);
                }
            }
            Inbound::Table(table) => self.place(table, seen),
            Inbound::Hold { epoch, set } => {
                if epoch >= self.hold_epoch {
                    (self.hold_epoch, self.held) = (epoch, set.clone());
                    self.on(Event::Hold(set), seen);
                }
            }
            Inbound::Open { step, lane } => {
                let Some((layer, routing)) = self.steps.get(&step).map(|(_, run)| (run.layer, run.routing())) else { return };
                self.on(Event::Open { step: StepId(step), lane, layer, experts: &routing }, seen);
            }
            Inbound::Abort { pick } => self.abort(pick, seen),
            Inbound::Tick => self.tick(seen),
        }
    }

    /// A connection of heartbeats to a peer stands.
    pub fn greeted(&mut self, peer: PodId, now: u64) {
        self.pulses.entry(peer).or_default().greeted(Micros(now));
    }

    /// A heartbeat comes.
    pub fn read(&mut self, peer: PodId, beat: Beat, now: u64) {
        self.pulses.entry(peer).or_default().read(beat, Micros(now));
    }

    fn tick(&mut self, seen: &mut Seen) {
        let now = Micros(self.now);
        let lives: Vec<_> = self.pulses.iter().filter_map(|(peer, pulse)| Some((*peer, pulse.life(now)?))).collect();
        for (peer, life) in lives {
            self.on(Event::Life { peer, life }, seen);
            seen.busy += u64::from(!life.busy.is_zero());
            seen.dead += u64::from(self.exchange.health(peer) == Health::Dead);
        }
        self.on(Event::Tick, seen);
    }

    /// Hands out a request to compute and checks that this pod may.
    pub fn next_request(&mut self) -> Option<Serve> {
        let serve = self.exchange.next_request(Lane::Bulk)?;
        let (layer, rows) = &self.kept[&((serve.peer, serve.lane), serve.id)];
        assert_eq!((*layer, rows.len()), (serve.layer, serve.rows));
        let mut experts = rows.iter().flat_map(|row| &row.experts).filter(|expert| **expert != UNUSED);
        assert!(experts.all(|expert| self.held.contains(*layer, ExpertId(*expert))), "computes what it does not hold");
        self.serving.push(serve);
        Some(serve)
    }

    pub fn served(&mut self, serve: Serve, seen: &mut Seen) {
        self.serving.retain(|one| *one != serve);
        self.on(Event::Served { peer: serve.peer, lane: serve.lane, id: serve.id }, seen);
    }

    /// Nothing is open, and no credit is lost: servers keep back less than a quarter of them, or none.
    pub fn check_quiet(&self) {
        assert!(self.exchange.is_quiet(), "pod {} is not quiet: {} own requests open", self.id, self.exchange.open_requests());
        assert!(self.kept.is_empty(), "pod {} keeps payloads: {:?}", self.id, self.kept.keys());
        for (peer, link) in &self.links {
            let kept_back = (link.credits / 4).max(1) - 1;
            assert!(link.left + kept_back >= link.credits, "pod {} lost credits at {peer:?}: {link:?}", self.id);
        }
    }

    fn abort(&mut self, pick: usize, seen: &mut Seen) {
        let Some(step) = self.steps.keys().nth(pick % self.steps.len().max(1)).copied() else { return };
        self.steps.remove(&step);
        seen.aborted += 1;
        self.on(Event::Abort { step: StepId(step) }, seen);
    }

    fn place(&mut self, table: Arc<DispatchTable>, seen: &mut Seen) {
        let older = table.version() < self.table.version();
        let before = seen.refused;
        if !older {
            self.table = table.clone();
        }
        self.on(Event::Table(table), seen);
        assert_eq!(seen.refused - before, u64::from(older));
    }

    fn of_server(&mut self, (peer, lane): Peer, wire: Wire, seen: &mut Seen) {
        match wire {
            Wire::Answer { id, sums } => {
                let rows = sums.len();
                self.answer = Some((id, sums));
                self.on(Event::Answer { peer, lane, id, rows }, seen);
                assert!(self.answer.is_none(), "an answer is neither accepted nor discarded");
            }
            Wire::NotHere { id, epoch } => self.on(Event::NotHere { peer, lane, id, epoch }, seen),
            Wire::Credit { frames } => {
                if let Some(link) = self.links.get_mut(&(peer, lane)) {
                    link.left += frames;
                    assert!(link.left <= link.credits, "more credit than there is");
                }
                self.on(Event::CreditGranted { peer, lane, frames }, seen);
            }
            other => panic!("{other:?} from a server"),
        }
    }

    fn of_client(&mut self, (peer, lane): Peer, wire: Wire, seen: &mut Seen) {
        let Wire::Request { id, epoch, layer, rows } = wire else { panic!("{wire:?} from a client") };
        let (layer, count) = (LayerId(layer), rows.len());
        let experts: Vec<u16> = rows.iter().flat_map(|row| row.experts.iter().copied()).collect();
        assert!(self.kept.insert(((peer, lane), id), (layer, rows)).is_none(), "a number twice");
        self.on(Event::Request { peer, lane, id, epoch, layer, rows: count, experts: &experts }, seen);
    }

    fn on(&mut self, event: Event<'_>, seen: &mut Seen) {
        seen.events += 1;
        let tick = event == Event::Tick;
        let mut actions = std::mem::take(&mut self.actions);
        if self.loud {
            println!("{:>9} pod {} <- {event:?}", self.now, self.id);
        }
        self.exchange.handle(event, Micros(self.now), &mut actions);
        seen.late += u64::from(tick && actions.iter().any(|action| matches!(action, Action::Send { .. })));
        let last_send = actions.iter().rposition(|action| matches!(action, Action::Send { .. }));
        let first_local = actions.iter().position(|action| matches!(action, Action::Local { .. }));
        assert!(first_local.is_none() || last_send < first_local, "the device goes before the network: {actions:?}");
        for action in actions.drain(..) {
            if self.loud {
                println!("{:>9} pod {}    -> {action:?}", self.now, self.id);
            }
            self.carry_out(action, seen);
        }
        self.actions = actions;
        self.check_bounds();
    }

    fn check_bounds(&self) {
        let credits = self.config.credits as usize;
        assert!(self.exchange.queued() <= credits * self.clients.len());
        assert!(self.exchange.open_requests() <= self.links.values().map(|link| link.credits as usize).sum());
        assert!(self.exchange.open_steps() <= self.steps.len());
    }

    fn carry_out(&mut self, action: Action, seen: &mut Seen) {
        match action {
            Action::Local { step, layer, rows, experts } => self.local(step, layer, &rows, &experts),
            Action::Send { step, peer, lane, id, epoch, layer, rows, experts } => {
                assert_eq!(epoch, self.table.version().epoch);
                assert!(rows.len() <= self.config.rows_per_frame());
                let run = self.run(step);
                assert_eq!(run.layer, layer);
                let asked = run.gather(&rows, &experts);
                let link = self.links.get_mut(&(peer, lane)).expect("a request on a link that is down");
                link.left = link.left.checked_sub(1).expect("a request without credit");
                let wire = Wire::Request { id, epoch, layer: layer.0, rows: asked };
                self.effects.push(Effect::Send { peer: (peer, lane), generation: link.generation, wire });
                seen.sent += 1;
            }
            Action::Accept { step, id, rows, positions } => self.accept(step, id, &rows, positions, seen),
            Action::Discard { id } => {
                assert_eq!(self.answer.take().map(|(answered, _)| answered), Some(id));
                seen.discarded += 1;
            }
            Action::Complete { step } => self.complete(step, seen),
            Action::Parked { step, layer, missing } => {
                let run = self.run(step);
                assert!(!std::mem::replace(&mut run.parked, true) && run.layer == layer && !missing.is_empty());
                seen.parked += 1;
            }
            Action::Resumed { step } => {
                assert!(std::mem::replace(&mut self.run(step).parked, false));
                seen.resumed += 1;
            }
            Action::GivenUp { step, rows, error } => self.give_up(step, &rows, &error, seen),
            Action::Failed { step, error } => panic!("step {step} fails: {error}"),
            Action::DropLink { peer, lane, error } => {
                assert!(matches!(error, ExchangeError::AnswerOverdue { .. }), "{error}");
                let link = self.links.remove(&(peer, lane)).expect("a link that is down is dropped");
                self.effects.push(Effect::DropLink { peer: (peer, lane), generation: link.generation });
                seen.dropped += 1;
            }
            Action::DropClient { error, .. } => panic!("a peer that keeps to the protocol is dropped: {error}"),
            Action::Grant { peer, lane, frames } => self.back((peer, lane), Wire::Credit { frames }),
            Action::Reply { peer, lane, id } => {
                let (layer, rows) = self.kept.remove(&((peer, lane), id)).expect("a reply to nothing");
                self.back((peer, lane), Wire::Answer { id, sums: rows.iter().map(|row| row.compute(layer)).collect() });
            }
            Action::ReplyNotHere { peer, lane, id, epoch } => {
                assert!(self.kept.remove(&((peer, lane), id)).is_some());
                seen.not_here += 1;
                self.back((peer, lane), Wire::NotHere { id, epoch });
            }
            Action::Forget { peer, lane, id } => {
                assert!(self.kept.remove(&((peer, lane), id)).is_some());
                seen.forgotten += 1;
            }
            Action::TableRefused { .. } => seen.refused += 1,
        }
    }

    fn run(&mut self, step: StepId) -> &mut StepRun {
        &mut self.steps.get_mut(&step.0).expect("an action for a step that is not open").1
    }

    fn local(&mut self, step: StepId, layer: LayerId, rows: &[u32], experts: &[u16]) {
        let held = self.held.clone();
        let run = self.run(step);
        assert!(rows.is_sorted() && run.layer == layer);
        for (row, asked) in rows.iter().zip(run.gather(rows, experts)) {
            let own = asked.experts.iter().filter(|expert| **expert != UNUSED).all(|e| held.contains(layer, ExpertId(*e)));
            assert!(own, "local experts that are not held");
            run.add(*row, asked.compute(layer));
        }
    }

    fn accept(&mut self, step: StepId, id: RequestId, rows: &[u32], positions: Option<Vec<u32>>, seen: &mut Seen) {
        let (answered, sums) = self.answer.take().expect("an answer is accepted twice");
        assert_eq!(answered, id);
        seen.accepted += 1;
        seen.partial += u64::from(positions.is_some());
        if positions.is_none() {
            assert_eq!(rows.len(), sums.len());
        }
        for (index, row) in rows.iter().enumerate() {
            let position = positions.as_ref().map_or(index, |positions| positions[index] as usize);
            self.run(step).add(*row, sums[position]);
        }
    }

    fn complete(&mut self, step: StepId, seen: &mut Seen) {
        let run = self.run(step);
        assert!(!run.parked, "a parked step completes");
        run.check_complete();
        seen.complete += 1;
        let Some((lane, run)) = self.steps.remove(&step.0) else { return };
        if run.layer.0 < run.last_layer {
            // The next layer, under the same id: a routing made from this one's.
            let mut rng = super::rng::Rng::new(run.rows.first().map_or(0, |row| row.hidden));
            let next = StepRun::new(&mut rng, run.layer.0 + 1, run.last_layer, run.rows.len(), self.shape.routing());
            self.steps.insert(step.0, (lane, next));
            self.inbox.push_back(Inbound::Open { step: step.0, lane });
        }
    }

    fn give_up(&mut self, step: StepId, rows: &[u32], error: &ExchangeError, seen: &mut Seen) {
        let ExchangeError::ExpertUnavailable { layer, experts, waited } = error else { panic!("{error}") };
        let (wait, now) = (self.config.wait_for_expert, self.now);
        let run = self.run(step);
        assert!(std::mem::replace(&mut run.parked, false) && run.layer == *layer && *waited >= wait);
        assert!(!experts.is_empty() && !rows.is_empty() && rows.is_sorted());
        for row in rows {
            let needs = run.rows[*row as usize].experts.iter().any(|expert| experts.contains(expert));
            assert!(needs, "row {row} is given up for experts that it does not need");
            assert!(!std::mem::replace(&mut run.given_up[*row as usize], true), "row {row} is given up twice");
        }
        for expert in experts {
            seen.unavailable.push((now, *layer, ExpertId(*expert)));
        }
        seen.failed += 1;
        seen.spared += u64::from(run.given_up.contains(&false));
    }

    fn back(&mut self, peer: Peer, wire: Wire) {
        let generation = *self.clients.get(&peer).expect("a word to a client that is gone");
        self.effects.push(Effect::Back { peer, generation, wire });
    }
}
