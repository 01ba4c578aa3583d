//! The workers' own words, and placements pushed to them. One task follows each worker pod that has an address; a placement is pushed
//! by level: whenever a worker speaks that has not accepted the group's newest, it is told. An address proves nothing, because it may have passed to somebody
//! else's pod: every call says whom it means, and whoever else answers is not believed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::ExpertPlacementSpec;
use m1_operator_plan::render::{WORKER, WORKER_PORT};
use m1_operator_plan::{Kind, WorkerPhase, WorkerSeen};
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{ApplyPlacementRequest, Phase, PodPlacement, StatusResponse, WatchStatsRequest};
use m1_runtime::member::{Deployment, MeantFor, Member, is_for_another};
use m1_runtime::tls::{self, Tls};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cache::{Family, Key};
use crate::cluster::placement_spec;
use crate::seen::{KnownPod, group_of};

/// How often a worker may report: what a person who watches a start sees as alive.
const REPORTS: Duration = Duration::from_millis(500);
/// A pod that does not accept a connection this fast is not up yet.
const CONNECT: Duration = Duration::from_secs(2);
/// A silent connection is probed after this: a node that is gone sends no FIN.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A device answers between two turns. One that has not within this is asked again after its next report.
const PUSH: Duration = Duration::from_secs(30);
/// Shortest and longest pause between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How often loading alone makes the operator look again: the pace of `status.weights`.
const PROGRESS: i64 = 2;

/// A worker pod in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Life {
    pod: String,
    uid: String,
    address: String,
    /// Whether it is spoken to with TLS.
    encrypted: bool,
    /// Who should answer there; none where nobody says whose the pod is.
    member: Option<Member>,
}

/// The way to one worker. Every call says whom it means.
type Client = WorkerClient<InterceptedService<Channel, MeantFor>>;

/// Why a worker is not heard any more.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// It is not there, or its connection broke.
    #[error("{0}")]
    Gone(String),
    /// Somebody else answers in its place.
    #[error("{0}")]
    Stranger(String),
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        match is_for_another(&status) {
            true => Self::Stranger(status.message().to_owned()),
            false => Self::Gone(status.to_string()),
        }
    }
}

struct Link {
    placement: watch::Sender<Option<Arc<ApplyPlacementRequest>>>,
    seen: Option<WorkerSeen>,
    /// Who answers in its place, in words.
    stranger: Option<String>,
    refusal: Option<String>,
    told: Timestamp,
    _task: DropGuard,
}

/// Bytes read by a deployment's pods at a time.
#[derive(Clone, Copy)]
struct Sample {
    time: Timestamp,
    bytes: u64,
}

/// The workers of one deployment.
#[derive(Default)]
struct Fleet {
    links: HashMap<Life, Link>,
    samples: Option<(Sample, Sample)>,
}

type Fleets = HashMap<Key, Fleet>;

/// All workers that are followed, by deployment: a look at one costs nothing of the others.
pub struct Workers {
    fleets: Arc<Mutex<Fleets>>,
    changes: mpsc::Sender<Key>,
}

impl Workers {
    /// Follows nobody. Changes are told on the channel.
    pub fn new(changes: mpsc::Sender<Key>) -> Self {
        Self { fleets: Arc::default(), changes }
    }

    /// What a worker said last, in the pod's present life, and who answers in its place where somebody else does.
    pub fn seen(&self, key: &Key, pod: &str, uid: &str) -> (Option<WorkerSeen>, Option<String>) {
        let fleets = self.lock();
        let mut links = fleets.get(key).into_iter().flat_map(|fleet| &fleet.links);
        let link = links.find(|(life, _)| life.pod == pod && life.uid == uid);
        link.map(|(_, link)| (link.seen.clone(), link.stranger.clone())).unwrap_or_default()
    }

    /// Bytes per second that a deployment's workers read of late; none where they do not.
    pub fn pace(&self, key: &Key, now: Timestamp) -> Option<f64> {
        let (before, last) = self.lock().get(key)?.samples?;
        let seconds = last.time.duration_since(before.time).as_secs_f64();
        let stale = now.duration_since(last.time).as_secs() > 30;
        (seconds > 0.0 && !stale).then(|| last.bytes.saturating_sub(before.bytes) as f64 / seconds)
    }

