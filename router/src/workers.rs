//! The workers as the router reaches them: a connection each for every loop, a status stream each, and the lease that a running request holds. Deciding is
//! `m1-router-core`'s; this file books and wakes, `link` sends, `streams` listens.

mod link;
mod streams;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use m1_router_core::{
    Balancer, Counts, Cumulative, Entry, Geometry, Next, Outcome, Phase, Reason, Request, Revision, Rng, Seat, Standing, TicketId,
    Topology, WorkerId, WorkerStats,
};
use m1_runtime::tls::Tls;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::error::ApiError;
use crate::loops::Loops;
use crate::metrics::{Group, Metrics, Pod, PoolView};

use link::Link;
pub use link::{Client, is_address, read_counts};

/// How often refusals are looked at again when nothing else happens.
const TICK: Duration = Duration::from_millis(50);

type Answer = Result<Lease, Reason>;

/// The bounds of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Requests that may wait.
    pub limit: usize,
    /// How long one may wait, all its attempts together.
    pub wait: Duration,
    /// How long of that for a worker to come back, when the last one was lost.
    pub comeback: Duration,
}

struct Inner {
    balancer: Balancer,
    links: HashMap<WorkerId, Arc<Link>>,
    waiting: HashMap<TicketId, oneshot::Sender<Answer>>,
    seeds: Rng,
    cumulative: Cumulative,
}

/// All workers of all groups.
pub struct Pool {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
    loops: Arc<Loops>,
    started: Instant,
    patience: Patience,
    tls: Option<Tls>,
    /// Whose sequences the workers count apart: this router in this life.
    name: String,
    counted: Notify,
}

/// The right to run one sequence on a worker. Ends when dropped; outlives the worker's group.
pub struct Lease {
    pool: Arc<Pool>,
    link: Arc<Link>,
    seat: Seat,
    /// Of the worker's group when the lease began.
    pub revision: Revision,
}

impl Lease {
    /// The worker's address.
    pub fn address(&self) -> &str {
        &self.link.address
    }

