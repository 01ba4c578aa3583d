//! [`Rounds`]: the open exchanges of own steps, place by place. It owns what is still to be asked and what is accounted for;
//! it must not know links, health or who is chosen.
//!
//! Invariant: a place that is not accounted for is *wanted* (to be asked) or asked of a pod whose request is open and sums
//! it, or both (to be asked of another one too).

use std::sync::Arc;
use std::time::Duration;

use m1_arch::LayerId;

use crate::ids::{Lane, Micros, PodId, StepId, UNUSED};
use crate::table::{DispatchTable, PodSet, bit};

use super::links::{Asked, Asking};

/// Names one round of a step for good: ids of steps are used again for every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoundKey {
    slot: usize,
    serial: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row {
    /// Places not accounted for, one bit each.
    pub(super) left: u16,
    /// Places to be asked, a part of `left`.
    pub(super) wanted: u16,
    /// The row is in the step's list of rows with wanted places.
    listed: bool,
    /// By the newest table instead of the pinned one: it must be asked again, or the pinned one knows nobody.
    pub(super) by_newest: bool,
    /// Nobody could be asked for one of its wanted places when they were last looked at.
    pub(super) lacks: bool,
}

/// One layer of a step: rows go to their experts' pods, sums come back. A free slot keeps its buffers for the next one.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) id: StepId,
    serial: u64,
    pub(super) lane: Lane,
    pub(super) layer: LayerId,
    /// The table it was opened with.
    pub(super) table: Arc<DispatchTable>,
    top_k: usize,
    /// `[rows, top_k]`.
    experts: Vec<u16>,
    /// Pods with an open request that sums the place, `[rows, top_k]`.
    asked: Vec<PodSet>,
    rows: Vec<Row>,
    /// Rows with wanted places, each once; also some whose places came meanwhile.
    pub(super) list: Vec<u32>,
    /// Places not accounted for.
    left: usize,
    /// Places to hand out as `Local`.
    pub(super) own: Vec<Asked>,
    /// Pods that are asked more as soon as they give credit.
    pub(super) starved: PodSet,
    /// Experts that nobody can be asked for, ascending.
    pub(super) missing: Vec<u16>,
    /// A place was accounted for that another open request sums too.
    pub(super) overlapped: bool,
    /// Since when it stands parked.
    pub(super) parked: Option<Micros>,
    /// Time spent parked before that and since the last progress.
    waited: Duration,
}

impl Round {
    fn new(table: Arc<DispatchTable>) -> Self {
        Round {
            id: StepId(0),
            serial: 0,
            lane: Lane::Decode,
            layer: LayerId(0),
            table,
            top_k: 1,
            experts: Vec::new(),
            asked: Vec::new(),
            rows: Vec::new(),
            list: Vec::new(),
            left: 0,
            own: Vec::new(),
            starved: 0,
            missing: Vec::new(),
            overlapped: false,
            parked: None,
            waited: Duration::ZERO,
        }
    }

    pub(super) fn top_k(&self) -> usize {
        self.top_k
    }

