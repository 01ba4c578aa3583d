//! The device thread: the one owner of weights, caches, sequences and the exchange with peers. Everything reaches it through
//! its inbox; it never waits for the network and never blocks on a send.
//!
//! One turn: read the inbox, hand over a step of each kind and what peers ask for, then let the executor do one piece of work or pick up what it
//! has done. Whose piece that is, is the executor's to say: own steps and peers' requests, streams and prompts share the time. Between
//! two pieces it looks at the decode lane's connections, which it drives itself; with nothing to do it sleeps until something comes, there or in its inbox.

mod announce;
pub(crate) mod convert;
mod dispatch;
mod fetch;
mod group;
mod inbox;
mod links;
mod loaded;
mod own_step;
mod report;
mod sequences;
mod serving;
mod streams;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use m1_arch::Architecture;
use m1_engine::{AllowedIds, Command, Completion, Failure, RoutingShape, Scheduler, SchedulerConfig, Turn};
use m1_exchange::{Action, DispatchTable, Exchange, Micros, PodId};
use m1_weights::Checkpoint;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::Config;
use crate::service::reasoned;
use crate::status::SharedStatus;
use crate::tallies::Tallies;
use crate::transport::{CREDITS, DeviceIo, Transport};
use announce::Announcer;
use fetch::Fetching;
use group::{Peers, Placing};
use links::Links;
use loaded::{Boxed, Load};
use own_step::OwnStep;
use sequences::Sequences;
use serving::Requests;

pub use fetch::Remote;
pub use inbox::{DeviceHandle, DeviceMessage, Gone, Group, GroupPod, NewSequence, SequenceKey};
pub use loaded::{LoadError, load};
pub use sequences::must_arrive;

/// Messages taken in before the next piece of work: more than come in one, so that only a flood is held back.
const MESSAGES_PER_TURN: usize = 128;