    /// Follows exactly the workers of a family and gives each the placement of its group. `tls` is for those that speak encrypted.
    pub fn follow(&self, key: &Key, family: &Family, tls: Option<&Tls>) {
        let placements = placements(family);
        let encrypted =
            |pod: &KnownPod| group_of(&pod.seen.name).and_then(|group| placements.get(group)).is_some_and(|it| it.encrypted);
        let lives = family.component(WORKER).filter_map(|pod| life(pod, encrypted(pod), member(key, family, pod)));
        // Without an identity there is nothing to say to those that want one.
        let lives: HashSet<Life> = lives.filter(|life| !life.encrypted || tls.is_some()).collect();
        if lives.is_empty() {
            return self.forget(key);
        }
        let mut fleets = self.lock();
        let fleet = fleets.entry(key.clone()).or_default();
        fleet.links.retain(|life, _| lives.contains(life));
        for life in lives {
            let placement = group_of(&life.pod).and_then(|group| placements.get(group)).map(|it| Arc::clone(&it.request));
            match fleet.links.get(&life) {
                Some(link) => {
                    link.placement.send_if_modified(|known| {
                        let changed = *known != placement;
                        known.clone_from(&placement);
                        changed
                    });
                }
                None => {
                    let link = self.link(key, &life, placement, tls.filter(|_| life.encrypted));
                    fleet.links.insert(life, link);
                }
            }
        }
    }

    /// Lets go of the workers of a deployment.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Lets go of everybody: another operator leads.
    pub fn forget_all(&self) {
        self.lock().clear();
    }

    fn link(&self, key: &Key, life: &Life, placement: Option<Arc<ApplyPlacementRequest>>, tls: Option<&Tls>) -> Link {
        let (sender, receiver) = watch::channel(placement);
        let stop = CancellationToken::new();
        let follower = Follower {
            key: key.clone(),
            life: life.clone(),
            tls: tls.cloned(),
            placement: receiver,
            fleets: Arc::clone(&self.fleets),
            changes: self.changes.clone(),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = follower.run() => {}
            }
        });
        Link { placement: sender, seen: None, stranger: None, refusal: None, told: Timestamp::UNIX_EPOCH, _task: stop.drop_guard() }
    }

    fn lock(&self) -> MutexGuard<'_, Fleets> {
        self.fleets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that follows one worker.
struct Follower {
    key: Key,
    life: Life,
    tls: Option<Tls>,
    placement: watch::Receiver<Option<Arc<ApplyPlacementRequest>>>,
    fleets: Arc<Mutex<Fleets>>,
    changes: mpsc::Sender<Key>,
}

