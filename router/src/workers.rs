//! The workers as the router reaches them: one connection each, a status stream each, and the lease that a running request holds. Deciding is
//! `m1-router-core`'s; this file books, sends and wakes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{self as wire, StatusResponse, WatchStatsRequest};
use m1_router_core::{Balancer, Entry, Geometry, Phase, Reason, Request, Rng, TicketId, WorkerId, WorkerStats};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::error::ApiError;
use crate::metrics::{Group, Metrics, PoolView};

/// How often a worker may push its status. Also how long a wrong picture lives.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// A pod that does not accept a connection this fast is treated as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is probed after this and given up after as much again, so a pod lost with its node is noticed in four seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Room for the ids of a long answer whose reader is slow: they wait here, not in a state slot.
const STREAM_WINDOW: u32 = 4 << 20;
/// A routing message of 80 layers x 32 experts takes 50 KB; raw logits are never asked for.
const MESSAGE_LIMIT: usize = 64 << 20;
/// How often refusals are looked at again when nothing else happens.
const TICK: Duration = Duration::from_millis(250);

type Answer = Result<Lease, Reason>;

struct Inner {
    balancer: Balancer,
    waiting: HashMap<TicketId, oneshot::Sender<Answer>>,
    seeds: Rng,
}

/// All workers of all groups.
pub struct Pool {
    inner: Mutex<Inner>,
    clients: Vec<WorkerClient<Channel>>,
    addresses: Vec<String>,
    metrics: Arc<Metrics>,
    started: Instant,
    queue_limit: usize,
}

/// The right to run one sequence on a worker. Ends when dropped.
pub struct Lease {
    pool: Arc<Pool>,
    /// Where.
    pub worker: WorkerId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.lock().balancer.release(self.worker);
        self.pool.settle();
    }
}

/// A request in the queue; leaves it when dropped.
struct Waiting<'a> {
    pool: &'a Pool,
    ticket: TicketId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        inner.balancer.leave(self.ticket);
        inner.waiting.remove(&self.ticket);
    }
}

impl Pool {
    /// Prepares connections; none is made before it is needed.
    ///
    /// # Errors
    /// An address that is no authority of a URI.
    pub fn new(
        groups: &[Vec<String>],
        queue_limit: usize,
        seed: u64,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, tonic::transport::Error> {
        let addresses: Vec<String> = groups.iter().flatten().cloned().collect();
        let clients = addresses.iter().map(|address| connect(address)).collect::<Result<_, _>>()?;
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let balancer = Balancer::new(&sizes, queue_limit, Rng::new(seed));
        let inner = Inner { balancer, waiting: HashMap::new(), seeds: Rng::new(seed.rotate_left(32) ^ 1) };
        Ok(Arc::new(Self { inner: Mutex::new(inner), clients, addresses, metrics, started: Instant::now(), queue_limit }))
    }

    /// 64 random bits, for ids and for requests without a seed.
    pub fn random(&self) -> u64 {
        self.lock().seeds.next_u64()
    }

    /// A connection to a worker.
    pub fn client(&self, worker: WorkerId) -> Option<WorkerClient<Channel>> {
        self.clients.get(worker.index()).cloned()
    }

    /// A worker's address.
    pub fn address(&self, worker: WorkerId) -> &str {
        self.addresses.get(worker.index()).map_or("?", String::as_str)
    }

    /// Whether a request could be served now.
    pub fn is_ready(&self) -> bool {
        self.lock().balancer.is_ready()
    }

    /// The workers' own limit on a sequence, where they say one.
    pub fn max_context(&self) -> Option<u32> {
        self.lock().balancer.max_context()
    }

    /// Who is in which phase, in words.
    pub fn describe(&self) -> String {
        let inner = self.lock();
        let phases = inner.balancer.workers().map(|(_, stats)| stats.map_or("unreachable", |stats| stats.phase.as_str()));
        let named: Vec<String> =
            self.addresses.iter().zip(phases).map(|(address, phase)| format!("{address} is {phase}")).collect();
        named.join(", ")
    }

    /// What metrics show.
    pub fn view(&self) -> PoolView {
        let inner = self.lock();
        let mut view = PoolView { queued: inner.balancer.queued(), running: inner.balancer.running(), ..PoolView::default() };
        for (group, stats) in inner.balancer.workers() {
            if view.groups.len() <= group {
                view.groups.resize(group + 1, Group::default());
            }
            if let Some(group) = view.groups.get_mut(group) {
                group.ready.push(stats.is_some_and(|stats| stats.phase == Phase::Ready));
            }
            if let Some(stats) = stats {
                view.reachable += 1;
                view.kv_used += u64::from(stats.kv_used);
                view.kv_total += u64::from(stats.kv_total);
            }
        }
        view
    }

    /// Waits for a worker with room. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// The queue is full, or nobody can serve.
    pub async fn lease(self: &Arc<Self>, request: Request, urgent: bool) -> Result<Lease, ApiError> {
        let (ticket, answer) = {
            let mut inner = self.lock();
            match inner.balancer.enter(request, urgent, self.now()) {
                Entry::Run(worker, _) => return Ok(Lease { pool: Arc::clone(self), worker }),
                Entry::Refused(reason) => return Err(self.refusal(reason, &inner.balancer)),
                Entry::Queued(ticket) => {
                    let (sender, receiver) = oneshot::channel();
                    inner.waiting.insert(ticket, sender);
                    (ticket, receiver)
                }
            }
        };
        let _place = Waiting { pool: self, ticket };
        let reason = match answer.await {
            Ok(Ok(lease)) => return Ok(lease),
            Ok(Err(reason)) => reason,
            Err(_) => return Err(ApiError::NotReady("the router is shutting down".to_owned())),
        };
        let refusal = self.refusal(reason, &self.lock().balancer);
        Err(refusal)
    }

    /// A worker had no room after all.
    pub fn refused(self: &Arc<Self>, worker: WorkerId) {
        let now = self.now();
        self.lock().balancer.refused(worker, now);
    }

    /// Follows one worker for as long as the router runs.
    pub async fn watch(self: Arc<Self>, worker: WorkerId) {
        loop {
            let error = self.follow(worker).await;
            let wait = self.lock().balancer.lost(worker);
            self.settle();
            tracing::debug!(worker = self.address(worker), error, ?wait, "worker unreachable");
            tokio::time::sleep(wait).await;
        }
    }

    /// Looks at refusals again, for as long as the router runs.
    pub async fn tick(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            self.settle();
        }
    }