/// Part of a prefill step that is read at once while streams wait for their next tokens.
const BESIDE: u32 = 4;
/// Tokens of that at least: a block, below which the same weights are read for less and less.
const LEAST_BESIDE: u32 = 64;

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The scheduler refuses the configuration.
    #[error("scheduler: {0}")]
    Scheduler(#[from] m1_engine::SchedulerError),
    /// The exchange refuses the configuration.
    #[error("expert dispatch: {0}")]
    Exchange(#[from] m1_exchange::ConfigError),
    /// The operating system gives no thread.
    #[error("the device thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// What the device thread is made of.
#[derive(Debug)]
pub struct Parts {
    /// The model on disk.
    pub checkpoint: Checkpoint,
    /// Where the rest of it comes from; none where all is on disk.
    pub remote: Option<Remote>,
    /// Ids that may be sampled.
    pub known: AllowedIds,
    /// Makes the executor.
    pub load: Load,
    /// Opens connections to peers.
    pub transport: Box<dyn Transport>,
    /// What the rest of the process sees.
    pub status: Arc<SharedStatus>,
    /// Whom sequences are counted for.
    pub tallies: Arc<Tallies>,
    /// Where connections run.
    pub runtime: tokio::runtime::Handle,
}

/// What is left of the connections that the device drives may take so long to go out when it ends.
const FINISH: Duration = Duration::from_millis(500);

/// Starts the device thread. `ended` is cancelled when it ends, for whatever reason.
///
/// # Errors
/// A configuration that the parts refuse, or no thread.
pub fn spawn(
    config: &Config,
    parts: Parts,
    io: DeviceIo,
    inbox: mpsc::Receiver<DeviceMessage>,
    ended: CancellationToken,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = parts.runtime.clone();
    let device = Device::new(config, parts)?;
    Ok(std::thread::Builder::new().name("device".into()).spawn(move || {
        let _ended = ended.drop_guard();
        let _runtime = runtime.enter();
        device.run(io, inbox);
    })?)
}

/// The state of the device thread.
struct Device {
    config: Config,
    arch: Architecture,
    checkpoint: Arc<Checkpoint>,
    remote: Option<Remote>,
    /// The placement whose shards are being fetched.
    fetching: Option<Fetching>,
    /// The one whose experts are being loaded.
    placing: Option<Placing>,
    load: Load,
    transport: Box<dyn Transport>,
    status: Arc<SharedStatus>,
    tallies: Arc<Tallies>,
    /// When counts were published last; none before the first time.
    counted: Option<Instant>,
    /// Absent until a placement was applied.
    executor: Option<Boxed>,
    announcer: Announcer,
    sequences: Sequences,
    /// When those who wait for a sequence that is set aside heard of it last.
    reassured: Instant,
    exchange: Exchange,
    links: Links,
    peers: Peers,
    /// Own steps in flight, oldest first.
    steps: Vec<OwnStep>,
    /// What peers asked for.
    requests: Requests,
    /// Memory of the list of actions.
    actions: Vec<Action>,
    draining: bool,
    started: Instant,
}

impl Device {
    fn new(config: &Config, parts: Parts) -> Result<Self, StartError> {
        let Parts { checkpoint, remote, known, load, transport, status, tallies, .. } = parts;
        let arch = checkpoint.architecture().clone();
        let limits = config.limits(&arch);
        let scheduler = SchedulerConfig {
            limits,
            queue: config.queue,
            prefill_tokens: config.prefill_chunk,
            prefill_beside: (config.prefill_chunk / BESIDE).max(config.prefill_chunk.min(LEAST_BESIDE)),
            aside_bytes: config.set_aside,
        };
        let (layers, experts) = (arch.layers.len(), arch.experts);
        let mut exchange = m1_exchange::Config::new(PodId(config.pod), layers, experts, arch.top_k, arch.hidden);
        exchange.credits = CREDITS;
        exchange.wait_for_expert = config.expert_wait;
        exchange.first_id = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64);
        Ok(Self {
            sequences: Sequences::new(Scheduler::new(scheduler, RoutingShape::of(&arch), known)?),
            reassured: Instant::now(),
            exchange: Exchange::new(exchange, Arc::new(DispatchTable::empty(layers, experts)))?,
            config: config.clone(),
            arch,
            checkpoint: Arc::new(checkpoint),
            remote,
            fetching: None,
            placing: None,
            load,
            transport,
            announcer: Announcer::new(status.clone()),
            status,
            tallies,
            counted: None,
            executor: None,
            links: Links::default(),
            peers: Peers::default(),
            steps: Vec::new(),
            requests: Requests::default(),
            actions: Vec::new(),
            draining: false,
            started: Instant::now(),
        })
    }

    fn run(mut self, mut io: DeviceIo, mut inbox: mpsc::Receiver<DeviceMessage>) {
        self.turns(&mut io, &mut inbox);
        self.stop();
        // Nobody waits any more for room in front of a device that takes nothing.
        drop(inbox);
        io.finish(FINISH);
    }

    /// Takes turns until there is nobody left to work for.
    fn turns(&mut self, io: &mut DeviceIo, inbox: &mut mpsc::Receiver<DeviceMessage>) {
        let mut busy = false;
        loop {
            // A turn that found work looks whether more has come; one that found none sleeps until something comes.
            let mut next = if busy {
                io.look();
                inbox.try_recv().ok()
            } else {
                io.wait(inbox)
            };
            if next.is_none() && inbox.is_closed() && inbox.is_empty() {
                return;
            }
            let mut taken = 0;
            while let Some(message) = next {
                if matches!(message, DeviceMessage::Stop) {
                    return;
                }
                self.take(message);
                taken += 1;
                next = if taken < MESSAGES_PER_TURN { inbox.try_recv().ok() } else { None };
            }
            self.status.turn();
            if self.status.pulses().take_tick() {
                self.tick();
            }
            busy = self.work();
            if self.sequences.any_ended() {
                // Whoever waits for these counts shall see with them what is free again.
                self.report();
                self.sequences.publish_ended();
            }
        }
    }

    /// One piece of work. False: there is none now.
    fn work(&mut self) -> bool {
        if self.tend_steps() {
            return true;
        }
        while self.begin() {}
        self.hand_over_requests();
        let Some(executor) = &mut self.executor else { return false };
        match self.announcer.turn(executor.due(), || executor.turn()) {
            Turn::Done(completion) => self.completed(completion),
            Turn::Working => {}
            Turn::Idle => return false,
        }
        true
    }

    /// Hands over what is to become of sequences' states.
    fn move_states(&mut self) {
        for what in self.sequences.scheduler.take_moves() {
            self.submit(Command::Move(what));
        }
    }

    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Routed { step, layer, routing } => self.routed(step, layer, routing),
            Completion::Gathered { step, hidden } => self.send(step, hidden),
            Completion::Ended { step, results } => self.step_ended(step, results),
            Completion::Failed { step, error } => self.step_failed(step, &error),
            Completion::Served { key, sums } => self.served(key, sums),
            Completion::Loading { .. } => {}
            Completion::Loaded { result, .. } => self.loaded(result),
            Completion::Exported { slot, state } => self.sequences.exported(slot, state),
            Completion::Imported { slot, result } => self.sequences.imported(slot, result),
        }
    }

    fn submit(&mut self, command: Command<Arc<Checkpoint>>) {
        if let Some(executor) = &mut self.executor {
            executor.submit(command);
        }
    }

    fn take(&mut self, message: DeviceMessage) {
        match message {
            DeviceMessage::Dispatch(inbound) => self.heard(inbound),
            DeviceMessage::Generate(new) => self.admit(*new),
            DeviceMessage::Cancel(key) => {
                self.sequences.cancel(key);
                self.abort_unwanted();
            }
            DeviceMessage::Place { group, reply } => self.place(group, reply),
            DeviceMessage::Fetched { version, result } => self.fetched(version, result),
            DeviceMessage::Drain => {
                self.draining = true;
                self.report();
            }
            DeviceMessage::Leave => self.leave(),
            DeviceMessage::Tick => self.status.pulses().unqueue_tick(),
            DeviceMessage::Stop => {}
        }
    }

    fn admit(&mut self, new: NewSequence) {
        let refusal = match (&self.executor, self.draining) {
            (_, true) => reasoned(Status::unavailable("this worker drains and admits no more"), "Draining"),
            (None, _) => reasoned(Status::unavailable("this worker has no weights yet"), "NotReady"),
            (Some(_), false) => return self.sequences.admit(new),
        };
        // Whoever asked may have gone away.
        let _ = new.accepted.send(Err(refusal));
    }

    /// Ends what is left: sequences end with an error that says so.
    fn stop(mut self) {
        let failure = Failure { reason: "Stopping", message: "this worker stops".into() };
        self.fail_steps(&failure);
        self.sequences.fail_all(&failure);
        self.peers.forget_all();
        self.report();
    }

    /// The exchange's clock.
    fn now(&self) -> Micros {
        Micros(self.started.elapsed().as_micros() as u64)
    }
}

#[cfg(test)]
mod tests;
