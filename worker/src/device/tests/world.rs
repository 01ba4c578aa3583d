//! Several devices of one group in one thread, and the wires between them. Nothing happens but what a test says, in the order that it says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use m1_arch::{Architecture, ExpertSet};
use m1_engine::{AllowedIds, RoutingShape, SequenceRequest, SequenceSpec};
use m1_exchange::{Event, Lane, Life, PodId};
use m1_proto::dispatch::Frame;
use m1_proto::dispatch::frame::Kind;
use m1_proto::worker::generate_event;
use m1_proto::worker::{FinishReason, GenerateEvent, Phase, StatusResponse};
use m1_weights::Checkpoint;
use m1_weights::source::Location;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::double;
use crate::config::{Config, ExecutorKind};
use crate::device::loaded::Load;
use crate::device::{Device, DeviceMessage, Group, GroupPod, NewSequence, Parts, SequenceKey};
use crate::status::SharedStatus;
use crate::tallies::Tallies;
use crate::transport::{CREDITS, Inbound, Link, PeerAddress, Said, Transport, check_request};

/// Room for all that one link may carry.
const ROOM: usize = 4096;

/// Connections are made by the test.
#[derive(Debug)]
struct NoTransport;

impl Transport for NoTransport {
    fn dial(&self, _: &PeerAddress, _: &CancellationToken) {}
}

/// One requester's connection to one server.
pub struct Wire {
    pub from: usize,
    pub to: usize,
    pub lane: Lane,
    pub up: bool,
    generation: u64,
    requests: mpsc::Receiver<Frame>,
    answers: mpsc::Receiver<Frame>,
}

/// A sequence of one pod, and what was read of it.
pub struct Reader {
    pub pod: usize,
    pub key: SequenceKey,
    pub prompt: Vec<u32>,
    pub tokens: usize,
    pub said: Vec<u32>,
    /// Whole logits of every position, where they were asked for.
    pub logits: Vec<u8>,
    pub end: Option<(FinishReason, String)>,
    pub cancelled: bool,
    events: mpsc::Receiver<Result<GenerateEvent, Status>>,
}

pub struct World {
    pub arch: Architecture,
    pub pods: Vec<Device>,
    pub wires: Vec<Wire>,
    pub readers: Vec<Reader>,
    generation: u64,
}

/// What the pods of a world are like.
#[derive(Clone, Copy)]
pub struct Setup {
    pub pods: usize,
    pub slots: u32,
    /// Beside a block for every slot.
    pub kv_tokens: u32,
    pub prefill_chunk: u32,
    pub set_aside: u64,
    pub threads: u16,
    pub load: Load,
}

impl Setup {
    fn config(&self, pod: usize) -> Config {
        let nowhere = "127.0.0.1:0".parse().unwrap();
        Config {
            model: Location::Folder(PathBuf::new()),
            fetch: None,
            pod: pod as u16,
            member: None,
            listen: nowhere,
            listen_fd: None,
            admin: None,
            executor: ExecutorKind::Cpu,
            threads: self.threads,
            slots: self.slots,
            kv_tokens: self.kv_tokens,
            set_aside: self.set_aside,
            max_context: self.kv_tokens.min(512),
            prefill_chunk: self.prefill_chunk,
            queue: 64,
            raw_logits_limit: 0,
            expert_wait: Duration::from_millis(50),
            drain: Duration::ZERO,
            tls: None,
        }
    }
}

