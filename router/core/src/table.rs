//! The groups and their workers as they are now: who belongs where, who is alive, who sits where and how that went. The queue is [`crate::Balancer`]'s.
//!
//! A group serves once all its pods were ready together; from then on every pod that calls itself ready takes requests, because a pod knows best whether
//! it can do without a lost peer. It starts again from nothing when no pod is ready. A closed group serves nobody new, however ready it is.
//!
//! A worker is a pod's address in a group, and who is meant there. Its number is never given again, so a seat means the same worker for as long as it
//! lives; a worker that has left is kept until its last seat is given back.
//!
//! Of a revision's serving workers at least one is never put out.

mod post;
mod seats;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use m1_arch::ExpertSet;

use crate::choice::Candidate;
use crate::health::Health;
use crate::outcome::Outcome;
use crate::standing::Standing;
use crate::topology::{GroupSpec, Revision, Topology};
use crate::worker::{WorkerId, WorkerStats};

use post::Post;
use seats::Seats;

#[derive(Debug)]
struct Pod {
    worker: WorkerId,
    address: Arc<str>,
    member: Option<Arc<str>>,
    holds: Option<Arc<ExpertSet>>,
}

#[derive(Debug, Default)]
struct Group {
    revision: Revision,
    open: bool,
    complete: bool,
    pods: Vec<Pod>,
}

/// What a new topology changed: whom to follow from now on, and whom no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workers that came, with their addresses.
    pub came: Vec<(WorkerId, Arc<str>)>,
    /// Workers that left; leases on them go on.
    pub left: Vec<WorkerId>,
}

/// One group as it is.
#[derive(Clone, Debug)]
pub struct GroupView<'a> {
    /// Its key in the topology.
    pub key: &'a str,
    /// Whether it gets new requests.
    pub open: bool,
    /// In the order of their numbers.
    pub pods: Vec<PodView<'a>>,
}

/// One pod as it is.
#[derive(Clone, Copy, Debug)]
pub struct PodView<'a> {
    /// `HOST:PORT`.
    pub address: &'a str,
    /// The experts it should hold, where that is known.
    pub holds: Option<&'a Arc<ExpertSet>>,
    /// Its status, while it can be reached.
    pub stats: Option<&'a WorkerStats>,
    /// How its last requests went: whether it gets any.
    pub standing: Standing,
    /// Own sequences there.
    pub inflight: u64,
}

/// What all reachable workers have and hold, by their own word: of every router's sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that run, with what began or ended here since the workers last spoke.
    pub running: u64,
    /// Sequences that wait in a worker; those that wait in this router are [`crate::Balancer::queued`].
    pub waiting: u64,
    /// State slots in use.
    pub slots_used: u64,
    /// State slots there are.
    pub slots_total: u64,
    /// KV blocks in use.
    pub kv_used: u64,
    /// KV blocks there are.
    pub kv_total: u64,
    /// Workers that can be reached.
    pub reachable: usize,
    /// Of these, workers that get no requests because theirs failed.
    pub out: usize,
}

/// The groups and their workers.
#[derive(Debug, Default)]
pub(crate) struct Table {
    groups: BTreeMap<String, Group>,
    workers: BTreeMap<WorkerId, Post>,
    seats: Seats,
    next: u64,
}

impl Table {
    /// Takes a whole topology for the one before.
    pub fn apply(&mut self, topology: &Topology) -> Changes {
        let mut changes = Changes::default();
        let mut old = std::mem::take(&mut self.groups);
        for (key, spec) in &topology.groups {
            let group = self.regroup(old.remove(key).unwrap_or_default(), spec, &mut changes);
            self.groups.insert(key.clone(), group);
        }
        old.into_values().flat_map(|group| group.pods).for_each(|pod| self.dismiss(pod.worker, &mut changes));
        self.judge_groups();
        changes
    }

    fn regroup(&mut self, before: Group, spec: &GroupSpec, changes: &mut Changes) -> Group {
        let mut known = before.pods;
        let mut pods = Vec::with_capacity(spec.pods.len());
        for pod in &spec.pods {
            let same = known.iter().position(|old| old.address == pod.address && old.member == pod.member);
            let worker = same.map(|at| known.swap_remove(at).worker).unwrap_or_else(|| self.hire(&pod.address, changes));
            pods.push(Pod { worker, address: Arc::clone(&pod.address), member: pod.member.clone(), holds: pod.holds.clone() });
        }
        known.into_iter().for_each(|pod| self.dismiss(pod.worker, changes));
        Group { revision: spec.revision.clone(), open: spec.open, complete: before.complete, pods }
    }

    fn hire(&mut self, address: &Arc<str>, changes: &mut Changes) -> WorkerId {
        let worker = WorkerId(self.next);
        self.next += 1;
        self.workers.insert(worker, Post::default());
        changes.came.push((worker, Arc::clone(address)));
        worker
    }

    fn dismiss(&mut self, worker: WorkerId, changes: &mut Changes) {
        changes.left.push(worker);
        if let Some(leaving) = self.workers.get_mut(&worker) {
            leaving.left = true;
        }
        self.forget(worker);
    }

