//! One worker as the choice sees it: what it has, what is taken of that, and how it stands.

use crate::choice::Request;
use crate::standing::Standing;
use crate::topology::Revision;
use crate::worker::WorkerId;

/// A part of a whole that is taken; nothing is known where `total` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Taken.
    pub used: u64,
    /// Of so many.
    pub total: u64,
}

impl Share {
    fn has(self, more: u64) -> bool {
        self.total == 0 || self.used.saturating_add(more) <= self.total
    }
}

/// What the choice needs to know of one reachable, ready worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub worker: WorkerId,
    /// Of its group.
    pub revision: Revision,
    /// Sequences: this router's now, and those of others as the worker last said.
    pub slots: Share,
    /// KV blocks, likewise. Sequences that wait there take theirs too.
    pub kv: Share,
    /// Tokens of a KV block; 0 where its KV bounds nothing here.
    pub block_tokens: u32,
    /// Longest sequence it takes; 0 where it does not say.
    pub max_context: u32,
    /// Other routers have sequences there.
    pub shared: bool,
    /// Sequences wait in it, whose ever.
    pub queues: bool,
    /// It has just refused a sequence.
    pub refusing: bool,
    /// How its last requests went.
    pub standing: Standing,
    /// The last thing it did was to serve a request.
    pub proven: bool,
    /// Doubted and not to be tried yet: a request of this router has no first token there, or its last failure is too new.
    pub hushed: bool,
}

impl Candidate {
    /// KV blocks that a sequence of so many tokens takes here.
    pub fn blocks(&self, tokens: u32) -> u64 {
        if self.block_tokens == 0 { 0 } else { u64::from(tokens.div_ceil(self.block_tokens)) }
    }

    /// Whether it could hold this request if it held nothing else.
    pub fn can_hold(&self, request: &Request) -> bool {
        let fits_window = self.max_context == 0 || request.tokens <= self.max_context;
        fits_window && Share { used: 0, ..self.kv }.has(self.blocks(request.begins_with))
    }

    /// Whether it can take this request now.
    pub fn has_room(&self, request: &Request) -> bool {
        !self.refusing && self.slots.has(1) && self.kv.has(self.blocks(request.begins_with))
    }

    /// Whether it can take a request of any size.
    pub fn has_slot(&self) -> bool {
        !self.refusing && self.slots.has(1)
    }

    /// Whether a request that lacks KV alone may wait in it: nobody does yet, and no other one of this router is on its way to.
    pub(super) fn may_queue(&self) -> bool {
        self.shared && !self.queues && self.has_slot() && self.kv.used <= self.kv.total
    }

    /// How full it would be with this request: by slots or by KV, whichever is fuller. Above 1 it has no room.
    pub fn load_with(&self, request: &Request) -> f64 {
        let load = |share: Share, more: u64| share.used.saturating_add(more) as f64 / share.total.max(1) as f64;
        let kv = if self.kv.total == 0 { 0.0 } else { load(self.kv, self.blocks(request.begins_with)) };
        load(self.slots, 1).max(kv)
    }
}
