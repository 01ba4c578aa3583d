//! Admission: which groups can serve, who runs where, who waits. The queue is first come, first served, and bounded; a request is in exactly one of
//! queued, running (one lease on one worker) or gone.
//!
//! A group serves once all its pods were ready together; from then on every pod that calls itself ready takes requests, because a pod knows best whether
//! it can do without a lost peer. It starts again from nothing when no pod is ready.

use std::collections::VecDeque;
use std::time::Duration;

use crate::choice::{Candidate, Choice, Reason, Request, choose};
use crate::health::{Health, RECONNECT};
use crate::rng::Rng;
use crate::worker::{WorkerId, WorkerStats};

/// A waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(pub u64);

/// What happened to a request at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has a lease on this worker; give it back with [`Balancer::release`].
    Run(WorkerId, Reason),
    /// It waits; [`Balancer::grants`] will name it.
    Queued(TicketId),
    /// It is not served.
    Refused(Reason),
}

/// A worker that refused is asked again after this long, or at its next status: long enough not to hammer it, short beside a request.
const REFUSAL_HOLDS: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct Worker {
    group: usize,
    health: Health,
    inflight: u32,
    refused_until: Duration,
}

/// The router's picture of its workers and its queue.
#[derive(Debug)]
pub struct Balancer {
    workers: Vec<Worker>,
    complete: Vec<bool>,
    queue: VecDeque<(TicketId, Request)>,
    limit: usize,
    tickets: u64,
    rng: Rng,
}

impl Balancer {
    /// `groups` holds the number of pods of each; workers are numbered through. `limit` bounds the queue.
    pub fn new(groups: &[usize], limit: usize, rng: Rng) -> Self {
        let workers = groups.iter().enumerate();
        let workers = workers.flat_map(|(group, pods)| (0..*pods).map(move |_| Worker { group, ..Worker::default() }));
        Self { workers: workers.collect(), complete: vec![false; groups.len()], queue: VecDeque::new(), limit, tickets: 0, rng }
    }

    /// A request comes to the door. `urgent` ones (sent back by a worker) go to the head of the queue and are not bounded by it.
    pub fn enter(&mut self, request: Request, urgent: bool, now: Duration) -> Entry {
        // Nobody overtakes those who wait.
        let blocked = !self.queue.is_empty() && !urgent;
        let decision = choose(&self.candidates(now), &request, &mut self.rng);
        match decision.choice {
            Choice::Send(worker) if !blocked => {
                self.lease(worker);
                Entry::Run(worker, decision.reason)
            }
            Choice::Refuse => Entry::Refused(decision.reason),
            Choice::Send(_) | Choice::Wait if urgent => {
                self.tickets += 1;
                self.queue.push_front((TicketId(self.tickets), request));
                Entry::Queued(TicketId(self.tickets))
            }
            Choice::Send(_) | Choice::Wait if self.queue.len() >= self.limit => Entry::Refused(Reason::QueueFull),
            Choice::Send(_) | Choice::Wait => {
                self.tickets += 1;
                self.queue.push_back((TicketId(self.tickets), request));
                Entry::Queued(TicketId(self.tickets))
            }
        }
    }

    /// Takes from the queue whoever can go on now, or can no longer be served.
    pub fn grants(&mut self, now: Duration) -> Vec<(TicketId, Entry)> {
        let mut out = Vec::new();
        while let Some((ticket, request)) = self.queue.pop_front() {
            let decision = choose(&self.candidates(now), &request, &mut self.rng);
            match decision.choice {
                Choice::Send(worker) => {
                    self.lease(worker);
                    out.push((ticket, Entry::Run(worker, decision.reason)));
                }
                Choice::Refuse => out.push((ticket, Entry::Refused(decision.reason))),
                Choice::Wait => {
                    self.queue.push_front((ticket, request));
                    break;
                }
            }
        }
        out
    }

    /// A waiting request goes away.
    pub fn leave(&mut self, ticket: TicketId) {
        self.queue.retain(|(waiting, _)| *waiting != ticket);
    }

    /// A lease ends, however its request ended.
    pub fn release(&mut self, worker: WorkerId) {
        if let Some(worker) = self.workers.get_mut(worker.index()) {
            worker.inflight = worker.inflight.saturating_sub(1);
        }
    }

    /// A worker has refused a sequence for lack of room.
    pub fn refused(&mut self, worker: WorkerId, now: Duration) {
        if let Some(worker) = self.workers.get_mut(worker.index()) {
            worker.refused_until = now + REFUSAL_HOLDS;
        }
    }

    /// A status came from a worker.
    pub fn heard(&mut self, worker: WorkerId, stats: WorkerStats) {
        if let Some(worker) = self.workers.get_mut(worker.index()) {
            worker.health.heard(stats);
            worker.refused_until = Duration::ZERO;
        }
        self.judge_groups();
    }

    /// A worker cannot be reached; says when to try again.
    pub fn lost(&mut self, worker: WorkerId) -> Duration {
        let wait = match self.workers.get_mut(worker.index()) {
            Some(worker) => worker.health.lost(RECONNECT, &mut self.rng),
            None => RECONNECT.most,
        };
        self.judge_groups();
        wait
    }

    /// Whether a request could be served now.
    pub fn is_ready(&self) -> bool {
        self.workers.iter().any(|worker| self.serves(worker))
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Leases on all workers.
    pub fn running(&self) -> u32 {
        self.workers.iter().map(|worker| worker.inflight).sum()
    }

    /// Per worker its group, and its status while it can be reached.
    pub fn workers(&self) -> impl Iterator<Item = (usize, Option<&WorkerStats>)> {
        self.workers.iter().map(|worker| (worker.group, worker.health.stats()))
    }

    /// The shortest window of the ready workers, where they say one.
    pub fn max_context(&self) -> Option<u32> {
        let ready = self.workers.iter().filter(|worker| self.serves(worker));
        ready.filter_map(|worker| worker.health.stats()).map(|stats| stats.max_context).filter(|tokens| *tokens > 0).min()
    }

    fn lease(&mut self, worker: WorkerId) {
        if let Some(worker) = self.workers.get_mut(worker.index()) {
            worker.inflight += 1;
        }
    }

    fn serves(&self, worker: &Worker) -> bool {
        worker.health.is_ready() && self.complete.get(worker.group).copied().unwrap_or(false)
    }

    fn judge_groups(&mut self) {
        for (group, complete) in self.complete.iter_mut().enumerate() {
            let mut pods = self.workers.iter().filter(|worker| worker.group == group);
            *complete = match *complete {
                true => pods.any(|worker| worker.health.is_ready()),
                false => pods.all(|worker| worker.health.is_ready()),
            };
        }
    }

    fn candidates(&self, now: Duration) -> Vec<Candidate> {
        let numbered = (0u32..).zip(&self.workers);
        let serving = numbered.filter(|(_, worker)| self.serves(worker));
        let candidates = serving.filter_map(|(id, worker)| {
            let stats = worker.health.stats()?;
            Some(Candidate {
                worker: WorkerId(id),
                inflight: worker.inflight,
                reported: stats.running.saturating_add(stats.waiting),
                slots: stats.slots_total,
                refusing: worker.refused_until > now,
            })
        });
        candidates.collect()
    }
}

#[cfg(test)]
mod tests;
