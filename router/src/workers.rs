//! The workers as the router reaches them: one connection each, a status stream each, and the lease that a running request holds. Deciding is
//! `m1-router-core`'s; this file books and wakes, `link` sends, `streams` listens.

mod link;
mod streams;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use m1_proto::worker::worker_client::WorkerClient;
use m1_router_core::{Balancer, Entry, Geometry, Phase, Reason, Request, Revision, Rng, TicketId, Topology, WorkerId, WorkerStats};
use m1_runtime::tls::Tls;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::error::ApiError;
use crate::metrics::{Group, Metrics, Pod, PoolView};

use link::Link;
pub use link::{geometry, is_address};

/// How often refusals are looked at again when nothing else happens.
const TICK: Duration = Duration::from_millis(250);

type Answer = Result<Lease, Reason>;

/// The bounds of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Requests that may wait.
    pub limit: usize,
    /// How long one may wait, all its attempts together.
    pub wait: Duration,
}

struct Inner {
    balancer: Balancer,
    links: HashMap<WorkerId, Arc<Link>>,
    waiting: HashMap<TicketId, oneshot::Sender<Answer>>,
    seeds: Rng,
}

/// All workers of all groups.
pub struct Pool {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
    started: Instant,
    patience: Patience,
    tls: Option<Tls>,
}

/// The right to run one sequence on a worker. Ends when dropped; outlives the worker's group.
pub struct Lease {
    pool: Arc<Pool>,
    link: Arc<Link>,
    /// Where.
    pub worker: WorkerId,
    /// Of the worker's group when the lease began.
    pub revision: Revision,
}

impl Lease {
    /// The worker's address.
    pub fn address(&self) -> &str {
        &self.link.address
    }

    /// The worker's service.
    pub fn client(&self) -> WorkerClient<Channel> {
        self.link.client()
    }
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

/// A worker that came.
struct Came {
    worker: WorkerId,
    link: Arc<Link>,
}

impl Pool {
    /// Without any worker; [`Pool::follow`] brings them. `tls` is for groups that speak encrypted.
    pub fn new(patience: Patience, seed: u64, metrics: Arc<Metrics>, tls: Option<Tls>) -> Arc<Self> {
        let balancer = Balancer::new(patience.limit, Rng::new(seed));
        let seeds = Rng::new(seed.rotate_left(32) ^ 1);
        let inner = Inner { balancer, links: HashMap::new(), waiting: HashMap::new(), seeds };
        Arc::new(Self { inner: Mutex::new(inner), metrics, started: Instant::now(), patience, tls })
    }

    /// 64 random bits, for ids and for requests without a seed.
    pub fn random(&self) -> u64 {
        self.lock().seeds.next_u64()
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
        let named = inner.balancer.groups().flat_map(|group| {
            let closed = if group.open { "" } else { " and its group is closed" };
            let pod = move |pod: m1_router_core::PodView<'_>| {
                let phase = pod.stats.map_or("unreachable", |stats| stats.phase.as_str());
                format!("{} is {phase}{closed}", pod.address)
            };
            group.pods.into_iter().map(pod)
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() { "there is no replica group".to_owned() } else { named.join(", ") }
    }

    /// What metrics show.
    pub fn view(&self) -> PoolView {
        let inner = self.lock();
        let mut view = PoolView { queued: inner.balancer.queued(), running: inner.balancer.running(), ..PoolView::default() };
        for group in inner.balancer.groups() {
            let mut pods = Vec::with_capacity(group.pods.len());
            for pod in group.pods {
                let ready = pod.stats.is_some_and(|stats| stats.phase == Phase::Ready);
                pods.push(Pod { ready, holds: pod.holds.map(Arc::clone) });
                if let Some(stats) = pod.stats {
                    view.reachable += 1;
                    view.kv_used += u64::from(stats.kv_used);
                    view.kv_total += u64::from(stats.kv_total);
                }
            }
            view.groups.push(Group { open: group.open, pods });
        }
        view
    }

    /// How long a request may wait in the queue.
    pub fn patience(&self) -> Duration {
        self.patience.wait
    }

    /// Waits for a worker with room, at most `patience`. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// The queue is full, the wait is over, or nobody can serve.
    pub async fn lease(self: &Arc<Self>, request: Request, urgent: bool, patience: Duration) -> Result<Lease, ApiError> {
        let (ticket, answer) = {
            let mut inner = self.lock();
            match inner.balancer.enter(request, urgent, self.now()) {
                Entry::Run(worker, _) => return self.seat(&inner, worker).map_err(|reason| self.refusal(reason, &inner.balancer)),
                Entry::Refused(reason) => return Err(self.refusal(reason, &inner.balancer)),
                Entry::Queued(ticket) => {
                    let (sender, receiver) = oneshot::channel();
                    inner.waiting.insert(ticket, sender);
                    (ticket, receiver)
                }
            }
        };
        let _place = Waiting { pool: self, ticket };
        // It queued behind others, who may have no use for the room there is.
        self.settle();
        let reason = match tokio::time::timeout(patience, answer).await {
            Ok(Ok(Ok(lease))) => return Ok(lease),
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(_)) => return Err(ApiError::NotReady("the router is shutting down".to_owned())),
            Err(_) => return Err(ApiError::QueueWait { seconds: self.patience.wait.as_secs() }),
        };
        let refusal = self.refusal(reason, &self.lock().balancer);
        Err(refusal)
    }

