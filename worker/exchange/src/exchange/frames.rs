//! [`Frames`]: the request frames under construction while one step's rows are assigned. It keeps a frame within its rows
//! and its credit, and must not choose who gets one.

use crate::action::Action;
use crate::ids::{MAX_PODS, Micros, PodId, UNUSED};
use crate::table::{PodSet, bit, pods};

use super::links::{Asked, Asking, LinkKey, Links};
use super::rounds::{Round, RoundKey};

#[derive(Debug, Default)]
struct Frame {
    /// As the action hands them out.
    rows: Vec<u32>,
    experts: Vec<u16>,
    /// The same rows as the link keeps them.
    asked: Vec<Asked>,
}

impl Frame {
    fn has_row(&self, row: u32) -> bool {
        self.asked.last().is_some_and(|last| last.row == row)
    }

    fn push_row(&mut self, row: u32, top_k: usize) {
        self.rows.push(row);
        self.experts.resize(self.experts.len() + top_k, UNUSED);
        self.asked.push(Asked { row, places: 0 });
    }

    /// Adds a place to the last row.
    fn set(&mut self, place: usize, top_k: usize, expert: u16) {
        let first = self.experts.len().saturating_sub(top_k);
        self.experts[first + place] = expert;
        if let Some(last) = self.asked.last_mut() {
            last.places |= 1 << place;
        }
    }
}

/// What a frame carries beside its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heading {
    pub(super) key: RoundKey,
    pub(super) epoch: u64,
    pub(super) now: Micros,
}

/// One frame per pod, and one for each doubted expert of a pod.
#[derive(Debug)]
pub(super) struct Frames {
    max_rows: usize,
    frames: Vec<Frame>,
    /// Pods whose frame is begun.
    begun: PodSet,
    /// Pods whose frame is begun and takes another row.
    roomy: PodSet,
    alone: Vec<(PodId, u16, Frame)>,
}

impl Frames {
    pub(super) fn new(max_rows: usize) -> Self {
        let frames = (0..MAX_PODS).map(|_| Frame::default()).collect();
        Self { max_rows, frames, begun: 0, roomy: 0, alone: Vec::new() }
    }

    pub(super) fn roomy(&self) -> PodSet {
        self.roomy
    }

    /// Pods whose frame for this expert alone is begun, and those of them whose frame takes the row.
    pub(super) fn begun_alone(&self, expert: u16, row: u32) -> (PodSet, PodSet) {
        let frames = self.alone.iter().filter(|(_, of, _)| *of == expert);
        frames.fold((0, 0), |(begun, roomy), (pod, _, frame)| {
            let takes = frame.asked.len() < self.max_rows || frame.has_row(row);
            (begun | bit(*pod), if takes { roomy | bit(*pod) } else { roomy })
        })
    }

    /// Puts a place into the pod's frame; a new frame takes a credit, which the caller knows to be there.
    pub(super) fn add(
        &mut self,
        at: (u32, usize),
        pod: PodId,
        round: &mut Round,
        links: &mut Links,
        sends: (Heading, &mut Vec<Action>),
    ) {
        let ((row, place), link, top_k) = (at, (pod, round.lane), round.top_k());
        if !self.frames[pod.index()].has_row(row) {
            if self.frames[pod.index()].asked.len() >= self.max_rows {
                self.send(pod, round, links, sends);
            }
            if self.begun & bit(pod) == 0 {
                self.begun |= bit(pod);
                self.frames[pod.index()] = self.begin(round, link, links);
            }
            self.frames[pod.index()].push_row(row, top_k);
            links.owe_row(link);
        }
        let frame = &mut self.frames[pod.index()];
        frame.set(place, top_k, round.expert(row, place));
        let full = frame.asked.len() >= self.max_rows;
        self.roomy = if full { self.roomy & !bit(pod) } else { self.roomy | bit(pod) };
        round.ask(row, place, pod);
    }

    /// Puts a place into the pod's frame for this expert alone, which has room or can be begun.
    pub(super) fn add_alone(&mut self, at: (u32, usize), pod: PodId, round: &mut Round, links: &mut Links) {
        let ((row, place), link, top_k) = (at, (pod, round.lane), round.top_k());
        let expert = round.expert(row, place);
        let index = self.alone.iter().position(|(of, alone, _)| (*of, *alone) == (pod, expert)).unwrap_or_else(|| {
            self.alone.push((pod, expert, self.begin(round, link, links)));
            self.alone.len() - 1
        });
        let frame = &mut self.alone[index].2;
        if !frame.has_row(row) {
            frame.push_row(row, top_k);
            links.owe_row(link);
        }
        frame.set(place, top_k, expert);
        round.ask(row, place, pod);
    }

    /// Sends all frames, by pod; those for one expert come last.
    pub(super) fn send_all(&mut self, round: &Round, links: &mut Links, heading: Heading, actions: &mut Vec<Action>) {
        for pod in pods(self.begun) {
            self.send(pod, round, links, (heading, actions));
        }
        for (pod, expert, frame) in self.alone.drain(..) {
            hand_out(frame, (pod, Some(expert)), round, links, (heading, actions));
        }
    }

    fn send(&mut self, pod: PodId, round: &Round, links: &mut Links, sends: (Heading, &mut Vec<Action>)) {
        self.begun &= !bit(pod);
        self.roomy &= !bit(pod);
        hand_out(std::mem::take(&mut self.frames[pod.index()]), (pod, None), round, links, sends);
    }

    fn begin(&self, round: &Round, link: LinkKey, links: &mut Links) -> Frame {
        links.take_credit(link);
        let rows = self.max_rows.min(round.row_count());
        Frame { rows: Vec::with_capacity(rows), experts: Vec::with_capacity(rows * round.top_k()), asked: links.spare() }
    }
}

fn hand_out(frame: Frame, to: (PodId, Option<u16>), round: &Round, links: &mut Links, sends: (Heading, &mut Vec<Action>)) {
    let ((peer, alone), (Heading { key, epoch, now }, actions)) = (to, sends);
    let (id, lane, layer) = (links.number(), round.lane, round.layer);
    let alone = alone.map(|expert| (layer, expert));
    links.push((peer, lane), Asking { id, round: key, sent: now, alone, doubled: false, rows: frame.asked });
    actions.push(Action::Send { step: round.id, peer, lane, id, epoch, layer, rows: frame.rows, experts: frame.experts });
}
