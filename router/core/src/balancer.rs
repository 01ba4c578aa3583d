//! Admission: who runs where, who waits. The queue is bounded, and first come, first served, but that a request
//! which a worker has failed goes first and one that has time lets a few others pass; a request is in exactly one of queued, running (one seat on
//! one worker) or gone. Which workers there are is the [`Topology`]'s, and may change at any time.
//!
//! Nobody overtakes somebody who could have used the same room. A request that waits is passed by those who come later only where it could not run now: on
//! workers of another revision, that failed it, or that lack the KV for it. So that smaller ones do not take that KV for ever, one worker is kept for each
//! request that waits: nobody who came later gets anything there.

use std::collections::VecDeque;
use std::time::Duration;

use crate::choice::{Candidate, Choice, Decision, MOST_WORKERS, Reason, Request, Turn, choose};
use crate::health::RECONNECT;
use crate::outcome::{Next, Outcome, Seat};
use crate::retry::RetryBudget;
use crate::rng::Rng;
use crate::table::{Changes, GroupView, Load, Table};
use crate::topology::{Revision, Topology};
use crate::worker::{WorkerId, WorkerStats};

/// A waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(pub u64);

/// What happened to a request at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has a seat; tell what becomes of it with [`Balancer::report`], give it back with [`Balancer::release`].
    Run(Seat, Reason),
    /// It waits; [`Balancer::grants`] will name it, at once perhaps.
    Queued(TicketId),
    /// It is not served.
    Refused(Reason),
}

/// A worker that refused is asked again after this long, or at its next status: long enough not to hammer it, short beside a request.
const REFUSAL_HOLDS: Duration = Duration::from_millis(250);

/// Requests that pass a batch request in the queue at most, so that it does not starve.
const MOST_PASSING: u32 = 4;

#[derive(Debug)]
struct Waiter {
    ticket: TicketId,
    request: Request,
    urgent: bool,
    since: Duration,
    /// Requests that went before it though they came later.
    passed: u32,
    /// The worker that is kept for it.
    keeps: Option<WorkerId>,
}

/// The router's picture of its workers and its queue.
#[derive(Debug)]
pub struct Balancer {
    /// How long requests wait for a worker after the last one that was ready was lost.
    comeback: Duration,
    last_ready: Option<Duration>,
    last_context: Option<u32>,
    table: Table,
    queue: VecDeque<Waiter>,
    limit: usize,
    tickets: u64,
    retries: RetryBudget,
    rng: Rng,
}

impl Balancer {
    /// Without any group; `limit` bounds the queue. When the last ready worker is lost, requests wait `comeback` for one before they are refused: a process
    /// that was killed is back in a second.
    pub fn new(limit: usize, comeback: Duration, rng: Rng) -> Self {
        let (table, retries) = (Table::default(), RetryBudget::default());
        Self { comeback, last_ready: None, last_context: None, table, queue: VecDeque::new(), limit, tickets: 0, retries, rng }
    }

    /// Takes a whole topology for the one before. Leases go on, also on workers that leave; [`Balancer::grants`] says who of the queue can go on.
    pub fn apply(&mut self, topology: &Topology) -> Changes {
        self.table.apply(topology)
    }

    /// A request comes to the door. `urgent` ones (sent back by a worker) wait before all that are not, and are not bounded by the queue.
    pub fn enter(&mut self, request: Request, urgent: bool, now: Duration) -> Entry {
        if !urgent && !request.is_retry() {
            self.retries.requested(now);
        }
        let passes = urgent && self.queue.front().is_none_or(|first| !first.urgent);
        let candidates = self.table.candidates(now);
        let decision = self.decide(&candidates, &request, Turn { now, ..Turn::default() });
        match decision.choice {
            Choice::Send(worker) if self.queue.is_empty() || passes => {
                Entry::Run(self.table.seat(worker, request.begins_with, now), decision.reason)
            }
            Choice::Refuse => Entry::Refused(decision.reason),
            Choice::Send(_) | Choice::Wait(_) if !urgent && self.queue.len() >= self.limit => Entry::Refused(Reason::QueueFull),
            Choice::Send(_) | Choice::Wait(_) => self.queue_up(request, urgent, now),
        }
    }

    fn queue_up(&mut self, request: Request, urgent: bool, now: Duration) -> Entry {
        self.tickets += 1;
        let ticket = TicketId(self.tickets);
        let place = match (urgent, request.batch) {
            (true, _) => self.queue.iter().take_while(|waiter| waiter.urgent).count(),
            (false, true) => self.queue.len(),
            (false, false) => {
                let passes = |waiter: &&Waiter| waiter.request.batch && !waiter.urgent && waiter.passed < MOST_PASSING;
                self.queue.len() - self.queue.iter().rev().take_while(passes).count()
            }
        };
        self.queue.iter_mut().skip(place).filter(|_| !urgent).for_each(|waiter| waiter.passed += 1);
        self.queue.insert(place, Waiter { ticket, request, urgent, since: now, passed: 0, keeps: None });
        Entry::Queued(ticket)
    }

