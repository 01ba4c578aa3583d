//! Who sits where, and what became of that: seats are given, told of and given back here, and the workers' records kept.

use std::collections::HashMap;
use std::time::Duration;

use crate::outcome::{Outcome, Seat};
use crate::standing::{Given, Tally};
use crate::worker::WorkerId;

use super::Table;

#[derive(Clone, Copy, Debug)]
struct Sitter {
    worker: WorkerId,
    tokens: u32,
    given: Given,
    /// Its first token came, or it failed.
    told: bool,
}

/// The seats that are taken.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: HashMap<u64, Sitter>,
    next: u64,
}

impl Seats {
    /// Tokens that each seat on a worker began with.
    pub fn tokens_on(&self, worker: WorkerId) -> impl Iterator<Item = u32> {
        self.taken.values().filter(move |sitter| sitter.worker == worker).map(|sitter| sitter.tokens)
    }
}

impl Table {
    /// A request that begins with so many tokens sits down. What it takes as it grows is told by the worker.
    pub fn seat(&mut self, worker: WorkerId, tokens: u32, now: Duration) -> Seat {
        let number = self.seats.next;
        self.seats.next += 1;
        let mut given = Given { number, rescue: false };
        if let Some(post) = self.workers.get_mut(&worker) {
            given = post.record.give(number, now);
            post.own.seats += 1;
            post.own.blocks += post.blocks(tokens);
            post.unbegun += 1;
        }
        self.seats.taken.insert(number, Sitter { worker, tokens, given, told: false });
        Seat { number, worker }
    }

    /// A seat is free again, however its request ended. A second time does nothing.
    pub fn release(&mut self, seat: Seat, now: Duration) {
        let Some(sitter) = self.seats.taken.remove(&seat.number) else { return };
        if let Some(post) = self.workers.get_mut(&sitter.worker) {
            post.own.seats = post.own.seats.saturating_sub(1);
            post.own.blocks = post.own.blocks.saturating_sub(post.blocks(sitter.tokens));
            if !sitter.told {
                post.unbegun = post.unbegun.saturating_sub(1);
            }
            post.record.untried(sitter.given, now);
        }
        self.forget(sitter.worker);
    }

    /// Seats on all workers, those that have left included.
    pub fn running(&self) -> u32 {
        u32::try_from(self.seats.taken.len()).unwrap_or(u32::MAX)
    }

    /// What became of a seat's request, for the worker's record; whether that is the first word of it. Of failures only a first word counts, but for those
    /// after a first token.
    pub fn note(&mut self, seat: Seat, outcome: Outcome, now: Duration) -> bool {
        let Some(sitter) = self.seats.taken.get_mut(&seat.number) else { return false };
        let Some(post) = self.workers.get_mut(&sitter.worker) else { return false };
        let first = !std::mem::replace(&mut sitter.told, true);
        if first {
            post.unbegun = post.unbegun.saturating_sub(1);
        }
        match outcome {
            Outcome::Served if first => post.record.served(sitter.given, now),
            Outcome::Whole => {
                if first {
                    post.record.served(sitter.given, now);
                }
                post.record.whole(sitter.given, now);
            }
            Outcome::Broken => post.record.broke(sitter.given, now),
            Outcome::Failed | Outcome::Lost | Outcome::Stalled if first => post.record.failed(sitter.given, now),
            Outcome::Full | Outcome::NotReady if first => post.record.untried(sitter.given, now),
            _ => {}
        }
        first
    }

    /// Whether this seat's request tries a worker that was out.
    pub fn is_trial(&self, seat: Seat) -> bool {
        let sitter = self.seats.taken.get(&seat.number);
        sitter.is_some_and(|sitter| self.workers.get(&sitter.worker).is_some_and(|post| post.record.is_trial(sitter.given)))
    }

    /// Another worker served what this one had failed.
    pub fn blame(&mut self, worker: WorkerId, failed_at: Duration, now: Duration) {
        let should_go = self.workers.get_mut(&worker).is_some_and(|post| post.record.blamed(failed_at, now));
        self.judge(worker, should_go, now);
    }

    /// Puts a worker out if it should go, or stands out among the workers of its revision, and is not the last of them.
    pub fn judge(&mut self, worker: WorkerId, should_go: bool, now: Duration) {
        let Some(revision) = self.revision(worker) else { return };
        let groups = self.groups.values().filter(|group| group.revision == *revision);
        let others = groups.flat_map(|group| self.serving_of(group)).filter(|(id, _)| *id != worker);
        let others = others.filter_map(|(id, _)| self.workers.get(&id)).filter(|post| post.record.is_in(now));
        let (mut left, mut theirs) = (0, Tally::default());
        for post in others {
            left += 1;
            theirs = theirs.plus(post.record.tally(now));
        }
        if let Some(post) = self.workers.get_mut(&worker).filter(|_| left > 0)
            && (should_go || post.record.is_outlier(theirs, now))
        {
            post.record.eject(now);
        }
    }
}
