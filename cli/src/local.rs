//! Replica groups as processes of this machine. Plays the operator's part: starts workers, tells each who the others are,
//! follows what they say. Used by `up`, `generate` and `forward`; knows nothing of routers or prompts.
//!
//! The placement is pushed by level, not by event: whenever a worker speaks that has not accepted the group's epoch, it is
//! told. A worker that was away therefore needs no special case.

pub mod logs;
pub mod placement;
pub mod ports;
pub mod process;
mod watch;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use m1_arch::ExpertSet;
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{Phase, StatusResponse};
use m1_weights::Checkpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::error::Failure;
use crate::output::Console;
use crate::progress::Loading;
use logs::LineSink;
use placement::LocalPod;
use process::{Exit, Launch, Member, Process};
pub use watch::chain;

/// Events that wait for the group's owner.
const EVENTS: usize = 256;
/// Time between SIGTERM and SIGKILL for workers that serve nobody any more.
pub const SHORT_GRACE: Duration = Duration::from_secs(5);

/// Seconds that a token waits for a lost expert where a lost worker ends the command anyway.
pub const EXPERT_WAIT: u32 = 5;

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

/// Why a local group does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A process cannot be started.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    /// No ports.
    #[error(transparent)]
    Ports(#[from] ports::PortError),
    /// A process ended and is needed.
    #[error("{name} {how}: {last}")]
    Died {
        /// Which one.
        name: String,
        /// How.
        how: String,
        /// Its last line.
        last: String,
    },
    /// A worker says that it cannot go on.
    #[error("{name}: {reason}: {message}")]
    Failed {
        /// Which one.
        name: String,
        /// One CamelCase word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// A worker refused the placement.
    #[error("{name} refused the placement: {message}")]
    Refused {
        /// Which one.
        name: String,
        /// Its words.
        message: String,
    },
    /// A worker does not answer.
    #[error("{name}: {message}")]
    Unreachable {
        /// Which one.
        name: String,
        /// The transport's words.
        message: String,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl LocalError {
    /// The word for conditions and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Process(_) => "ProcessNotStarted",
            Self::Ports(_) => "NoPort",
            Self::Died { .. } => "ProcessDied",
            Self::Failed { .. } => "WorkerFailed",
            Self::Refused { .. } => "PlacementRefused",
            Self::Unreachable { .. } => "WorkerUnreachable",
            Self::Interrupted => "Interrupted",
        }
    }

    /// The process `name` ended and nothing goes on without it.
    pub fn died(name: &str, exit: &Exit) -> Self {
        Self::Died { name: name.to_owned(), how: exit.how.clone(), last: exit.last_words().to_owned() }
    }
}

impl From<LocalError> for Failure {
    fn from(error: LocalError) -> Self {
        match error {
            LocalError::Failed { name, reason, message } => Self::new(format_args!("{name}: {reason}"), message),
            LocalError::Interrupted => Self::new("interrupted", "everything it started is stopped"),
            other => Self::new("local group", other),
        }
    }
}

/// What a worker may use; see `m1-worker serve --help`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// State slots: sequences at once.
    pub slots: u32,
    /// Tokens of the KV pool.
    pub kv_tokens: u32,
    /// Window of one sequence.
    pub max_context: u32,
    /// Prompt tokens in one step.
    pub prefill_chunk: u32,
    /// Seconds that a token waits for an expert that nobody holds.
    pub expert_wait: u32,
}

/// Workers that are decided and not started. A worker's place in `pods` is its seat.
#[derive(Debug, Clone)]
pub struct LocalPlan {
    /// Folder of the checkpoint.
    pub model: PathBuf,
    /// The pods of all groups.
    pub pods: Vec<LocalPod>,
    /// The same for every worker.
    pub limits: Limits,
    /// Threads of each worker, where the spec limits them.
    pub threads: Option<u32>,
}

impl LocalPlan {
    /// One entry of `groups` per replica group, with what each of its pods holds. Gives every pod an address and counts
    /// what it reads.
    ///
    /// # Errors
    /// No port is free.
    pub fn new(checkpoint: &Checkpoint, groups: Vec<Vec<ExpertSet>>, limits: Limits) -> Result<Self, LocalError> {
        let many = groups.len() > 1;
        let count = groups.iter().map(Vec::len).sum();
        let mut addresses = ports::free(IpAddr::V4(Ipv4Addr::LOCALHOST), count)?.into_iter();
        let mut pods = Vec::with_capacity(count);
        for (group, holds) in groups.into_iter().enumerate() {
            for ((pod, holds), address) in holds.into_iter().enumerate().zip(&mut addresses) {
                let name = if many { format!("pod {group}/{pod}") } else { format!("pod {pod}") };
                let bytes = m1_arch::Bytes(m1_weights::plan_read(checkpoint, &holds).bytes);
                pods.push(LocalPod { group, pod: pod as u16, name, address, holds, bytes });
            }
        }
        Ok(Self { model: checkpoint.dir().to_path_buf(), pods, limits, threads: None })
    }

    /// Names by seat.
    pub fn names(&self) -> Vec<String> {
        self.pods.iter().map(|pod| pod.name.clone()).collect()
    }

