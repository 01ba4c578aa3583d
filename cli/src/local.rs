//! Replica groups as processes of this machine. Plays the operator's part: starts workers, tells each who the others are,
//! follows what they say. Used by `up`, `generate` and `forward`; knows nothing of routers or prompts.
//!
//! The placement is pushed by level, not by event: whenever a worker speaks that has not accepted the group's epoch, it is
//! told. A worker that was away therefore needs no special case.

mod error;
pub mod logs;
pub mod patience;
pub mod placement;
mod plan;
pub mod ports;
pub mod process;
mod watch;

use std::path::Path;
use std::time::Duration;

use m1_proto::worker::{Phase, StatusResponse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::error::Failure;
use crate::output::Console;
use crate::progress::{Loading, word};
pub use error::LocalError;
use logs::LineSink;
use patience::{PATIENCE, Patience, Progress};
use placement::LocalPod;
pub use plan::{Limits, LocalPlan};
use process::{Exit, Launch, Member, Process};
pub use watch::{Client, chain};

/// Events that wait for the group's owner.
const EVENTS: usize = 256;
/// Time between SIGTERM and SIGKILL for workers that serve nobody any more.
pub const SHORT_GRACE: Duration = Duration::from_secs(5);

/// Seconds that a token waits for a lost expert where a lost worker ends the command anyway.
pub const EXPERT_WAIT: u32 = 5;

/// A worker that took its placement and still says that it waits, or that it runs an older one, is told again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// What happened in a group.
#[derive(Debug)]
pub enum Event {
    /// A process has ended.
    Exited {
        /// Which one.
        member: Member,
        /// How.
        exit: Exit,
    },
    /// A worker said how it is.
    Status {
        /// Which one, by seat.
        seat: usize,
        /// What it said.
        status: Box<StatusResponse>,
    },
    /// A worker is not heard, or not any more.
    Unheard {
        /// Which one, by seat.
        seat: usize,
        /// Why, in words.
        why: String,
        /// Whether somebody else answers in its place.
        stranger: bool,
    },
    /// A placement was pushed to a worker, or could not be.
    Pushed {
        /// Which one, by seat.
        seat: usize,
        /// Number of the placement.
        epoch: u64,
        /// Whether it took it.
        result: Result<(), tonic::Status>,
    },
}

/// What is known of one worker.
#[derive(Debug)]
struct Seat {
    launch: Launch,
    process: Option<Process>,
    status: Option<StatusResponse>,
    /// Why there is no status.
    silence: String,
    pushing: bool,
    /// The placement it has accepted; 0 for none.
    accepted: u64,
    /// When it did.
    told: Option<Instant>,
    /// The placement of its group.
    epoch: u64,
}

impl Seat {
    fn new(launch: Launch) -> Self {
        let silence = "it has not answered yet".to_owned();
        Self { launch, process: None, status: None, silence, pushing: false, accepted: 0, told: None, epoch: 1 }
    }

    /// Whether a worker that says this is to be told its placement. What it says counts, not what it is believed to know: a process that took the place
    /// of one that was told knows nothing.
    fn is_due(&self, status: &StatusResponse, now: Instant) -> bool {
        let ignorant = match status.phase() {
            Phase::Unspecified | Phase::Waiting => true,
            Phase::Connecting | Phase::Ready => status.epoch < self.accepted,
            // The epoch that it loads for is told once it is applied.
            Phase::Loading | Phase::Failed => false,
            Phase::Draining => return false,
        };
        let rested = self.told.is_none_or(|told| now >= told + AGAIN);
        !self.pushing && (self.accepted < self.epoch || (ignorant && rested))
    }
}

/// Running workers. Dropping them kills their processes.
#[derive(Debug)]
pub struct Workers {
    plan: LocalPlan,
    seats: Vec<Seat>,
    patience: Patience,
    shown: Option<Console>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    tasks: JoinSet<()>,
}

impl Workers {
    /// Starts a worker per pod. Their lines are shown on `shown`, or only kept for errors.
    ///
    /// # Errors
    /// `m1-worker` is not there or does not start.
    pub fn start(plan: LocalPlan, shown: Option<Console>) -> Result<Self, LocalError> {
        Self::run(plan, &process::find("m1-worker")?, PATIENCE, shown)
    }

    fn run(plan: LocalPlan, program: &Path, patience: Duration, shown: Option<Console>) -> Result<Self, LocalError> {
        let (sender, events) = mpsc::channel(EVENTS);
        let mut tasks = JoinSet::new();
        for (seat, pod) in plan.pods.iter().enumerate() {
            tasks.spawn(watch::follow(seat, pod.address, plan.member(seat), sender.clone()));
        }
        let seats: Vec<Seat> = (0..plan.pods.len()).map(|seat| Seat::new(plan.launch(program, seat))).collect();
        let patience = Patience::new(patience, seats.len(), Instant::now());
        let mut workers = Self { plan, seats, patience, shown, sender, events, tasks };
        for seat in 0..workers.seats.len() {
            workers.spawn(seat)?;
        }
        Ok(workers)
    }

    /// Starts a worker whose process is gone, at the same address. Its group gets the same placement under a new number.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, seat: usize) -> Result<(), LocalError> {
        let group = self.plan.pods[seat].group;
        for (other, _) in self.seats.iter_mut().zip(&self.plan.pods).filter(|(_, pod)| pod.group == group) {
            other.epoch += 1;
        }
        self.spawn(seat)
    }

    fn spawn(&mut self, seat: usize) -> Result<(), LocalError> {
        let sink = LineSink::new(self.plan.pods[seat].name.clone(), seat, self.shown.clone());
        let known = &mut self.seats[seat];
        (known.status, known.accepted, known.told) = (None, 0, None);
        known.process = Some(Process::start(&known.launch, sink, self.sender.clone())?);
        self.patience.begins(seat, Instant::now());
        Ok(())
    }

    /// The pods, by seat.
    pub fn pods(&self) -> &[LocalPod] {
        &self.plan.pods
    }

    /// The name of a process.
    pub fn name(&self, member: Member) -> &str {
        match member {
            Member::Worker(seat) => &self.plan.pods[seat].name,
            Member::Router => "router",
        }
    }

    /// Process ids by seat; 0 where none runs.
    pub fn pids(&self) -> Vec<u32> {
        self.seats.iter().map(|seat| seat.process.as_ref().map_or(0, Process::pid)).collect()
    }

    /// Number of the placement in force in a worker's group.
    pub fn epoch(&self, seat: usize) -> u64 {
        self.seats[seat].epoch
    }

    /// Where other processes of the same deployment tell their end.
    pub fn sender(&self) -> mpsc::Sender<Event> {
        self.sender.clone()
    }

    /// Whether the worker serves under the placement in force.
    pub fn is_ready(&self, seat: usize) -> bool {
        let known = &self.seats[seat];
        known.status.as_ref().is_some_and(|status| status.phase() == Phase::Ready && status.epoch == known.epoch)
    }

    /// Whether every worker does.
    pub fn all_ready(&self) -> bool {
        (0..self.seats.len()).all(|seat| self.is_ready(seat))
    }

    /// When the workers that run and do not serve are given up, unless something moves before; none where all serve.
    pub fn gives_up_at(&self) -> Option<Instant> {
        self.waited_for().next().map(|_| self.patience.ends())
    }

    /// The worker that has come least far of those that run and do not serve, and what is wrong with it.
    pub fn stuck(&self) -> Option<(usize, LocalError)> {
        let seat = self.patience.last(self.waited_for())?;
        let (pod, known) = (&self.plan.pods[seat], &self.seats[seat]);
        let why = match &known.status {
            Some(status) => [format!("it is {}", word(status.phase())), status.reason.clone(), status.message.clone()],
            None => [format!("nobody is heard at {}", pod.address), known.silence.clone(), String::new()],
        };
        let why = why.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(": ");
        Some((seat, LocalError::Stuck { name: pod.name.clone(), why, seconds: self.patience.limit().as_secs() }))
    }

    fn waited_for(&self) -> impl Iterator<Item = usize> {
        (0..self.seats.len()).filter(|&seat| self.seats[seat].process.is_some() && !self.is_ready(seat))
    }

    /// Kills a worker; its end is told like any other.
    pub fn kill(&mut self, seat: usize) {
        if let Some(process) = &self.seats[seat].process {
            process.kill();
            self.patience.begins(seat, Instant::now());
        }
    }

    /// Waits for the next event, having kept its own books and pushed the placement where it is due.
    ///
    /// # Errors
    /// A worker cannot go on: it says FAILED, or refuses the placement.
    pub async fn next(&mut self) -> Result<Event, LocalError> {
        // A sender is kept here, so the channel never ends.
        let Some(event) = self.events.recv().await else { return std::future::pending().await };
        match &event {
            Event::Exited { member: Member::Worker(seat), .. } => {
                self.seats[*seat].status = None;
                self.seats[*seat].process = None;
            }
            Event::Exited { member: Member::Router, .. } => {}
            Event::Status { seat, status } => self.heard(*seat, status)?,
            Event::Unheard { seat, why, .. } => {
                let known = &mut self.seats[*seat];
                (known.status, known.silence) = (None, why.clone());
            }
            Event::Pushed { seat, epoch, result } => self.pushed(*seat, *epoch, result)?,
        }
        Ok(event)
    }

    fn heard(&mut self, seat: usize, status: &StatusResponse) -> Result<(), LocalError> {
        let (known, pod) = (&mut self.seats[seat], &self.plan.pods[seat]);
        if known.process.is_none() {
            // Said by the process that is gone.
            return Ok(());
        }
        known.status = Some(status.clone());
        let now = Instant::now();
        self.patience.reached(seat, Progress::of(status), now);
        if status.phase() == Phase::Failed {
            let (reason, message) = (status.reason.clone(), status.message.clone());
            return Err(LocalError::Failed { name: pod.name.clone(), reason, message });
        }
        if known.is_due(status, now) {
            known.pushing = true;
            let request = placement::request(known.epoch, pod.group, &self.plan.pods);
            self.tasks.spawn(watch::push((seat, pod.address), self.plan.member(seat), request, self.sender.clone()));
        }
        Ok(())
    }

    fn pushed(&mut self, seat: usize, epoch: u64, result: &Result<(), tonic::Status>) -> Result<(), LocalError> {
        while self.tasks.try_join_next().is_some() {}
        let known = &mut self.seats[seat];
        known.pushing = false;
        match result {
            // A newer number than the one accepted makes the next status push again.
            Ok(()) => (known.accepted, known.told) = (epoch, Some(Instant::now())),
            Err(status) if !watch::is_transient(status) => {
                let name = self.plan.pods[seat].name.clone();
                return Err(LocalError::Refused { name, message: status.message().to_owned() });
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Waits until every worker serves.
    ///
    /// # Errors
    /// A worker ended, failed, or does not come up.
    pub async fn ready(&mut self, loading: &mut Loading) -> Result<(), LocalError> {
        while !self.all_ready() {
            let until = self.gives_up_at();
            let event = tokio::select! {
                event = self.next() => event?,
                () = at(until) => match self.stuck() {
                    Some((_, error)) => return Err(error),
                    None => continue,
                },
            };
            match event {
                Event::Exited { member, exit } => return Err(LocalError::died(self.name(member), &exit)),
                Event::Status { seat, status } => loading.update(seat, &status),
                Event::Pushed { .. } | Event::Unheard { .. } => {}
            }
        }
        loading.finish();
        Ok(())
    }

    /// Completes when the workers are no longer whole, with the reason.
    pub async fn broken(&mut self) -> LocalError {
        loop {
            match self.next().await {
                Ok(Event::Exited { member, exit }) => return LocalError::died(self.name(member), &exit),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// A connection to a worker.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn client(&self, seat: usize) -> Result<Client, LocalError> {
        let pod = &self.plan.pods[seat];
        let failed = |error| LocalError::Unreachable { name: pod.name.clone(), message: chain(&error) };
        watch::connect(pod.address, &self.plan.member(seat)).await.map_err(failed)
    }

    /// Ends every worker: SIGTERM, then SIGKILL after `grace` or as soon as `hurry` completes.
    pub async fn stop(mut self, grace: Duration, hurry: impl Future) {
        // Ends of processes are told to nobody from here on.
        self.events.close();
        self.tasks.shutdown().await;
        let processes = self.seats.iter_mut().filter_map(|seat| seat.process.take()).collect();
        stop_all(processes, grace, hurry).await;
    }
}

/// Ends processes: SIGTERM, then SIGKILL after `grace` or as soon as `hurry` completes. Returns when all are gone.
pub async fn stop_all(mut processes: Vec<Process>, grace: Duration, hurry: impl Future) {
    for process in &processes {
        process.terminate();
    }
    let gone = async {
        for process in &mut processes {
            process.gone().await;
        }
    };
    tokio::select! {
        () = gone => return,
        () = tokio::time::sleep(grace) => {}
        _ = hurry => {}
    }
    for process in &mut processes {
        if !process.is_gone() {
            process.kill();
            process.gone().await;
        }
    }
}

/// Starts workers, does `work` with them once they serve, and stops them, whatever comes of it: the end of the work, a signal,
/// or the loss of a worker.
///
/// # Errors
/// What went wrong first.
pub async fn with_workers<T>(
    plan: LocalPlan,
    shown: Option<Console>,
    mut loading: Loading,
    work: impl AsyncFnOnce(Vec<Client>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let signal = m1_runtime::shutdown::signal();
    let mut workers = Workers::start(plan, shown)?;
    let whole = async {
        workers.ready(&mut loading).await?;
        let mut clients = Vec::new();
        for seat in 0..workers.pods().len() {
            clients.push(workers.client(seat).await?);
        }
        tokio::select! {
            // A worker that died is a better answer than the stream it broke.
            biased;
            error = workers.broken() => Err(error.into()),
            result = work(clients) => result,
        }
    };
    let result = tokio::select! {
        result = whole => result,
        _ = signal => Err(LocalError::Interrupted.into()),
    };
    workers.stop(SHORT_GRACE, m1_runtime::shutdown::signal()).await;
    result
}

/// Completes at a time; never where none is given.
pub async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(phase: Phase, epoch: u64) -> StatusResponse {
        StatusResponse { phase: phase.into(), epoch, ..StatusResponse::default() }
    }

    #[test]
    fn a_worker_that_waits_is_told_again_whatever_was_believed() {
        let now = Instant::now();
        let launch = Launch { member: Member::Worker(0), program: "m1-worker".into(), args: Vec::new(), socket: None };
        let mut seat = Seat::new(launch);
        assert!(seat.is_due(&says(Phase::Waiting, 0), now), "it was told nothing yet");
        (seat.accepted, seat.told) = (1, Some(now));
        assert!(!seat.is_due(&says(Phase::Waiting, 0), now), "said before it was told");
        let later = now + AGAIN;
        assert!(seat.is_due(&says(Phase::Waiting, 0), later), "another process answers at its address");
        assert!(!seat.is_due(&says(Phase::Loading, 0), later), "it does what it was told");
        assert!(!seat.is_due(&says(Phase::Ready, 1), later));
        seat.epoch = 2;
        assert!(seat.is_due(&says(Phase::Ready, 1), now), "there is a newer one");
        assert!(!seat.is_due(&says(Phase::Draining, 1), later), "it takes nothing any more");
        (seat.accepted, seat.told) = (2, Some(now));
        assert!(seat.is_due(&says(Phase::Connecting, 1), later), "what it took is lost");
        seat.pushing = true;
        assert!(!seat.is_due(&says(Phase::Waiting, 0), later), "it is being told");
    }

    #[tokio::test]
    async fn a_worker_that_never_answers_is_given_up_by_name() {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/silent-worker.sh");
        let sockets = ports::free(std::net::IpAddr::from([127, 0, 0, 1]), 2).unwrap();
        let pods: Vec<LocalPod> = (0..2)
            .map(|pod| LocalPod {
                group: 0,
                pod,
                name: format!("pod {pod}"),
                address: sockets[usize::from(pod)].address(),
                holds: m1_arch::ExpertSet::full(1, 1),
                bytes: m1_arch::Bytes(1),
            })
            .collect();
        let address = pods[0].address;
        let limits = Limits { slots: 1, kv_tokens: 9, max_context: 9, prefill_chunk: 1, expert_wait: 1, drain_seconds: 1 };
        let whose = "local/m1/0b54".parse().unwrap();
        let plan = LocalPlan { model: "/m".into(), whose, pods, sockets, limits, threads: None };
        let mut workers = Workers::run(plan, &program, Duration::from_millis(300), None).unwrap();
        let mut loading = Loading::new(None, Vec::new());
        let waited = tokio::time::timeout(Duration::from_secs(20), workers.ready(&mut loading));
        let error = waited.await.expect("not for ever").unwrap_err();
        assert_eq!(error.reason(), "WorkerStuck");
        let expected =
            format!("pod 0 does not come up: nobody is heard at {address}: it has not answered yet; nothing has moved for 0 s");
        assert_eq!(error.to_string(), expected);
        workers.stop(Duration::ZERO, std::future::pending::<()>()).await;
    }

    #[test]
    fn a_failed_worker_speaks_for_itself() {
        let error = LocalError::Failed { name: "pod 0".into(), reason: "ShapeMismatch".into(), message: "x is [2]".into() };
        assert_eq!(Failure::from(error).to_string(), "m1ctl: pod 0: ShapeMismatch: x is [2]\n");
    }
}