    pub(super) fn row_count(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn row(&self, row: u32) -> Row {
        self.rows[row as usize]
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    pub(super) fn expert(&self, row: u32, place: usize) -> u16 {
        self.experts[row as usize * self.top_k + place]
    }

    pub(super) fn asked(&self, row: u32, place: usize) -> PodSet {
        self.asked[row as usize * self.top_k + place]
    }

    /// From now on the row goes by the newest table.
    pub(super) fn move_row(&mut self, row: u32) {
        self.rows[row as usize].by_newest = true;
    }

    /// The row is looked at: whether somebody can be asked for each place is seen anew.
    pub(super) fn look(&mut self, row: u32) -> Row {
        let row = &mut self.rows[row as usize];
        row.lacks = false;
        *row
    }

    /// Nobody can be asked for this expert, which the row needs.
    pub(super) fn lack(&mut self, row: u32, expert: u16) {
        self.rows[row as usize].lacks = true;
        if let Err(at) = self.missing.binary_search(&expert) {
            self.missing.insert(at, expert);
        }
    }

    /// Accounts for all places of the rows that lack an expert, so that the step goes on without them; these rows, ascending,
    /// and the experts.
    pub(super) fn give_up(&mut self) -> (Vec<u32>, Vec<u16>) {
        let mut rows: Vec<u32> = self.list.iter().copied().filter(|row| self.row(*row).lacks).collect();
        rows.sort_unstable();
        for row in &rows {
            let places = self.row(*row).left;
            self.account(Asked { row: *row, places }, 0);
        }
        (self.parked, self.waited) = (None, Duration::ZERO);
        (rows, std::mem::take(&mut self.missing))
    }

    /// A request that sums this place is on its way to `pod`.
    pub(super) fn ask(&mut self, row: u32, place: usize, pod: PodId) {
        self.asked[row as usize * self.top_k + place] |= bit(pod);
    }

    pub(super) fn unwant(&mut self, row: u32, place: usize) {
        self.rows[row as usize].wanted &= !(1 << place);
    }

    /// The row's wanted places are to be looked at no more, or again with the next pass.
    pub(super) fn keep_listed(&mut self, row: u32) -> bool {
        let row = &mut self.rows[row as usize];
        row.listed = row.wanted != 0;
        row.listed
    }

    /// Wants these places again, as far as they are not accounted for.
    pub(super) fn want_again(&mut self, Asked { row, places }: Asked) {
        let state = &mut self.rows[row as usize];
        let places = places & state.left;
        if places == 0 {
            return;
        }
        state.wanted |= places;
        state.by_newest = true;
        if !std::mem::replace(&mut state.listed, true) {
            self.list.push(row);
        }
    }

    /// A request of `pod` is lost, refused or worthless for this row: its places are wanted again.
    pub(super) fn release(&mut self, pod: PodId, asked: Asked) {
        for place in places(asked.places) {
            self.asked[asked.row as usize * self.top_k + place] &= !bit(pod);
        }
        self.want_again(asked);
    }

    /// Accounts for these places, which are all left. `by`: the pods whose request this comes from, if any.
    pub(super) fn account(&mut self, Asked { row, places: done }: Asked, by: PodSet) {
        let first = row as usize * self.top_k;
        self.overlapped |= places(done).any(|place| self.asked[first + place] & !by != 0);
        let state = &mut self.rows[row as usize];
        state.left &= !done;
        state.wanted &= !done;
        self.left -= done.count_ones() as usize;
    }

    /// Takes an answer: rows of the step and, unless all of the answer's rows count, their positions in it. None: nothing
    /// of it counts.
    pub(super) fn accept(&mut self, asking: &Asking, pod: PodId) -> Option<(Vec<u32>, Option<Vec<u32>>)> {
        let live = asking.rows.iter().filter(|asked| asked.places != 0).count();
        if live == 0 {
            return None;
        }
        let mut rows = Vec::with_capacity(live);
        let mut positions = (live < asking.rows.len()).then(|| Vec::with_capacity(live));
        for (position, asked) in asking.rows.iter().enumerate().filter(|(_, asked)| asked.places != 0) {
            rows.push(asked.row);
            if let Some(positions) = &mut positions {
                positions.push(position as u32);
            }
            self.account(*asked, bit(pod));
        }
        Some((rows, positions))
    }

    /// The step goes on: what it waited before does not count any more.
    pub(super) fn progress(&mut self, now: Micros) {
        self.waited = Duration::ZERO;
        self.parked = self.parked.map(|_| now);
    }

    /// Ends its stand; true: it stood.
    pub(super) fn resume(&mut self, now: Micros) -> bool {
        self.waited = self.waited(now);
        self.parked.take().is_some()
    }

    /// How long it stood since the last progress.
    pub(super) fn waited(&self, now: Micros) -> Duration {
        self.waited + self.parked.map_or(Duration::ZERO, |since| now.since(since))
    }

    fn begin(&mut self, experts: &[u16]) {
        self.experts.clear();
        self.experts.extend_from_slice(experts);
        self.asked.clear();
        self.asked.resize(experts.len(), 0);
        self.rows.clear();
        self.list.clear();
        self.left = 0;
        for (row, places) in experts.chunks_exact(self.top_k).enumerate() {
            let used = places.iter().enumerate().fold(0, |used, (place, expert)| used | (u16::from(*expert != UNUSED) << place));
            self.rows.push(Row { left: used, wanted: used, listed: used != 0, ..Row::default() });
            self.left += used.count_ones() as usize;
            if used != 0 {
                self.list.push(row as u32);
            }
        }
        self.own.clear();
        self.missing.clear();
        (self.starved, self.overlapped, self.parked, self.waited) = (0, false, None, Duration::ZERO);
    }
}

/// The places of a set, ascending.
pub(super) fn places(set: u16) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(set), |set| Some(set & set.wrapping_sub(1)))
        .take_while(|set| *set != 0)
        .map(|set| set.trailing_zeros() as usize)
}

/// All open exchanges.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    slots: Vec<Round>,
    free: Vec<usize>,
    /// Slots in use, in the order of opening. A pod has a handful of steps open, so finding one is a look at each.
    order: Vec<usize>,
    serial: u64,
}

impl Rounds {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Opens an exchange; every expert is of the model, and there are `top_k` for each row.
    pub(super) fn open(
        &mut self,
        id: StepId,
        at: (Lane, LayerId),
        table: Arc<DispatchTable>,
        top_k: usize,
        experts: &[u16],
    ) -> RoundKey {
        self.serial += 1;
        let ((lane, layer), serial) = (at, self.serial);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Round::new(table.clone()));
            self.slots.len() - 1
        });
        let round = &mut self.slots[slot];
        (round.id, round.serial, round.lane, round.layer, round.table, round.top_k) = (id, serial, lane, layer, table, top_k);
        round.begin(experts);
        self.order.push(slot);
        RoundKey { slot, serial }
    }

    /// Ends an exchange.
    pub(super) fn close(&mut self, key: RoundKey) {
        if self.get_mut(key).is_some() {
            self.slots[key.slot].serial = 0;
            self.order.retain(|slot| *slot != key.slot);
            self.free.push(key.slot);
        }
    }

    pub(super) fn find(&self, id: StepId) -> Option<RoundKey> {
        (0..self.len()).filter_map(|index| self.key(index)).find(|key| self.slots[key.slot].id == id)
    }

    /// The exchange, if it has not ended.
    pub(super) fn get_mut(&mut self, key: RoundKey) -> Option<&mut Round> {
        self.slots.get_mut(key.slot).filter(|round| round.serial == key.serial)
    }

    /// The exchange that was opened as the `index`th of those open now.
    pub(super) fn key(&self, index: usize) -> Option<RoundKey> {
        self.order.get(index).map(|slot| RoundKey { slot: *slot, serial: self.slots[*slot].serial })
    }
}