    fn launch(&self, program: &Path, seat: usize) -> Launch {
        let pod = &self.pods[seat];
        let threads = self.threads.map_or_else(|| threads_per_worker(cores(), self.pods.len()), |threads| threads as usize);
        let flags = [
            ("--pod", pod.pod.to_string()),
            ("--listen", pod.address.to_string()),
            ("--threads", threads.to_string()),
            ("--slots", self.limits.slots.to_string()),
            ("--kv-tokens", self.limits.kv_tokens.to_string()),
            ("--max-context", self.limits.max_context.to_string()),
            ("--prefill-chunk", self.limits.prefill_chunk.to_string()),
            ("--expert-wait", self.limits.expert_wait.to_string()),
        ];
        let mut args = vec!["serve".into(), "--model".into(), self.model.clone().into_os_string()];
        args.extend(flags.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
        Launch { member: Member::Worker(seat), program: program.to_path_buf(), args }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads of each of `workers` workers on a machine with `cores` cores.
fn threads_per_worker(cores: usize, workers: usize) -> usize {
    (cores / workers.max(1)).max(1)
}

/// What is known of one worker.
#[derive(Debug)]
struct Seat {
    launch: Launch,
    process: Option<Process>,
    status: Option<StatusResponse>,
    pushing: bool,
    /// The placement it has accepted; 0 for none.
    accepted: u64,
    /// The placement of its group.
    epoch: u64,
}

/// Running workers. Dropping them kills their processes.
#[derive(Debug)]
pub struct Workers {
    plan: LocalPlan,
    seats: Vec<Seat>,
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
        let program = process::find("m1-worker")?;
        let (sender, events) = mpsc::channel(EVENTS);
        let mut tasks = JoinSet::new();
        for (seat, pod) in plan.pods.iter().enumerate() {
            tasks.spawn(watch::follow(seat, pod.address, sender.clone()));
        }
        let seat =
            |seat| Seat { launch: plan.launch(&program, seat), process: None, status: None, pushing: false, accepted: 0, epoch: 1 };
        let seats = (0..plan.pods.len()).map(seat).collect();
        let mut workers = Self { plan, seats, shown, sender, events, tasks };
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
        known.status = None;
        known.accepted = 0;
        known.process = Some(Process::start(&known.launch, sink, self.sender.clone())?);
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
        if status.phase() == Phase::Failed {
            let (reason, message) = (status.reason.clone(), status.message.clone());
            return Err(LocalError::Failed { name: pod.name.clone(), reason, message });
        }
        let due = known.accepted < known.epoch && status.phase() != Phase::Draining;
        if due && !known.pushing {
            known.pushing = true;
            let request = placement::request(known.epoch, pod.group, &self.plan.pods);
            self.tasks.spawn(watch::push(seat, pod.address, request, self.sender.clone()));
        }
        Ok(())
    }

    fn pushed(&mut self, seat: usize, epoch: u64, result: &Result<(), tonic::Status>) -> Result<(), LocalError> {
        while self.tasks.try_join_next().is_some() {}
        let known = &mut self.seats[seat];
        known.pushing = false;
        match result {
            // A newer number than the one accepted makes the next status push again.
            Ok(()) => known.accepted = epoch,
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
    /// A worker ended or failed.
    pub async fn ready(&mut self, loading: &mut Loading) -> Result<(), LocalError> {
        while !self.all_ready() {
            match self.next().await? {
                Event::Exited { member, exit } => return Err(LocalError::died(self.name(member), &exit)),
                Event::Status { seat, status } => loading.update(seat, &status),
                Event::Pushed { .. } => {}
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
    pub async fn client(&self, seat: usize) -> Result<WorkerClient<Channel>, LocalError> {
        let pod = &self.plan.pods[seat];
        let failed = |error| LocalError::Unreachable { name: pod.name.clone(), message: chain(&error) };
        watch::connect(pod.address).await.map_err(failed)
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
    work: impl AsyncFnOnce(Vec<WorkerClient<Channel>>) -> Result<T, Failure>,
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn cores_are_shared() {
        assert_eq!(threads_per_worker(16, 2), 8);
        assert_eq!(threads_per_worker(2, 4), 1);
        assert_eq!(threads_per_worker(7, 2), 3);
    }

    #[test]
    fn a_launch_is_the_workers_command_line() {
        let pod = LocalPod {
            group: 0,
            pod: 1,
            name: "pod 1".into(),
            address: SocketAddr::from(([127, 0, 0, 1], 20_001)),
            holds: ExpertSet::full(8, 32),
            bytes: m1_arch::Bytes(1),
        };
        let limits = Limits { slots: 4, kv_tokens: 100, max_context: 90, prefill_chunk: 8, expert_wait: 30 };
        let plan = LocalPlan { model: "/m".into(), pods: vec![pod], limits, threads: Some(3) };
        let launch = plan.launch(Path::new("/bin/m1-worker"), 0);
        let line = launch.args.join(std::ffi::OsStr::new(" ")).into_string().unwrap();
        assert_eq!(
            line,
            "serve --model /m --pod 1 --listen 127.0.0.1:20001 --threads 3 --slots 4 --kv-tokens 100 \
                 --max-context 90 --prefill-chunk 8 --expert-wait 30"
        );
    }

    #[test]
    fn a_failed_worker_speaks_for_itself() {
        let error = LocalError::Failed { name: "pod 0".into(), reason: "ShapeMismatch".into(), message: "x is [2]".into() };
        assert_eq!(Failure::from(error).to_string(), "m1ctl: pod 0: ShapeMismatch: x is [2]\n");
    }
}
