//! [`Assign`]: one pass over a step's wanted places. Each goes to this pod, into a frame to a peer, or stays wanted because
//! nobody gives credit or nobody can be asked. It must not take answers or judge peers.

use std::sync::Arc;

use m1_arch::{ExpertId, ExpertSet};

use crate::action::Action;
use crate::config::{Config, MAX_TOP_K};
use crate::ids::{Micros, PodId};
use crate::table::{DispatchTable, PodSet, bit};

use super::choose;
use super::frames::{Frames, Heading};
use super::links::{Asked, Links};
use super::peers::Peers;
use super::rounds::{Round, RoundKey, places};

/// How far a pass goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// To the last row.
    Whole,
    /// While those that the step is starved for take more. Nothing but credit changed, so the rows behind wait as they did;
    /// a long prompt would look at all its rows for every frame otherwise.
    Credited,
}

/// What a pass goes by and works on.
pub(super) struct Assign<'a> {
    pub(super) config: &'a Config,
    pub(super) held: &'a ExpertSet,
    pub(super) newest: &'a Arc<DispatchTable>,
    pub(super) peers: &'a mut Peers,
    pub(super) links: &'a mut Links,
    pub(super) frames: &'a mut Frames,
    pub(super) now: Micros,
    pub(super) actions: &'a mut Vec<Action>,
}

impl Assign<'_> {
    /// Assigns what can be assigned, sends it, and leaves in the step its own places, who is starved for credit and which
    /// experts are missing.
    pub(super) fn pass(&mut self, round: &mut Round, key: RoundKey, extent: Extent) {
        let heading = Heading { key, epoch: self.newest.version().epoch, now: self.now };
        let starved = std::mem::take(&mut round.starved);
        round.missing.clear();
        let mut list = std::mem::take(&mut round.list);
        let (mut kept, mut at) = (0, 0);
        while let Some(row) = list.get(at).copied() {
            if extent == Extent::Credited && (self.links.credited(round.lane) | self.frames.roomy()) & starved == 0 {
                round.starved |= starved;
                break;
            }
            at += 1;
            self.row(round, row, heading);
            if round.keep_listed(row) {
                list[kept] = row;
                kept += 1;
            }
        }
        list.drain(kept..at);
        round.list = list;
        self.frames.send_all(round, self.links, heading, self.actions);
    }

    fn row(&mut self, round: &mut Round, row: u32, heading: Heading) {
        let mut options: [PodSet; MAX_TOP_K] = [0; MAX_TOP_K];
        let mut open = 0;
        for place in places(round.look(row).wanted) {
            if self.held.contains(round.layer, ExpertId(round.expert(row, place))) {
                keep(round, Asked { row, places: 1 << place });
                continue;
            }
            options[place] = self.options(round, row, place);
            open |= u16::from(options[place] != 0) << place;
        }
        let mut taking: PodSet = 0;
        // Places with the fewest options choose first, the others join them where they can.
        while let Some(place) = places(open).min_by_key(|place| options[*place].count_ones()) {
            open &= !(1 << place);
            let able = options[place] & (self.links.credited(round.lane) | self.frames.roomy() | taking);
            let others = |pod| places(open).filter(|other| options[*other] & bit(pod) != 0).count();
            let Some(pod) = choose::best(able, taking, others, self.links, (self.config.me, round.lane)) else {
                round.starved |= options[place];
                continue;
            };
            taking |= bit(pod);
            self.frames.add((row, place), pod, round, self.links, (heading, self.actions));
            round.unwant(row, place);
        }
    }

    /// Pods of which the place may be asked in one frame with others. Where only doubted ones are left, it is asked of them
    /// here, alone; where nobody is, its expert is missing, unless a living pod owes the place.
    fn options(&mut self, round: &mut Round, row: u32, place: usize) -> PodSet {
        let of = (round.layer, round.expert(row, place));
        let usable = self.links.up(round.lane) & self.peers.living() & !round.asked(row, place) & !bit(self.config.me);
        let by_newest = round.row(row).by_newest;
        let table = if by_newest { self.newest } else { &round.table };
        let mut set = table.holder_set(of.0, of.1) & usable;
        // A pod that said it lacks the expert is nobody by the pinned table: the placement has moved on.
        if !by_newest && set & !self.peers.absent(set, of) == 0 {
            round.move_row(row);
            set = self.newest.holder_set(of.0, of.1) & usable;
        }
        let clear = set & !self.peers.doubted(set, of);
        if clear != 0 {
            return choose::prefer(clear, self.peers.prompt());
        }
        let hopeful = set & !self.peers.absent(set, of);
        if hopeful == 0 {
            let owing = round.asked(row, place) & self.peers.living();
            if owing & !self.peers.absent(owing, of) != 0 {
                return 0;
            }
            round.lack(row, of.1);
        }
        self.ask_alone(round, (row, place), choose::prefer(set, hopeful), hopeful);
        0
    }

    /// Asks one of these doubted pods for the place, in a frame for its expert alone: one frame, then the others wait for
    /// what comes of it. What is asked of an absent one (no `hopeful` one) stays wanted: that answer is not counted on.
    fn ask_alone(&mut self, round: &mut Round, (row, place): (u32, usize), set: PodSet, hopeful: PodSet) {
        let of = (round.layer, round.expert(row, place));
        let (begun, roomy) = self.frames.begun_alone(of.1, row);
        let rested = set & !begun & !self.peers.resting(set, of, self.now);
        let able = choose::prefer(set & roomy | rested & self.links.credited(round.lane), roomy);
        let Some(pod) = choose::next_after(self.config.me, choose::prefer(able, self.peers.prompt())) else {
            round.starved |= rested;
            return;
        };
        if roomy & bit(pod) == 0 {
            self.peers.rest(pod, of, self.now.after(self.config.ask_again_after));
        }
        self.frames.add_alone((row, place), pod, round, self.links);
        if hopeful & bit(pod) != 0 {
            round.unwant(row, place);
        }
    }
}

/// Takes a place for this pod.
fn keep(round: &mut Round, asked: Asked) {
    round.account(asked, 0);
    match round.own.last_mut().filter(|last| last.row == asked.row) {
        Some(last) => last.places |= asked.places,
        None => round.own.push(asked),
    }
}

/// Takes the step's own places: rows, ascending, and their experts as `Local` hands them out.
pub(super) fn take_own(round: &mut Round) -> Option<(Vec<u32>, Vec<u16>)> {
    if round.own.is_empty() {
        return None;
    }
    let mut own = std::mem::take(&mut round.own);
    own.sort_unstable_by_key(|asked| asked.row);
    own.dedup_by(|later, first| {
        let same = later.row == first.row;
        first.places |= if same { later.places } else { 0 };
        same
    });
    let top_k = round.top_k();
    let mut experts = Vec::with_capacity(own.len() * top_k);
    for asked in &own {
        let of = |place| if asked.places >> place & 1 == 1 { round.expert(asked.row, place) } else { crate::ids::UNUSED };
        experts.extend((0..top_k).map(of));
    }
    let rows = own.iter().map(|asked| asked.row).collect();
    own.clear();
    round.own = own;
    Some((rows, experts))
}

/// Whether an event can be about this pod.
pub(super) fn is_peer(config: &Config, pod: PodId) -> bool {
    pod.index() < crate::ids::MAX_PODS && pod != config.me
}