impl Follower {
    async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            let began = tokio::time::Instant::now();
            // In a box of its own, which takes no room between two attempts.
            let stranger = match Box::pin(self.follow()).await {
                Ok(()) => {
                    tracing::debug!(pod = self.life.pod, "the worker ended its reports");
                    None
                }
                Err(Lost::Gone(error)) => {
                    tracing::debug!(pod = self.life.pod, error, "the worker cannot be reached");
                    None
                }
                Err(Lost::Stranger(words)) => Some(words),
            };
            self.lost(stranger).await;
            // A connection that lasted starts the pauses anew.
            pause = if began.elapsed() > PAUSES.1 { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn follow(&mut self) -> Result<(), Lost> {
        let mut client = connect(&self.life, self.tls.as_ref()).await.map_err(|error| Lost::Gone(error.to_string()))?;
        let request = WatchStatsRequest { interval_ms: REPORTS.as_millis() as u32, ..WatchStatsRequest::default() };
        let mut stream = client.watch_stats(request).await?.into_inner();
        let mut last: Option<StatusResponse> = None;
        loop {
            tokio::select! {
                message = stream.message() => match message? {
                    Some(status) => {
                        if let Some(other) = self.life.member.as_ref().and_then(|member| member.instead(&status.member)) {
                            return Err(Lost::Stranger(format!("{other} answers")));
                        }
                        self.heard(&status).await;
                        last = Some(status);
                    }
                    None => return Ok(()),
                },
                changed = self.placement.changed() => changed.map_err(|_| Lost::Gone("the deployment is gone".to_owned()))?,
            }
            if let Some(status) = &last {
                self.push(&mut client, status).await?;
            }
        }
    }

    /// Pushes the group's placement to a worker that runs another. Only what it says counts: a process that took the place of one that was told knows
    /// nothing, at the same address and in the same pod.
    async fn push(&mut self, client: &mut Client, status: &StatusResponse) -> Result<(), Lost> {
        let Some(placement) = self.placement.borrow_and_update().clone() else { return Ok(()) };
        let waits = status.phase() == Phase::Waiting;
        if !(waits || status.epoch < placement.epoch) || matches!(status.phase(), Phase::Failed | Phase::Draining) {
            return Ok(());
        }
        let told = tokio::time::timeout(PUSH, client.apply_placement(placement.as_ref().clone())).await;
        match told.unwrap_or_else(|_| Err(Status::deadline_exceeded("it does not answer"))) {
            Ok(_) => {
                tracing::info!(pod = self.life.pod, epoch = placement.epoch, "placement applied");
                self.refused(None).await;
            }
            Err(status) if is_for_another(&status) => return Err(status.into()),
            Err(status) => {
                tracing::debug!(pod = self.life.pod, epoch = placement.epoch, error = status.message(), "placement refused");
                let final_word = matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition);
                self.refused(final_word.then(|| status.message().to_owned())).await;
            }
        }
        Ok(())
    }

    /// Changes what is known of this worker; where `with` says that it matters, its deployment is looked at.
    async fn note(&self, with: impl FnOnce(&mut Fleet) -> Option<bool>) {
        let matters = {
            let mut fleets = self.fleets.lock().unwrap_or_else(PoisonError::into_inner);
            fleets.get_mut(&self.key).and_then(with).unwrap_or(false)
        };
        if matters {
            let _ = self.changes.send(self.key.clone()).await;
        }
    }

    /// Notes that the worker refuses its placement, or does so no more.
    async fn refused(&self, refusal: Option<String>) {
        self.note(|fleet| {
            let link = fleet.links.get_mut(&self.life)?;
            let changed = link.refusal != refusal;
            link.refusal.clone_from(&refusal);
            if let Some(seen) = &mut link.seen {
                seen.refusal = refusal;
            }
            Some(changed)
        })
        .await;
    }

    async fn heard(&self, status: &StatusResponse) {
        let now = Timestamp::now();
        self.note(|fleet| {
            let link = fleet.links.get_mut(&self.life)?;
            let seen = WorkerSeen { refusal: link.refusal.clone(), ..read(status) };
            let quiet = |seen: &WorkerSeen| {
                // A worker that fetches says its numbers in words too.
                let loads = seen.phase == WorkerPhase::Loading;
                let message = if loads { String::new() } else { seen.message.clone() };
                WorkerSeen { bytes_loaded: 0, sequences: seen.sequences.min(1), message, ..seen.clone() }
            };
            let same = link.seen.as_ref().is_some_and(|known| quiet(known) == quiet(&seen));
            let loading = link.seen.as_ref().is_none_or(|known| known.bytes_loaded != seen.bytes_loaded);
            let due = now.duration_since(link.told).as_secs() >= PROGRESS;
            link.seen = Some(seen);
            let same = link.stranger.take().is_none() && same;
            let tell = !same || (loading && due);
            if tell {
                link.told = now;
                fleet.sample(now);
            }
            Some(tell)
        })
        .await;
    }

    /// Notes that the worker is not heard, and who answers in its place.
    async fn lost(&self, stranger: Option<String>) {
        self.note(|fleet| {
            let link = fleet.links.get_mut(&self.life)?;
            let changed = link.stranger != stranger;
            if let Some(words) = stranger.as_ref().filter(|_| changed) {
                tracing::warn!(
                    pod = self.life.pod,
                    address = self.life.address,
                    "somebody else answers at the pod's address: {words}"
                );
            }
            link.stranger = stranger;
            Some(link.seen.take().is_some() || changed)
        })
        .await;
    }
}

