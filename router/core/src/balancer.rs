//! Admission: who runs where, who waits. The queue is first come, first served, and bounded; a request is in exactly one of queued, running (one lease on
//! one worker) or gone. Which workers there are is the [`Topology`]'s, and may change at any time.
//!
//! Nobody overtakes somebody who could have used the same room: a request that is bound (to a revision, or away from workers that failed it) is passed by
//! those who are not, and by nobody else.

use std::collections::VecDeque;
use std::time::Duration;

use crate::choice::{Choice, Decision, Reason, Request, choose};
use crate::health::RECONNECT;
use crate::rng::Rng;
use crate::table::{Changes, GroupView, Table};
use crate::topology::{Revision, Topology};
use crate::worker::{WorkerId, WorkerStats};

/// A waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(pub u64);

/// What happened to a request at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has a lease on this worker; give it back with [`Balancer::release`].
    Run(WorkerId, Reason),
    /// It waits; [`Balancer::grants`] will name it, at once perhaps.
    Queued(TicketId),
    /// It is not served.
    Refused(Reason),
}

/// A worker that refused is asked again after this long, or at its next status: long enough not to hammer it, short beside a request.
const REFUSAL_HOLDS: Duration = Duration::from_millis(250);

/// The router's picture of its workers and its queue.
#[derive(Debug)]
pub struct Balancer {
    table: Table,
    queue: VecDeque<(TicketId, Request)>,
    limit: usize,
    tickets: u64,
    rng: Rng,
}

impl Balancer {
    /// Without any group; `limit` bounds the queue.
    pub fn new(limit: usize, rng: Rng) -> Self {
        Self { table: Table::default(), queue: VecDeque::new(), limit, tickets: 0, rng }
    }

    /// Takes a whole topology for the one before. Leases go on, also on workers that leave; [`Balancer::grants`] says who of the queue can go on.
    pub fn apply(&mut self, topology: &Topology) -> Changes {
        self.table.apply(topology)
    }

    /// A request comes to the door. `urgent` ones (sent back by a worker) go to the head of the queue and are not bounded by it.
    pub fn enter(&mut self, request: Request, urgent: bool, now: Duration) -> Entry {
        let blocked = !self.queue.is_empty() && !urgent;
        let decision = self.decide(&request, now);
        match decision.choice {
            Choice::Send(worker) if !blocked => {
                self.table.lease(worker);
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
        let (mut out, mut waiting) = (Vec::new(), VecDeque::new());
        while let Some((ticket, request)) = self.queue.pop_front() {
            let decision = self.decide(&request, now);
            match decision.choice {
                Choice::Send(worker) => {
                    self.table.lease(worker);
                    out.push((ticket, Entry::Run(worker, decision.reason)));
                }
                Choice::Refuse => out.push((ticket, Entry::Refused(decision.reason))),
                Choice::Wait => {
                    let bound = request.is_bound();
                    waiting.push_back((ticket, request));
                    // One that would go anywhere waits: there is no room at all.
                    if !bound {
                        break;
                    }
                }
            }
        }
        waiting.append(&mut self.queue);
        self.queue = waiting;
        out
    }

    /// A waiting request goes away.
    pub fn leave(&mut self, ticket: TicketId) {
        self.queue.retain(|(waiting, _)| *waiting != ticket);
    }

    /// A lease ends, however its request ended.
    pub fn release(&mut self, worker: WorkerId) {
        self.table.release(worker);
    }

    /// A worker has refused a sequence for lack of room.
    pub fn refused(&mut self, worker: WorkerId, now: Duration) {
        self.table.refused(worker, now + REFUSAL_HOLDS);
    }

    /// A status came from a worker.
    pub fn heard(&mut self, worker: WorkerId, stats: WorkerStats) {
        self.table.heard(worker, stats);
    }

    /// A worker cannot be reached; says when to try again.
    pub fn lost(&mut self, worker: WorkerId) -> Duration {
        let rng = &mut self.rng;
        self.table.lost(worker, |health| health.lost(RECONNECT, rng)).unwrap_or(RECONNECT.most)
    }

    /// Whether a request could be served now.
    pub fn is_ready(&self) -> bool {
        self.table.serving().next().is_some()
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Leases on all workers, those that have left included.
    pub fn running(&self) -> u32 {
        self.table.running()
    }

    /// The groups as they are.
    pub fn groups(&self) -> impl Iterator<Item = GroupView<'_>> {
        self.table.groups()
    }

    /// The revision of a worker's group; none once the worker has left.
    pub fn revision(&self, worker: WorkerId) -> Option<&Revision> {
        self.table.revision(worker)
    }

    /// The shortest window of the workers that take new requests, where they say one.
    pub fn max_context(&self) -> Option<u32> {
        self.table.serving().map(|(_, stats)| stats.max_context).filter(|tokens| *tokens > 0).min()
    }

    fn decide(&mut self, request: &Request, now: Duration) -> Decision {
        // A request never crosses revisions while its own could still take it. Closed for good, it would otherwise never be served.
        let revision = request.revision.as_ref().filter(|revision| self.table.has_open(revision));
        choose(&self.table.candidates(revision, now), request, &mut self.rng)
    }
}

#[cfg(test)]
mod tests;
