//! [`Links`]: my connections to peers, their credits and the requests that are open on them. It must not choose whom to
//! ask or look into steps.
//!
//! A link's requests are in the order of their ids, which is the order of their sending. There are never more than the
//! server granted, so this memory is bounded by the credits of all links.

use std::collections::VecDeque;

use m1_arch::LayerId;

use crate::ids::{Lane, MAX_PODS, Micros, PodId, RequestId};
use crate::table::{PodSet, bit, pods};

use super::rounds::RoundKey;

/// One connection: to whom, and for what.
pub(super) type LinkKey = (PodId, Lane);

/// One row of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) row: u32,
    /// Places of the row that the answer will sum, one bit each; none once one of them is accounted for otherwise, because
    /// a sum cannot be taken apart.
    pub(super) places: u16,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) id: RequestId,
    /// The exchange it is for, which may have ended.
    pub(super) round: RoundKey,
    pub(super) sent: Micros,
    /// Set where it asks for one doubted expert alone.
    pub(super) alone: Option<(LayerId, u16)>,
    /// What it asks is wanted of others too.
    pub(super) doubled: bool,
    pub(super) rows: Vec<Asked>,
}

#[derive(Debug, Default)]
struct Link {
    credits: u32,
    rows_owed: usize,
    open: VecDeque<Asking>,
}

/// All connections on which this pod asks.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Link>,
    up: [PodSet; Lane::ALL.len()],
    /// Those with credit, by lane.
    credited: [PodSet; Lane::ALL.len()],
    next_id: u64,
    /// Row lists of answered requests, to be used again; as many as were ever open at once.
    spare: Vec<Vec<Asked>>,
}

impl Links {
    pub(super) fn new(first_id: u64) -> Self {
        let links = (0..MAX_PODS * Lane::ALL.len()).map(|_| Link::default()).collect();
        Self { links, up: Default::default(), credited: Default::default(), next_id: first_id, spare: Vec::new() }
    }

    /// Pods whose link on this lane stands.
    pub(super) fn up(&self, lane: Lane) -> PodSet {
        self.up[lane.index()]
    }

    /// Pods that let me send another frame on this lane.
    pub(super) fn credited(&self, lane: Lane) -> PodSet {
        self.credited[lane.index()]
    }

    pub(super) fn credits(&self, key: LinkKey) -> u32 {
        self.link(key).credits
    }

    /// Rows that a peer owes on a lane, those of frames under construction among them.
    pub(super) fn rows_owed(&self, key: LinkKey) -> usize {
        self.link(key).rows_owed
    }

    pub(super) fn is_up(&self, (peer, lane): LinkKey) -> bool {
        self.up(lane) & bit(peer) != 0
    }

    /// A link stands, with this many credits. The caller has taken an older one down.
    pub(super) fn raise(&mut self, key: LinkKey, credits: u32) {
        self.up[key.1.index()] |= bit(key.0);
        self.set_credits(key, credits);
    }

    /// A link is gone; its requests are what it owed.
    pub(super) fn take_down(&mut self, key: LinkKey) -> VecDeque<Asking> {
        self.up[key.1.index()] &= !bit(key.0);
        self.set_credits(key, 0);
        let link = self.link_mut(key);
        link.rows_owed = 0;
        std::mem::take(&mut link.open)
    }

    pub(super) fn grant(&mut self, key: LinkKey, frames: u32) {
        if self.is_up(key) {
            self.set_credits(key, self.credits(key).saturating_add(frames));
        }
    }

    pub(super) fn take_credit(&mut self, key: LinkKey) {
        self.set_credits(key, self.credits(key).saturating_sub(1));
    }

    pub(super) fn owe_row(&mut self, key: LinkKey) {
        self.link_mut(key).rows_owed += 1;
    }

    /// The number of the next request.
    pub(super) fn number(&mut self) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    pub(super) fn push(&mut self, key: LinkKey, asking: Asking) {
        self.link_mut(key).open.push_back(asking);
    }

    /// An open request.
    pub(super) fn find(&self, key: LinkKey, id: RequestId) -> Option<&Asking> {
        let open = &self.link(key).open;
        open.binary_search_by_key(&id, |asking| asking.id).ok().map(|at| &open[at])
    }

    /// Takes a request out: it is answered.
    pub(super) fn take(&mut self, key: LinkKey, id: RequestId) -> Option<Asking> {
        let link = self.link_mut(key);
        let at = link.open.binary_search_by_key(&id, |asking| asking.id).ok()?;
        let asking = link.open.remove(at)?;
        link.rows_owed = link.rows_owed.saturating_sub(asking.rows.len());
        Some(asking)
    }

    /// The requests open on a link, oldest first.
    pub(super) fn open(&self, key: LinkKey) -> &VecDeque<Asking> {
        &self.link(key).open
    }

    /// The same, to mark them.
    pub(super) fn open_mut(&mut self, key: LinkKey) -> &mut VecDeque<Asking> {
        &mut self.link_mut(key).open
    }

    /// Links that stand, by pod, then lane.
    pub(super) fn standing(&self) -> impl Iterator<Item = LinkKey> + use<> {
        let up = self.up;
        let any = up.iter().fold(0, |set, lane| set | lane);
        pods(any).flat_map(move |pod| {
            Lane::ALL.into_iter().filter(move |lane| up[lane.index()] & bit(pod) != 0).map(move |lane| (pod, lane))
        })
    }

    /// An empty list of rows.
    pub(super) fn spare(&mut self) -> Vec<Asked> {
        self.spare.pop().unwrap_or_default()
    }

    /// Gives a list back.
    pub(super) fn recycle(&mut self, mut rows: Vec<Asked>) {
        rows.clear();
        self.spare.push(rows);
    }

    fn set_credits(&mut self, key: LinkKey, credits: u32) {
        self.link_mut(key).credits = credits;
        let set = &mut self.credited[key.1.index()];
        *set = if credits > 0 { *set | bit(key.0) } else { *set & !bit(key.0) };
    }

    // A key outside cannot occur: the requester lets no event about a pod beyond MAX_PODS pass.
    fn link(&self, (peer, lane): LinkKey) -> &Link {
        &self.links[peer.index() * Lane::ALL.len() + lane.index()]
    }

    fn link_mut(&mut self, (peer, lane): LinkKey) -> &mut Link {
        &mut self.links[peer.index() * Lane::ALL.len() + lane.index()]
    }
}