impl Fleet {
    /// Notes how much its workers have read.
    fn sample(&mut self, time: Timestamp) {
        let bytes = self.links.values().filter_map(|link| link.seen.as_ref()).map(|seen| seen.bytes_loaded).sum();
        let sample = Sample { time, bytes };
        let (before, last) = self.samples.unwrap_or((sample, sample));
        // The older of the two moves on slowly, so that the pace is that of some seconds.
        let before = if last.time.duration_since(before.time).as_secs() >= 5 || sample.bytes < last.bytes { last } else { before };
        self.samples = Some((before, sample));
    }
}

/// The life of a worker pod whose process runs and has an address.
fn life(pod: &KnownPod, encrypted: bool, member: Option<Member>) -> Option<Life> {
    let ip = pod.address.as_ref()?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    Some(Life { pod: pod.seen.name.clone(), uid: pod.uid.clone(), address: format!("{host}:{WORKER_PORT}"), encrypted, member })
}

/// Who should answer in a pod: of the deployment that owns its group, which a deployment of the same name that is gone may be.
fn member(key: &Key, family: &Family, pod: &KnownPod) -> Option<Member> {
    let group = group_of(&pod.seen.name)?;
    let kinds = [Kind::StatefulSet, Kind::ExpertPlacement];
    let uid = kinds.into_iter().find_map(|kind| family.objects.get(&(kind, group.to_owned()))?.owner())?;
    let deployment = Deployment { namespace: key.namespace.clone(), name: key.name.clone(), uid: uid.to_owned() };
    Some(deployment.member(group, u16::try_from(pod.seen.index).ok()?))
}

/// What a group's workers are told, and how.
struct Told {
    request: Arc<ApplyPlacementRequest>,
    encrypted: bool,
}

/// By the group's name.
fn placements(family: &Family) -> HashMap<String, Told> {
    let told = |spec: ExpertPlacementSpec| Told { request: Arc::new(request(&spec)), encrypted: spec.encrypted };
    let objects = family.of_kind(Kind::ExpertPlacement);
    objects.filter_map(|(name, object)| Some((name.clone(), told(placement_spec(object)?)))).collect()
}

fn request(spec: &ExpertPlacementSpec) -> ApplyPlacementRequest {
    let pods = (0..).zip(&spec.pods);
    let pods = pods.map(|(pod, holding)| PodPlacement { pod, address: holding.address.clone(), holds: holding.holds.clone() });
    ApplyPlacementRequest {
        lease_transitions: spec.lease_transitions,
        epoch: spec.epoch,
        layers: spec.layers,
        experts: spec.experts,
        pods: pods.collect(),
        model: spec.model.clone(),
    }
}

fn read(status: &StatusResponse) -> WorkerSeen {
    WorkerSeen {
        phase: match status.phase() {
            Phase::Unspecified | Phase::Waiting => WorkerPhase::Waiting,
            Phase::Loading => WorkerPhase::Loading,
            Phase::Connecting => WorkerPhase::Connecting,
            Phase::Ready => WorkerPhase::Ready,
            Phase::Draining => WorkerPhase::Draining,
            Phase::Failed => WorkerPhase::Failed,
        },
        reason: status.reason.clone(),
        message: status.message.clone(),
        epoch: status.epoch,
        digest: status.weights_digest.clone(),
        bytes_loaded: status.bytes_loaded,
        bytes_total: status.bytes_to_load,
        sequences: status.running + status.waiting,
        refusal: None,
    }
}

async fn connect(life: &Life, tls: Option<&Tls>) -> Result<Client, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{}", life.address))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let channel = tls::connect(endpoint, tls).await?;
    Ok(WorkerClient::with_interceptor(channel, MeantFor::new(life.member.as_ref())))
}

#[cfg(test)]
mod tests;
