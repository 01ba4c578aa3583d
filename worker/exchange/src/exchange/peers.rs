//! [`Peers`]: what is known of every other pod beside its links: life by the progress of its device, its epoch, and which
//! experts it said it lacks. It must not know steps or requests.
//!
//! `NotHere` names a request, not an expert. Of a request for several experts all become *doubted*: each may be asked for
//! again at once, but alone, so that the next answer is clear. One refused alone is *absent*: it counts as not held and is
//! asked for again only now and then. An answer, another epoch, a new link or a new table ends both.

use m1_arch::LayerId;

use crate::config::Config;
use crate::ids::{MAX_PODS, Micros, PodId};
use crate::pulse::Life;
use crate::table::{PodSet, bit, pods};

/// Life of a peer, by the progress of its device thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Its device makes progress, or does what it announced.
    Alive,
    /// Its device stands still for `suspect_after`: others are asked too for what it owes, and before it.
    Suspect,
    /// Its device stands still for `dead_after`, or it was never connected: it is asked nothing.
    Dead,
}

/// An expert that a peer is thought to lack.
#[derive(Debug)]
struct Doubt {
    of: (LayerId, u16),
    /// Refused when asked for alone.
    absent: bool,
    /// Not asked for before.
    rests_until: Micros,
}

#[derive(Debug, Default)]
struct Peer {
    /// A link was up.
    greeted: bool,
    /// When it was last in the middle of something that it had announced.
    busy_at: Option<Micros>,
    epoch: Option<u64>,
    /// By (layer, expert), so at most as many as the model has.
    doubts: Vec<Doubt>,
}

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    peers: Vec<Peer>,
    alive: PodSet,
    suspect: PodSet,
    /// Those that answer nothing for longer than makes suspect, because they said so.
    busy: PodSet,
    /// Those with doubts, so that nobody looks for any where there are none.
    doubted: PodSet,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { peers: (0..MAX_PODS).map(|_| Peer::default()).collect(), alive: 0, suspect: 0, busy: 0, doubted: 0 }
    }

    pub(super) fn health(&self, pod: PodId) -> Health {
        match pod.index() < MAX_PODS {
            true if self.alive & bit(pod) != 0 => Health::Alive,
            true if self.suspect & bit(pod) != 0 => Health::Suspect,
            _ => Health::Dead,
        }
    }

    /// Those that answer soon: alive, and not in the middle of something long.
    pub(super) fn prompt(&self) -> PodSet {
        self.alive & !self.busy
    }

    /// Alive or suspect.
    pub(super) fn living(&self) -> PodSet {
        self.alive | self.suspect
    }

    /// A link came up. Only the very first one is a sign of life: connections of a pod whose device hangs come back too.
    pub(super) fn greeted(&mut self, pod: PodId) {
        if !std::mem::replace(&mut self.peers[pod.index()].greeted, true) {
            self.alive |= bit(pod);
        }
        self.forgive(bit(pod));
    }

    /// What its heartbeats tell. True: the peer may be asked what it could not be asked before.
    pub(super) fn hears(&mut self, config: &Config, pod: PodId, life: Life, now: Micros) -> bool {
        let forgiven = life.epoch.is_some_and(|epoch| self.says_epoch(pod, epoch));
        let peer = &mut self.peers[pod.index()];
        peer.greeted = true;
        peer.busy_at = life.since_busy.map(|since| now.before(since));
        let before = (self.prompt(), self.living());
        self.busy = with(self.busy, pod, life.busy >= config.suspect_after);
        self.alive = with(self.alive, pod, life.still < config.suspect_after);
        self.suspect = with(self.suspect, pod, (config.suspect_after..config.dead_after).contains(&life.still));
        forgiven || self.prompt() & !before.0 != 0 || self.living() & !before.1 != 0
    }

    /// When a peer last was in the middle of something that it announced.
    pub(super) fn busy_at(&self, pod: PodId) -> Option<Micros> {
        self.peers.get(pod.index()).and_then(|peer| peer.busy_at)
    }

    /// The epoch that a peer names; another one than before ends its doubts. True: there were some.
    pub(super) fn says_epoch(&mut self, pod: PodId, epoch: u64) -> bool {
        let changed = self.peers[pod.index()].epoch.replace(epoch) != Some(epoch);
        changed && self.forgive(bit(pod))
    }

    /// Ends all doubts of these pods. True: there were some.
    pub(super) fn forgive(&mut self, set: PodSet) -> bool {
        let had = self.doubted & set;
        pods(had).for_each(|pod| self.peers[pod.index()].doubts.clear());
        self.doubted &= !set;
        had != 0
    }

    /// A peer said `NotHere` to a request for this expert: `alone`, or among others.
    pub(super) fn doubt(&mut self, pod: PodId, of: (LayerId, u16), alone: bool, rests_until: Micros) {
        let doubts = &mut self.peers[pod.index()].doubts;
        let rests_until = if alone { rests_until } else { Micros::default() };
        match doubts.binary_search_by_key(&of, |doubt| doubt.of) {
            Ok(at) if alone => doubts[at] = Doubt { of, absent: true, rests_until },
            // What is known already is not less known by this.
            Ok(_) => {}
            Err(at) => doubts.insert(at, Doubt { of, absent: alone, rests_until }),
        }
        self.doubted |= bit(pod);
    }

    /// A peer answered for this expert. True: it was doubted.
    pub(super) fn trust(&mut self, pod: PodId, of: (LayerId, u16)) -> bool {
        let doubts = &mut self.peers[pod.index()].doubts;
        let Ok(at) = doubts.binary_search_by_key(&of, |doubt| doubt.of) else { return false };
        doubts.remove(at);
        if doubts.is_empty() {
            self.doubted &= !bit(pod);
        }
        true
    }

    /// Of these pods those that are thought to lack the expert, absent or only doubted.
    pub(super) fn doubted(&self, among: PodSet, of: (LayerId, u16)) -> PodSet {
        self.filter(among, of, |_| true)
    }

    /// Of these pods those that refused the expert alone.
    pub(super) fn absent(&self, among: PodSet, of: (LayerId, u16)) -> PodSet {
        self.filter(among, of, |doubt| doubt.absent)
    }

    /// Of these pods those that are not to be asked for the expert now.
    pub(super) fn resting(&self, among: PodSet, of: (LayerId, u16), now: Micros) -> PodSet {
        self.filter(among, of, |doubt| doubt.rests_until > now)
    }

    /// One request for a doubted expert is under way: no other one before `until`.
    pub(super) fn rest(&mut self, pod: PodId, of: (LayerId, u16), until: Micros) {
        let doubts = &mut self.peers[pod.index()].doubts;
        if let Ok(at) = doubts.binary_search_by_key(&of, |doubt| doubt.of) {
            doubts[at].rests_until = until;
        }
    }

    fn filter(&self, among: PodSet, of: (LayerId, u16), wanted: impl Fn(&Doubt) -> bool) -> PodSet {
        let find = |pod: PodId| {
            let doubts = &self.peers[pod.index()].doubts;
            doubts.binary_search_by_key(&of, |doubt| doubt.of).ok().map(|at| &doubts[at])
        };
        pods(among & self.doubted).filter(|pod| find(*pod).is_some_and(&wanted)).fold(0, |set, pod| set | bit(pod))
    }
}

/// The set with this pod in it, or without.
fn with(set: PodSet, pod: PodId, inside: bool) -> PodSet {
    if inside { set | bit(pod) } else { set & !bit(pod) }
}