    /// Takes from the queue whoever can go on now, or can no longer be served.
    pub fn grants(&mut self, now: Duration) -> Vec<(TicketId, Entry)> {
        let (mut out, mut waiting) = (Vec::new(), VecDeque::new());
        if self.is_ready() {
            self.last_ready = Some(now);
            self.last_context = self.max_context();
        }
        if self.queue.is_empty() {
            return out;
        }
        let mut candidates = self.table.candidates(now);
        let mut kept = Vec::new();
        while let Some(mut waiter) = self.queue.pop_front() {
            let turn = Turn { kept: &kept, keeps: waiter.keeps, waited: now.saturating_sub(waiter.since), now };
            let decision = self.decide(&candidates, &waiter.request, turn);
            match decision.choice {
                Choice::Send(worker) => {
                    out.push((
                        waiter.ticket,
                        Entry::Run(self.table.seat(worker, waiter.request.begins_with, now), decision.reason),
                    ));
                    candidates = self.table.candidates(now);
                }
                Choice::Refuse => out.push((waiter.ticket, Entry::Refused(decision.reason))),
                Choice::Wait(keeps) => {
                    waiter.keeps = keeps;
                    kept.extend(keeps);
                    waiting.push_back(waiter);
                    // Nothing is left that anybody could use.
                    if candidates.iter().all(|c| !c.has_slot() || kept.contains(&c.worker)) {
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
        self.queue.retain(|waiter| waiter.ticket != ticket);
    }

    /// What became of an attempt: keeps the worker's record, and says what to do with the request. Where that is [`Next::Again`], the request knows whom
    /// to avoid.
    pub fn report(&mut self, seat: Seat, request: &mut Request, outcome: Outcome, now: Duration) -> Next {
        // Asked before it is told: a worker that nobody trusts yet was the router's own choice, and one that is gone is not loaded by a retry.
        let free = outcome == Outcome::Lost || self.table.is_trial(seat);
        let first = self.table.note(seat, outcome, now);
        match outcome {
            Outcome::Served | Outcome::Whole => {
                for worker in request.avoid.iter().filter(|_| first) {
                    self.table.blame(*worker, request.failed_at, now);
                }
                Next::Settled
            }
            Outcome::Broken => {
                self.table.judge(seat.worker, false, now);
                Next::Settled
            }
            Outcome::Full | Outcome::NotReady => {
                let until = now + REFUSAL_HOLDS;
                request.refused_by(seat.worker, until);
                self.table.refused(seat.worker, outcome, until);
                Next::Again
            }
            Outcome::Failed | Outcome::Lost | Outcome::Stalled => {
                request.avoid.push(seat.worker);
                request.failed_at = now;
                match request.avoid.len() {
                    MOST_WORKERS.. => Next::GiveUp(Reason::AllFailed),
                    _ if free || self.retries.try_spend(now) => Next::Again,
                    _ => Next::GiveUp(Reason::NoRetries),
                }
            }
        }
    }

    /// A seat is given back, however its request ended.
    pub fn release(&mut self, seat: Seat, now: Duration) {
        self.table.release(seat, now);
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

    /// Seats on all workers, those that have left included.
    pub fn running(&self) -> u32 {
        self.table.running()
    }

    /// The groups as they are.
    pub fn groups(&self, now: Duration) -> impl Iterator<Item = GroupView<'_>> {
        self.table.groups(now)
    }

    /// What all workers have and hold, whichever router's.
    pub fn load(&self, now: Duration) -> Load {
        self.table.load(now)
    }

    /// The revision of a worker's group; none once the worker has left.
    pub fn revision(&self, worker: WorkerId) -> Option<&Revision> {
        self.table.revision(worker)
    }

    /// Whether sequences wait in a worker, by its own word. One that has given no sign there until its deadline then waits for others, and the worker is not
    /// to blame: it is [`Outcome::Full`], not [`Outcome::Stalled`].
    pub fn queues(&self, worker: WorkerId) -> bool {
        self.table.stats(worker).is_some_and(|stats| stats.waiting > 0)
    }

    /// The longest window of the workers that take new requests, where they say one; of those that did last while there are none. Requests that need
    /// more than some of them have go to the others.
    pub fn max_context(&self) -> Option<u32> {
        let mut serving = self.table.serving().map(|(_, stats)| stats.max_context).peekable();
        if serving.peek().is_none() {
            return self.last_context;
        }
        serving.filter(|tokens| *tokens > 0).max()
    }

    fn decide(&mut self, candidates: &[Candidate], request: &Request, turn: Turn<'_>) -> Decision {
        // A request never crosses revisions while its own could still take it. Closed for good, it would otherwise never be served.
        let decision = match request.revision.as_ref().filter(|revision| self.table.has_open(revision)) {
            Some(revision) => {
                let own: Vec<Candidate> = candidates.iter().filter(|c| c.revision == *revision).cloned().collect();
                choose(&own, request, turn, &mut self.rng)
            }
            None => choose(candidates, request, turn, &mut self.rng),
        };
        let comes_back = self.last_ready.is_some_and(|ready| turn.now < ready + self.comeback) && self.table.is_any_open();
        match decision.reason {
            Reason::NoneReady if comes_back => Decision { choice: Choice::Wait(None), reason: Reason::ComesBack },
            _ => decision,
        }
    }
}

#[cfg(test)]
mod tests;