impl World {
    /// So many pods, none of which is connected or holds anything yet.
    pub fn new(setup: Setup) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/testdata/tiny-B");
        let (arch, pods) = (Checkpoint::open(&folder).unwrap().architecture().clone(), setup.pods);
        let device = |pod| {
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let parts = Parts {
                known: AllowedIds::all(arch.vocab as u32),
                checkpoint,
                remote: None,
                load: setup.load,
                transport: Box::new(NoTransport),
                status: Arc::new(SharedStatus::new(StatusResponse::default())),
                tallies: Arc::new(Tallies::new(RoutingShape::of(&arch))),
                runtime: runtime(),
            };
            Device::new(&setup.config(pod), parts).unwrap()
        };
        let mut world = Self { pods: (0..pods).map(device).collect(), arch, wires: Vec::new(), readers: Vec::new(), generation: 0 };
        for from in 0..pods {
            for to in (0..pods).filter(|to| *to != from) {
                for lane in [Lane::Decode, Lane::Prefill] {
                    let (requests, answers) = (mpsc::channel(1).1, mpsc::channel(1).1);
                    world.wires.push(Wire { from, to, lane, up: false, generation: 0, requests, answers });
                }
            }
        }
        world
    }

    /// The experts of an even share; `copies` of each.
    pub fn shares(&self, copies: usize, shift: usize) -> Vec<ExpertSet> {
        let (layers, experts, pods) = (self.arch.layers.len(), self.arch.experts, self.pods.len());
        let mut shares = vec![ExpertSet::empty(layers, experts); pods];
        for (layer, expert) in ExpertSet::full(layers, experts).iter() {
            for copy in 0..copies {
                shares[(expert.index() + shift + copy) % pods].insert(layer, expert);
            }
        }
        shares
    }

    /// Says a placement to all.
    pub fn place(&mut self, epoch: u64, shares: &[ExpertSet]) {
        let pod = |(id, holds): (usize, &ExpertSet)| GroupPod {
            id: PodId(id as u16),
            address: format!("pod-{id}:1"),
            holds: holds.clone(),
        };
        let group = Group { lease_transitions: 1, epoch, pods: shares.iter().enumerate().map(pod).collect() };
        for device in &mut self.pods {
            let (reply, mut answer) = oneshot::channel();
            device.take(DeviceMessage::Place { group: group.clone(), reply });
            assert_eq!(answer.try_recv().unwrap(), Ok(()));
        }
    }

    pub fn epoch(&self, pod: usize) -> u64 {
        self.pods[pod].status.epoch()
    }

    pub fn phase(&mut self, pod: usize) -> Phase {
        self.pods[pod].report();
        self.pods[pod].status.read().phase()
    }

    pub fn connect_all(&mut self) {
        (0..self.wires.len()).for_each(|wire| self.connect(wire));
    }

    pub fn connect(&mut self, wire: usize) {
        if self.wires[wire].up {
            return;
        }
        self.generation += 1;
        let (of_requester, requests) = Link::with_room(self.generation, ROOM);
        let (of_server, answers) = Link::with_room(self.generation, ROOM);
        let Wire { from, to, lane, .. } = self.wires[wire];
        self.wires[wire] = Wire { from, to, lane, up: true, generation: self.generation, requests, answers };
        self.dispatch(to, Inbound::ClientUp { peer: PodId(from as u16), lane, link: of_server });
        self.dispatch(from, Inbound::LinkUp { peer: PodId(to as u16), lane, link: of_requester, credits: CREDITS });
    }

    /// Cuts a wire: what is on it is lost. Which end hears first is for the caller to say.
    pub fn cut(&mut self, wire: usize, requester_first: bool) {
        let Wire { from, to, lane, generation, up, .. } = &mut self.wires[wire];
        if !std::mem::take(up) {
            return;
        }
        let (from, to, lane, generation) = (*from, *to, *lane, *generation);
        let down = |world: &mut Self, requester: bool| match requester {
            true => world.dispatch(from, Inbound::LinkDown { peer: PodId(to as u16), lane, generation }),
            false => world.dispatch(to, Inbound::ClientDown { peer: PodId(from as u16), lane, generation }),
        };
        down(self, requester_first);
        down(self, !requester_first);
    }

    fn dispatch(&mut self, pod: usize, inbound: Inbound) {
        self.pods[pod].take(DeviceMessage::Dispatch(inbound));
    }

    /// Brings the next frame of a wire to its end. False: there is none.
    pub fn deliver(&mut self, wire: usize, answers: bool) -> bool {
        let at = &mut self.wires[wire];
        let (peer_of_server, peer_of_requester) = (PodId(at.from as u16), PodId(at.to as u16));
        let (from, to, lane, generation) = (at.from, at.to, at.lane, at.generation);
        let frame = if answers { at.answers.try_recv() } else { at.requests.try_recv() };
        let Some(kind) = frame.ok().and_then(|frame| frame.kind).filter(|_| at.up) else { return false };
        let said = match kind {
            Kind::Request(request) => {
                let request = check_request(&self.arch, request).unwrap();
                self.dispatch(to, Inbound::ClientAsks { peer: peer_of_server, lane, generation, request });
                return true;
            }
            Kind::Answer(answer) => Said::Answer { id: answer.id, tokens: answer.tokens, sums: answer.sums },
            Kind::NotHere(not_here) => Said::NotHere { id: not_here.id, epoch: not_here.epoch },
            Kind::Credit(credit) => Said::Credit { frames: credit.frames },
            Kind::Refused(_) => {
                self.cut(wire, true);
                return true;
            }
            other => panic!("{other:?}"),
        };
        self.dispatch(from, Inbound::LinkSays { peer: peer_of_requester, lane, generation, said });
        true
    }

    /// One piece of work of a pod. False: there is none.
    pub fn work(&mut self, pod: usize) -> bool {
        self.pods[pod].work()
    }

    /// Time passes: a pod hears its peers' heartbeats.
    pub fn tick(&mut self, pod: usize) {
        for peer in 0..self.pods.len() {
            let connected = self.wires.iter().any(|wire| wire.from == pod && wire.to == peer && wire.up);
            if peer != pod && connected {
                let (epoch, still, busy) = (Some(self.epoch(peer)), Duration::ZERO, Duration::ZERO);
                let life = Life { epoch, still, busy, since_busy: None };
                self.pods[pod].tell(Event::Life { peer: PodId(peer as u16), life });
            }
        }
        self.pods[pod].tick();
    }

    /// A new greedy sequence; its place among the readers, or why it was refused.
    pub fn submit(&mut self, pod: usize, prompt: Vec<u32>, tokens: usize) -> Result<usize, Status> {
        self.ask(pod, SequenceRequest::greedy(prompt, tokens as u32))
    }

    /// The same of any kind.
    pub fn ask(&mut self, pod: usize, request: SequenceRequest) -> Result<usize, Status> {
        let key = SequenceKey(self.readers.len() as u64);
        let (prompt, tokens) = (request.prompt.clone(), request.max_tokens as usize);
        let (sink, events) = mpsc::channel(4 * (prompt.len() + tokens) + 64);
        let (accepted, mut answer) = oneshot::channel();
        let limits = self.pods[pod].config.limits(&self.arch);
        let spec = SequenceSpec::new(request, &limits).unwrap();
        let new = NewSequence { key, spec, text: None, tally: None, events: sink, accepted };
        self.pods[pod].take(DeviceMessage::Generate(Box::new(new)));
        answer.try_recv().expect("an answer at once")?;
        let (said, logits, end, cancelled) = Default::default();
        self.readers.push(Reader { pod, key, prompt, tokens, said, logits, end, cancelled, events });
        Ok(self.readers.len() - 1)
    }

    pub fn cancel(&mut self, reader: usize) {
        let Reader { pod, key, .. } = self.readers[reader];
        self.readers[reader].cancelled = true;
        self.pods[pod].take(DeviceMessage::Cancel(key));
    }

    /// Reads what has come.
    pub fn read(&mut self) {
        for reader in &mut self.readers {
            while let Ok(event) = reader.events.try_recv() {
                assert!(reader.end.is_none(), "something comes after the end");
                match event.unwrap().event.unwrap() {
                    generate_event::Event::Tokens(tokens) => reader.said.extend(tokens.ids),
                    generate_event::Event::Finished(end) => reader.end = Some((end.reason(), end.error_reason)),
                    generate_event::Event::RawLogits(raw) => {
                        let row = self.arch.vocab * size_of::<f32>();
                        assert_eq!(reader.logits.len(), raw.position as usize * row, "each position once, in order");
                        reader.logits.extend_from_slice(&raw.values);
                    }
                }
            }
        }
    }

    /// Works and delivers until nothing moves any more, or `rounds` are over. True: nothing moves.
    pub fn settle(&mut self, rounds: usize) -> bool {
        for _ in 0..rounds {
            let mut moved = false;
            for pod in 0..self.pods.len() {
                while self.work(pod) {
                    moved = true;
                }
            }
            for wire in 0..self.wires.len() {
                while self.deliver(wire, false) | self.deliver(wire, true) {
                    moved = true;
                }
            }
            self.read();
            if !moved {
                return true;
            }
        }
        false
    }

    /// The same with time passing, until every sequence has ended.
    pub fn finish(&mut self) {
        let began = std::time::Instant::now();
        while self.readers.iter().any(|reader| reader.end.is_none() && !reader.cancelled) {
            self.settle(1_000_000);
            (0..self.pods.len()).for_each(|pod| self.tick(pod));
            if began.elapsed() > Duration::from_secs(20) {
                panic!("a sequence never ends: {:?}", self.readers.iter().map(|reader| &reader.end).collect::<Vec<_>>());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.settle(1_000_000);
    }

    /// Whether each sequence said what it says alone, as far as it came; whoever ended without an error said it all.
    pub fn check(&mut self) {
        for reader in &mut self.readers {
            let wanted = double::oracle(&self.arch, &reader.prompt, reader.tokens);
            assert!(wanted.starts_with(&reader.said), "{:?} is not the head of {wanted:?}", reader.said);
            if matches!(reader.end, Some((FinishReason::FinishLength, _))) {
                assert_eq!(reader.said, wanted);
            }
        }
    }
}

impl Reader {
    pub fn is_whole(&self) -> bool {
        self.said.len() == self.tokens
    }
}

/// A handle that the devices never use.
fn runtime() -> tokio::runtime::Handle {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.handle().clone())
}
