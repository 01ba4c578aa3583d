//! One worker's books: what this router has there, what others have by the worker's own word, and how its requests went.
//!
//! A status is older than what was sent and ended since, and names nobody. At the moment it comes, what it says beyond this router's own seats is the
//! others'; until the next one that stands still, while own seats are counted as they come and go. Own sequences that were under way when the status was
//! made hide as many of the others' until the next status: then a worker is sent more than it can run, keeps that in its own queue or refuses it, and
//! nothing is lost. The other way round, to take own ones for others', would leave room empty.

use std::time::Duration;

use crate::choice::{Candidate, Share};
use crate::health::Health;
use crate::outcome::Outcome;
use crate::standing::{Record, Standing};
use crate::topology::Revision;
use crate::worker::{WorkerId, WorkerStats};

/// Sequences and the KV blocks that they reserve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub seats: u64,
    pub blocks: u64,
}

/// A worker that has refused so many sequences for want of room, since it last told its status, has none.
const REFUSALS: u32 = 3;

/// One worker.
#[derive(Debug, Default)]
pub(super) struct Post {
    pub health: Health,
    pub record: Record,
    pub own: Usage,
    /// Own seats without a first token.
    pub unbegun: u32,
    pub others: Usage,
    pub refused_until: Duration,
    /// Since its last status.
    refusals: u32,
    pub left: bool,
}

impl Post {
    /// KV blocks that a sequence of so many tokens takes; 0 where the worker does not say.
    pub fn blocks(&self, tokens: u32) -> u64 {
        let block = self.health.stats().map_or(0, |stats| stats.kv_block_tokens);
        if block == 0 { 0 } else { u64::from(tokens.div_ceil(block)) }
    }

    /// A status came; `own` are the tokens of the own seats.
    pub fn heard(&mut self, stats: WorkerStats, own: impl Iterator<Item = u32>) {
        self.health.heard(stats);
        // A restarted worker may have blocks of another size.
        self.own.blocks = own.map(|tokens| self.blocks(tokens)).sum();
        let seats = u64::from(stats.running.max(stats.slots_used)) + u64::from(stats.waiting);
        let blocks = u64::from(stats.kv_used) + u64::from(stats.kv_waiting);
        self.others = Usage { seats: seats.saturating_sub(self.own.seats), blocks: blocks.saturating_sub(self.own.blocks) };
        (self.refused_until, self.refusals) = (Duration::ZERO, 0);
    }

    /// It has refused a sequence. Several that found no room are all that is needed to know that there is none.
    pub fn refused(&mut self, outcome: Outcome, until: Duration) {
        self.refusals += 1;
        if outcome != Outcome::Full || self.refusals >= REFUSALS {
            self.refused_until = until;
        }
    }

    /// As the choice sees it.
    pub fn candidate(&self, worker: WorkerId, revision: &Revision, stats: &WorkerStats, now: Duration) -> Candidate {
        let standing = self.record.standing(now);
        let kv_total = if stats.kv_block_tokens == 0 { 0 } else { stats.kv_total };
        Candidate {
            worker,
            revision: revision.clone(),
            slots: Share { used: self.own.seats + self.others.seats, total: stats.slots_total.into() },
            kv: Share { used: self.own.blocks + self.others.blocks, total: kv_total.into() },
            block_tokens: stats.kv_block_tokens,
            max_context: stats.max_context,
            shared: self.others != Usage::default(),
            queues: stats.waiting > 0,
            refusing: self.refused_until > now,
            standing,
            proven: self.record.is_proven(),
            hushed: standing == Standing::Doubted && (self.unbegun > 0 || !self.record.may_probe(now)),
        }
    }
}
