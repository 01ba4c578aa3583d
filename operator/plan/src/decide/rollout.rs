//! Which groups come and go: scale and rollout, in whole groups. A group of an old revision is closed, drained and deleted; one
//! of the new revision takes a free index. Names hold index and revision, so both may exist side by side.
//!
//! Invariants: never more than `replicas + maxSurge` groups (those on their way out included, because they hold GPUs), and of
//! the available ones never fewer than `replicas - maxUnavailable`, nor none, unless nothing was asked for. A group that speaks
//! encrypted stands in for a plain one only once every router has the certificate.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::Rollout;

use super::since;
use crate::observed::NOTICED_SECONDS;
use crate::{GroupSeen, Revision, RouterSeen};

/// After a group was closed: the time routers need to hear of it. What they send in between, the worker still takes.
const CLOSE_SETTLES: Duration = Duration::from_secs(2);

/// What is asked for, and what there is.
pub struct Wish<'a> {
    /// The revision that all groups should have.
    pub target: &'a Revision,
    /// Groups that should be.
    pub replicas: u32,
    /// How fast.
    pub rollout: &'a Rollout,
    /// How long a closed group may take to finish.
    pub drain: Duration,
    /// Groups that are.
    pub groups: &'a [GroupSeen],
    /// Who sends them requests.
    pub routers: &'a RouterSeen,
    /// Whether a group serves nobody and will not by itself.
    pub broken: &'a dyn Fn(&GroupSeen) -> bool,
    /// Now.
    pub now: Timestamp,
    /// No pod of the target could start: its certificate cannot be made.
    pub startless: bool,
}

/// What comes of it.
#[derive(Debug, Default)]
pub struct Rolling {
    /// Indices of groups to make.
    pub create: Vec<u32>,
    /// Names of groups that take no new requests.
    pub closed: Vec<String>,
    /// Names of groups that go now.
    pub deleted: Vec<String>,
    /// What keeps the rollout from going on.
    pub blocked: Option<Blocked>,
    /// When a drain runs out.
    pub look_again: Option<Duration>,
}

/// What keeps a rollout from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// `rollout.paused`.
    Paused,
    /// The last group that serves would have to go.
    NoHandoverTarget,
    /// Routers without the certificate of the groups that would take over.
    Routers,
}

impl Rolling {
    /// Whether a group takes no new requests.
    pub fn is_closed(&self, group: &GroupSeen) -> bool {
        self.closed.contains(&group.name)
    }

    /// Whether a group is neither closed nor deleted.
    fn stays(&self, group: &GroupSeen) -> bool {
        !self.is_closed(group) && !self.is_deleted(group)
    }

    /// Whether a group goes now.
    pub fn is_deleted(&self, group: &GroupSeen) -> bool {
        self.deleted.contains(&group.name)
    }
}

/// Decides which groups come and go.
pub fn roll(wish: &Wish<'_>) -> Rolling {
    let mut rolling = Rolling::default();
    let here: Vec<&GroupSeen> = wish.groups.iter().filter(|group| !group.deleting).collect();
    let (current, old): (Vec<_>, Vec<_>) = here.iter().copied().partition(|group| group.revision == *wish.target);
    scale_down(wish, &current, &old, &mut rolling);
    if wish.rollout.paused && !old.is_empty() {
        rolling.blocked = Some(Blocked::Paused);
        return rolling;
    }
    // Nothing new would start: what runs keeps its place.
    if wish.startless && !old.is_empty() {
        return rolling;
    }
    replace(wish, &here, &old, &mut rolling);
    create(wish, &current, &mut rolling);
    let moving = !rolling.closed.is_empty() || !rolling.deleted.is_empty() || wish.groups.iter().any(|group| group.deleting);
    let settling = here.iter().any(|group| group.is_available() && !group.takes_over(wish.now));
    if settling {
        super::sooner(&mut rolling.look_again, Some(Duration::from_secs(NOTICED_SECONDS.unsigned_abs())));
    }
    let coming = moving || settling || !rolling.create.is_empty() || current.iter().any(|group| !group.is_available());
    if rolling.blocked == Some(Blocked::Routers) {
        let left = wish.routers.left_by.filter(|left| *left > wish.now);
        super::sooner(&mut rolling.look_again, left.map(|left| since(wish.now, left)));
    }
    if coming && rolling.blocked == Some(Blocked::NoHandoverTarget) {
        // The group that will take over is on its way.
        rolling.blocked = None;
    }
    rolling
}

/// Groups that go on serving while others are away.
pub fn least(replicas: u32, rollout: &Rollout) -> usize {
    replicas.saturating_sub(rollout.max_unavailable) as usize
}