    async fn follow(self: &Arc<Self>, worker: WorkerId) -> String {
        let Some(mut client) = self.client(worker) else { return "no such worker".to_owned() };
        let interval_ms = u32::try_from(STATUS_INTERVAL.as_millis()).unwrap_or(u32::MAX);
        let mut stream = match client.watch_stats(WatchStatsRequest { interval_ms }).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status.to_string(),
        };
        let mut phase = None;
        loop {
            match stream.message().await {
                Ok(Some(status)) => {
                    let stats = read_status(&status);
                    if phase.replace(stats.phase) != Some(stats.phase) {
                        tracing::info!(
                            worker = self.address(worker),
                            pod = stats.pod,
                            phase = stats.phase.as_str(),
                            status.reason,
                            "worker"
                        );
                    }
                    self.heard(worker, &status, stats);
                }
                Ok(None) => return "the status stream ended".to_owned(),
                Err(status) => return status.to_string(),
            }
        }
    }

    fn heard(self: &Arc<Self>, worker: WorkerId, status: &StatusResponse, stats: WorkerStats) {
        if let Some(routing) = &status.routing {
            self.metrics.learn(geometry(routing));
        }
        self.lock().balancer.heard(worker, stats);
        self.settle();
    }

    /// Wakes whoever can go on.
    fn settle(self: &Arc<Self>) {
        let mut woken = Vec::new();
        {
            let mut inner = self.lock();
            for (ticket, entry) in inner.balancer.grants(self.now()) {
                let answer = match entry {
                    Entry::Run(worker, _) => Ok(Lease { pool: Arc::clone(self), worker }),
                    Entry::Refused(reason) => Err(reason),
                    Entry::Queued(_) => continue,
                };
                woken.push((inner.waiting.remove(&ticket), answer));
            }
        }
        for (sender, answer) in woken {
            // Without a receiver the lease comes back and ends here, outside the lock.
            drop(sender.map(|sender| sender.send(answer)));
        }
    }

    fn refusal(&self, reason: Reason, balancer: &Balancer) -> ApiError {
        match reason {
            Reason::QueueFull => ApiError::QueueFull { waiting: self.queue_limit },
            Reason::AllFailed => ApiError::WorkerLost("every ready worker failed this request before its first token".to_owned()),
            _ => {
                let ready = balancer.workers().filter(|(_, stats)| stats.is_some_and(|stats| stats.phase == Phase::Ready)).count();
                ApiError::NotReady(format!("no replica can serve yet: {ready} of {} workers are ready", self.addresses.len()))
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(address: &str) -> Result<WorkerClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW.saturating_mul(16));
    Ok(WorkerClient::new(endpoint.connect_lazy()).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT))
}

/// The model's shape as a routing message has it.
pub fn geometry(routing: &wire::Routing) -> Geometry {
    Geometry { layers: routing.layers as usize, experts: routing.experts as usize, top_k: routing.top_k as usize }
}

fn read_status(status: &StatusResponse) -> WorkerStats {
    WorkerStats {
        pod: status.pod,
        phase: match status.phase() {
            wire::Phase::Unspecified | wire::Phase::Waiting => Phase::Waiting,
            wire::Phase::Loading => Phase::Loading,
            wire::Phase::Connecting => Phase::Connecting,
            wire::Phase::Ready => Phase::Ready,
            wire::Phase::Draining => Phase::Draining,
            wire::Phase::Failed => Phase::Failed,
        },
        epoch: status.epoch,
        running: status.running,
        waiting: status.waiting,
        slots_total: status.state_slots_total,
        kv_used: status.kv_blocks_used,
        kv_total: status.kv_blocks_total,
        max_context: status.max_context_tokens,
    }
}
