//! Who of several pods is asked for a place. Pure: the same state gives the same choice.

use std::cmp::Reverse;

use crate::ids::{Lane, MAX_PODS, PodId};
use crate::table::{PodSet, bit, pods};

use super::links::Links;

/// Those of `set` that are in `preferred`, or all of it where none is.
pub(super) fn prefer(set: PodSet, preferred: PodSet) -> PodSet {
    if set & preferred != 0 { set & preferred } else { set }
}

/// The pod of `able` to ask: one that already takes another place of the row, else one that could take most of its other
/// open places (both are one transfer instead of two), else the one that owes fewest rows, gives most credit, and comes
/// next after `me`, so that pods with equal tables do not all turn to the same one.
pub(super) fn best(
    able: PodSet,
    taking: PodSet,
    open: impl Fn(PodId) -> usize,
    links: &Links,
    (me, lane): (PodId, Lane),
) -> Option<PodId> {
    let able = prefer(able, taking);
    if able.count_ones() <= 1 {
        return pods(able).next();
    }
    pods(able).min_by_key(|pod| {
        let key = (*pod, lane);
        (Reverse(open(*pod)), links.rows_owed(key), Reverse(links.credits(key)), distance(me, *pod))
    })
}

/// The first of a set after `me`, going round.
pub(super) fn next_after(me: PodId, set: PodSet) -> Option<PodId> {
    pods(set & !bit(me)).min_by_key(|pod| distance(me, *pod))
}

fn distance(me: PodId, pod: PodId) -> usize {
    (pod.index() + MAX_PODS - me.index()) % MAX_PODS
}