    /// Drops a worker that has left and has nobody.
    fn forget(&mut self, worker: WorkerId) {
        if self.workers.get(&worker).is_some_and(|post| post.left && post.own.seats == 0) {
            self.workers.remove(&worker);
        }
    }

    /// A worker has refused a sequence. Where it takes none it is not asked again before this; where it had no room for this one, others may still fit.
    pub fn refused(&mut self, worker: WorkerId, outcome: Outcome, until: Duration) {
        if let Some(post) = self.workers.get_mut(&worker) {
            post.refused(outcome, until);
        }
    }

    /// A status came.
    pub fn heard(&mut self, worker: WorkerId, stats: WorkerStats) {
        if let Some(post) = self.workers.get_mut(&worker) {
            post.heard(stats, self.seats.tokens_on(worker));
        }
        self.judge_groups();
    }

    /// A worker cannot be reached; gives what `judge` makes of its health, or nothing where it is not known.
    pub fn lost<T>(&mut self, worker: WorkerId, judge: impl FnOnce(&mut Health) -> T) -> Option<T> {
        let judged = self.workers.get_mut(&worker).map(|post| judge(&mut post.health));
        self.judge_groups();
        judged
    }

    /// What all reachable workers have and hold.
    pub fn load(&self, now: Duration) -> Load {
        let mut load = Load::default();
        for (post, stats) in self.workers.values().filter(|post| !post.left).filter_map(|post| Some((post, post.health.stats()?))) {
            // What began or ended since the last status is known of this router's own.
            load.running += (post.own.seats + post.others.seats).saturating_sub(stats.waiting.into());
            load.waiting += u64::from(stats.waiting);
            load.slots_used += u64::from(stats.slots_used.max(stats.running));
            load.slots_total += u64::from(stats.slots_total);
            load.kv_used += u64::from(stats.kv_used);
            load.kv_total += u64::from(stats.kv_total);
            load.reachable += 1;
            load.out += usize::from(post.record.standing(now) == Standing::Out);
        }
        load
    }

    /// Statuses of the workers that take new requests.
    pub fn serving(&self) -> impl Iterator<Item = (WorkerId, &WorkerStats)> {
        self.groups.values().flat_map(|group| self.serving_of(group))
    }

    /// Whether new requests may go to a group of this revision, be it ready or not.
    pub fn has_open(&self, revision: &Revision) -> bool {
        self.groups.values().any(|group| group.open && group.revision == *revision)
    }

    /// Whether new requests may go to any group, be it ready or not.
    pub fn is_any_open(&self) -> bool {
        self.groups.values().any(|group| group.open)
    }

    /// The revision of a worker's group.
    pub fn revision(&self, worker: WorkerId) -> Option<&Revision> {
        let group = self.groups.values().find(|group| group.pods.iter().any(|pod| pod.worker == worker));
        group.map(|group| &group.revision)
    }

    /// Who may take a request now.
    pub fn candidates(&self, now: Duration) -> Vec<Candidate> {
        let of_group = |group| self.serving_of(group).map(move |(id, stats)| (group, id, stats));
        let serving = self.groups.values().flat_map(of_group);
        serving.filter_map(|(group, id, stats)| Some(self.workers.get(&id)?.candidate(id, &group.revision, stats, now))).collect()
    }

    /// The groups, by their keys.
    pub fn groups(&self, now: Duration) -> impl Iterator<Item = GroupView<'_>> {
        self.groups.iter().map(move |(key, group)| {
            let pods = group.pods.iter().map(|pod| {
                let post = self.workers.get(&pod.worker);
                PodView {
                    address: &pod.address,
                    holds: pod.holds.as_ref(),
                    stats: self.stats(pod.worker),
                    standing: post.map_or(Standing::Good, |post| post.record.standing(now)),
                    inflight: post.map_or(0, |post| post.own.seats),
                }
            });
            GroupView { key, open: group.open, pods: pods.collect() }
        })
    }

    fn serving_of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = (WorkerId, &'a WorkerStats)> {
        let pods = group.pods.iter().filter(|pod| group.open && group.complete && self.is_ready(pod.worker));
        pods.filter_map(|pod| Some((pod.worker, self.stats(pod.worker)?)))
    }

    /// A worker's status, while it can be reached.
    pub fn stats(&self, worker: WorkerId) -> Option<&WorkerStats> {
        self.workers.get(&worker)?.health.stats()
    }

    fn is_ready(&self, worker: WorkerId) -> bool {
        is_ready(&self.workers, worker)
    }

    fn judge_groups(&mut self) {
        for group in self.groups.values_mut() {
            let mut ready = group.pods.iter().map(|pod| is_ready(&self.workers, pod.worker));
            group.complete = match group.complete {
                true => ready.any(|ready| ready),
                false => ready.all(|ready| ready),
            };
        }
    }
}

fn is_ready(workers: &BTreeMap<WorkerId, Post>, worker: WorkerId) -> bool {
    workers.get(&worker).is_some_and(|post| post.health.is_ready())
}