/// Takes away what is more than was asked for: of the present revision, or, while paused, of any. A pause leaves the group that a
/// rollout has added.
fn scale_down(wish: &Wish<'_>, current: &[&GroupSeen], old: &[&GroupSeen], rolling: &mut Rolling) {
    let (candidates, wanted): (Vec<&GroupSeen>, u32) = match wish.rollout.paused {
        true if current.is_empty() || old.is_empty() => (current.iter().chain(old).copied().collect(), wish.replicas),
        true => (current.iter().chain(old).copied().collect(), wish.replicas + wish.rollout.max_surge),
        false => (current.to_vec(), wish.replicas),
    };
    let surplus = candidates.len().saturating_sub(wanted as usize);
    for group in victims(candidates).into_iter().take(surplus) {
        retire(wish, group, rolling);
    }
}

/// Retires groups of old revisions, as many at a time as may be away. What is broken serves nobody and goes at once; all others
/// only while enough others serve, also when they have begun to go: a blip elsewhere opens them again.
fn replace(wish: &Wish<'_>, here: &[&GroupSeen], old: &[&GroupSeen], rolling: &mut Rolling) {
    let least = least(wish.replicas, wish.rollout);
    for group in victims(old.to_vec()) {
        let staying = || here.iter().filter(|other| other.name != group.name && rolling.stays(other));
        let serving = staying().filter(|other| other.takes_over(wish.now)).count();
        let others = staying().filter(|other| other.stands_in_for(group, wish.routers, wish.now)).count();
        if (wish.broken)(group) {
            retire(wish, group, rolling);
        } else if others < serving && others < least.max(1) {
            rolling.blocked = Some(Blocked::Routers);
        } else if others == 0 && wish.replicas > 0 && !wish.rollout.allow_downtime {
            rolling.blocked = Some(Blocked::NoHandoverTarget);
        } else if others >= least {
            retire(wish, group, rolling);
        }
    }
}

/// Makes groups where there is room for them.
fn create(wish: &Wish<'_>, current: &[&GroupSeen], rolling: &mut Rolling) {
    let staying = current.iter().filter(|group| rolling.stays(group)).count();
    let missing = (wish.replicas as usize).saturating_sub(staying);
    // A deleted group holds its GPUs until its pods are gone.
    let room = (wish.replicas + wish.rollout.max_surge) as usize;
    let mut room = room.saturating_sub(wish.groups.len());
    // Fewer groups are asked for in another revision: the successor of the last one takes the place of one that was too many.
    let old = wish.groups.iter().filter(|group| group.revision != *wish.target).count();
    if rolling.blocked == Some(Blocked::NoHandoverTarget) && old > wish.replicas as usize {
        room = room.max(wish.groups.iter().filter(|group| group.deleting || rolling.is_deleted(group)).count());
    }
    let taken = |index: &u32| wish.groups.iter().any(|group| group.index == *index && group.revision == *wish.target);
    rolling.create = (0..).filter(|index| !taken(index)).take(missing.min(room)).collect();
}

/// Those with the least to lose first: what does not serve, what runs the least, what is youngest.
fn victims(mut groups: Vec<&GroupSeen>) -> Vec<&GroupSeen> {
    groups.sort_by_key(|group| {
        (group.closed_since().is_none(), group.is_available(), group.sequences(), std::cmp::Reverse((group.created, group.index)))
    });
    groups
}

/// Closes a group, and deletes it once nothing runs in it or its time is over.
fn retire(wish: &Wish<'_>, group: &GroupSeen, rolling: &mut Rolling) {
    let Some(closed) = group.closed_since() else {
        // Nobody can be in a group without a ready pod; and one without a placement cannot be closed.
        let nobody = group.ready_pods() == 0 || group.placement.is_none();
        if nobody && group.is_idle() {
            rolling.deleted.push(group.name.clone());
        } else {
            rolling.closed.push(group.name.clone());
            super::sooner(&mut rolling.look_again, Some(CLOSE_SETTLES));
        }
        return;
    };
    let age = since(closed, wish.now);
    let drained = group.is_idle() && age >= CLOSE_SETTLES;
    if drained || age >= wish.drain.max(CLOSE_SETTLES) {
        rolling.deleted.push(group.name.clone());
        return;
    }
    rolling.closed.push(group.name.clone());
    let left = if age < CLOSE_SETTLES { CLOSE_SETTLES - age } else { wish.drain.saturating_sub(age) };
    super::sooner(&mut rolling.look_again, Some(left));
}