    /// A worker had no room after all.
    pub fn refused(self: &Arc<Self>, worker: WorkerId) {
        let now = self.now();
        self.lock().balancer.refused(worker, now);
    }

    /// Looks at refusals again, for as long as the router runs.
    pub async fn tick(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            self.settle();
        }
    }

    /// Takes a whole topology for the one before; says whom to listen to from now on, and whom no longer.
    fn apply(self: &Arc<Self>, topology: &Topology) -> (Vec<Came>, Vec<WorkerId>) {
        let mut came = Vec::new();
        let encrypted = topology.groups.values().filter(|group| group.encrypted).flat_map(|group| &group.pods);
        let encrypted: HashSet<&str> = encrypted.map(|pod| &*pod.address).collect();
        let left = {
            let mut inner = self.lock();
            let changes = inner.balancer.apply(topology);
            for (worker, address) in changes.came {
                let wants_tls = encrypted.contains(&*address);
                let tls = self.tls.as_ref().filter(|_| wants_tls);
                if wants_tls && tls.is_none() {
                    tracing::error!(worker = &*address, "speaks encrypted, and this router has no --tls-dir");
                    continue;
                }
                match Link::new(Arc::clone(&address), tls) {
                    Ok(link) => {
                        let link = Arc::new(link);
                        inner.links.insert(worker, Arc::clone(&link));
                        came.push(Came { worker, link });
                    }
                    // Sources check addresses: this worker is never heard of, so its group does not serve.
                    Err(error) => tracing::error!(worker = &*address, %error, "no address"),
                }
            }
            for worker in &changes.left {
                inner.links.remove(worker);
            }
            changes.left
        };
        let open = topology.groups.values().filter(|group| group.open).count();
        let closed = topology.groups.len() - open;
        tracing::info!(open, closed, workers_came = came.len(), workers_left = left.len(), "replica groups");
        self.settle();
        (came, left)
    }

    fn heard(self: &Arc<Self>, worker: WorkerId, shape: Option<Geometry>, stats: WorkerStats) {
        if let Some(shape) = shape {
            self.metrics.learn(shape);
        }
        self.lock().balancer.heard(worker, stats);
        self.settle();
    }

    fn lost(self: &Arc<Self>, worker: WorkerId) -> Duration {
        let wait = self.lock().balancer.lost(worker);
        self.settle();
        wait
    }

    /// Makes the lease that the balancer has booked.
    fn seat(self: &Arc<Self>, inner: &Inner, worker: WorkerId) -> Answer {
        let link = inner.links.get(&worker).map(Arc::clone).ok_or(Reason::NoneReady)?;
        let revision = inner.balancer.revision(worker).cloned().unwrap_or_default();
        Ok(Lease { pool: Arc::clone(self), link, worker, revision })
    }

    /// Wakes whoever can go on.
    fn settle(self: &Arc<Self>) {
        let mut woken = Vec::new();
        {
            let mut inner = self.lock();
            for (ticket, entry) in inner.balancer.grants(self.now()) {
                let answer = match entry {
                    Entry::Run(worker, _) => self.seat(&inner, worker),
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
            Reason::QueueFull => ApiError::QueueFull { waiting: self.patience.limit },
            Reason::AllFailed => ApiError::WorkerLost("every ready worker failed this request before its first token".to_owned()),
            _ => ApiError::NotReady(not_ready(balancer)),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nobody can serve.
fn not_ready(balancer: &Balancer) -> String {
    let (mut open, mut pods, mut ready) = (0, 0, 0);
    for group in balancer.groups().filter(|group| group.open) {
        open += 1;
        pods += group.pods.len();
        ready += group.pods.iter().filter(|pod| pod.stats.is_some_and(|stats| stats.phase == Phase::Ready)).count();
    }
    match open {
        0 => "no replica can serve yet: no replica group is open".to_owned(),
        _ => format!("no replica can serve yet: {ready} of {pods} workers are ready"),
    }
}