    /// The worker's service, over the connection of the loop that runs this.
    pub fn client(&self) -> Client {
        self.link.client()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = self.pool.now();
        self.pool.lock().balancer.release(self.seat, now);
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
    pub fn new(patience: Patience, seed: u64, metrics: Arc<Metrics>, loops: Arc<Loops>, tls: Option<Tls>) -> Arc<Self> {
        let balancer = Balancer::new(patience.limit, patience.comeback, Rng::new(seed));
        let mut seeds = Rng::new(seed.rotate_left(32) ^ 1);
        let name = format!("{:016x}", seeds.next_u64());
        let inner = Inner { balancer, links: HashMap::new(), waiting: HashMap::new(), seeds, cumulative: Cumulative::new() };
        let counted = Notify::new();
        Arc::new(Self { inner: Mutex::new(inner), metrics, loops, started: Instant::now(), patience, tls, name, counted })
    }

    /// As workers know this router.
    pub fn name(&self) -> &str {
        &self.name
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

    /// How many workers are in which phase, in words.
    pub fn describe(&self) -> String {
        let inner = self.lock();
        let (mut groups, mut pods) = (0, 0);
        let mut phases: Vec<(String, usize)> = Vec::new();
        for group in inner.balancer.groups(self.now()) {
            groups += 1;
            for pod in &group.pods {
                pods += 1;
                let phase = match pod.standing {
                    Standing::Out if pod.stats.is_some() => "out for failing",
                    _ => pod.stats.map_or("unreachable", |stats| stats.phase.as_str()),
                };
                let phase = if group.open { phase.to_owned() } else { format!("{phase} in a closed group") };
                match phases.iter_mut().find(|(known, _)| *known == phase) {
                    Some((_, count)) => *count += 1,
                    None => phases.push((phase, 1)),
                }
            }
        }
        let counts: Vec<String> = phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        let plural = |count: usize, word: &str| if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") };
        match pods {
            0 => "there is no replica group".to_owned(),
            _ => format!("{} in {}: {}", plural(pods, "worker"), plural(groups, "replica group"), counts.join(", ")),
        }
    }

    /// What metrics show.
    pub fn view(&self) -> PoolView {
        let (inner, now) = (self.lock(), self.now());
        let mut view = PoolView { queued: inner.balancer.queued(), load: inner.balancer.load(now), groups: Vec::new() };
        for group in inner.balancer.groups(now) {
            let pods = group.pods.into_iter().map(|pod| {
                let ready = pod.stats.is_some_and(|stats| stats.phase == Phase::Ready);
                Pod { ready, holds: pod.holds.map(Arc::clone) }
            });
            view.groups.push(Group { open: group.open, pods: pods.collect() });
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
                Entry::Run(seat, _) => return self.seat(&inner, seat).map_err(|reason| self.refuse(reason, &inner.balancer)),
                Entry::Refused(reason) => return Err(self.refuse(reason, &inner.balancer)),
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
        Err(self.refusal(reason))
    }

    /// Tells what became of an attempt; says what to do with its request.
    pub fn report(self: &Arc<Self>, lease: &Lease, request: &mut Request, outcome: Outcome) -> Next {
        let now = self.now();
        self.lock().balancer.report(lease.seat, request, outcome, now)
    }

    /// Whether sequences wait in a lease's worker, by its own word.
    pub fn queues(&self, lease: &Lease) -> bool {
        self.lock().balancer.queues(lease.seat.worker)
    }

    /// Waits until the experts of a sequence that ended on a worker are booked: until that worker has told of so many tokens.
    pub async fn booked(&self, lease: &Lease, tokens: u64) {
        loop {
            let mut counted = std::pin::pin!(self.counted.notified());
            counted.as_mut().enable();
            if self.lock().cumulative.tokens(lease.address()) >= tokens {
                return;
            }
            counted.await;
        }
    }

    /// A worker says what the experts did for this router's sequences since it started.
    fn counted(&self, address: &Arc<str>, incarnation: u64, counts: Counts) {
        let new = self.lock().cumulative.take(address, incarnation, &counts);
        let booked = new.and_then(|new| new.map_or(Ok(()), |new| self.metrics.book(&new)));
        if let Err(error) = booked {
            tracing::error!(worker = &**address, reason = error.reason(), %error, "routing counts refused");
            self.metrics.routing_rejected.inc();
        }
        self.counted.notify_waiters();
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
        let pods = topology.groups.values().flat_map(|group| &group.pods);
        let members: HashMap<&str, &Arc<str>> = pods.filter_map(|pod| Some((&*pod.address, pod.member.as_ref()?))).collect();
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
                match Link::new(Arc::clone(&address), members.get(&*address).map(|member| Arc::clone(member)), tls, &self.loops) {
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
    fn seat(self: &Arc<Self>, inner: &Inner, seat: Seat) -> Answer {
        let link = inner.links.get(&seat.worker).map(Arc::clone).ok_or(Reason::NoneReady)?;
        let revision = inner.balancer.revision(seat.worker).cloned().unwrap_or_default();
        Ok(Lease { pool: Arc::clone(self), link, seat, revision })
    }

    /// Wakes whoever can go on.
    fn settle(self: &Arc<Self>) {
        let mut woken = Vec::new();
        {
            let mut inner = self.lock();
            for (ticket, entry) in inner.balancer.grants(self.now()) {
                let answer = match entry {
                    Entry::Run(seat, _) => self.seat(&inner, seat),
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

    /// What a client is told of a request that is not served.
    pub fn refusal(&self, reason: Reason) -> ApiError {
        self.refuse(reason, &self.lock().balancer)
    }

    fn refuse(&self, reason: Reason, balancer: &Balancer) -> ApiError {
        match reason {
            Reason::QueueFull => ApiError::QueueFull { waiting: self.patience.limit },
            Reason::AllFailed | Reason::NoRetries => {
                ApiError::Attempts("every worker that may try this request failed before its first token".to_owned())
            }
            Reason::TooLarge => ApiError::ContextLength {
                param: "max_tokens",
                message: "prompt and output together need more KV than any worker has; ask for fewer output tokens".to_owned(),
            },
            _ => ApiError::NotReady(not_ready(balancer, self.now())),
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
fn not_ready(balancer: &Balancer, now: Duration) -> String {
    let (mut open, mut pods, mut ready) = (0, 0, 0);
    for group in balancer.groups(now).filter(|group| group.open) {
        open += 1;
        pods += group.pods.len();
        ready += group.pods.iter().filter(|pod| pod.stats.is_some_and(|stats| stats.phase == Phase::Ready)).count();
    }
    match open {
        0 => "no replica can serve yet: no replica group is open".to_owned(),
        _ => format!("no replica can serve yet: {ready} of {pods} workers are ready"),
    }
}
