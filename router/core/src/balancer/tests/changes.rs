//! Groups that come, change and go, and requests that stay in their revision.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::topology::{GroupSpec, PodSpec};

/// A group of a topology: key, revision, open, pods.
type Row = (&'static str, &'static str, bool, &'static [&'static str]);

fn topology(rows: &[Row]) -> Topology {
    let pod = |address: &&str| PodSpec { address: Arc::from(*address), holds: None, member: None };
    let group = |(key, revision, open, pods): &Row| {
        let pods = pods.iter().map(pod).collect();
        ((*key).to_owned(), GroupSpec { revision: Revision::new(revision), open: *open, pods, ..GroupSpec::default() })
    };
    Topology { groups: rows.iter().map(group).collect() }
}

/// A balancer with these groups, every worker ready with `slots`; workers are numbered as they come.
fn ready(rows: &[Row], slots: u32) -> Balancer {
    let mut balancer = Balancer::new(4, Duration::ZERO, Rng::new(5));
    hear(&mut balancer, rows, slots);
    balancer
}

fn hear(balancer: &mut Balancer, rows: &[Row], slots: u32) {
    for (worker, _) in balancer.apply(&topology(rows)).came {
        balancer.heard(worker, stats(Phase::Ready, slots));
    }
}

/// The worker that the next request goes to.
fn goes_to(balancer: &mut Balancer, request: Request) -> Option<u64> {
    match balancer.enter(request, false, NOW) {
        Entry::Run(seat, _) => Some(seat.worker.0),
        _ => None,
    }
}

/// Who goes on, and where.
fn granted(balancer: &mut Balancer) -> Vec<(TicketId, Option<(u64, Reason)>)> {
    balancer.grants(NOW).into_iter().map(|(ticket, entry)| (ticket, place(&entry))).collect()
}

fn bound(revision: &str, avoid: &[u64]) -> Request {
    Request { avoid: avoid.iter().copied().map(WorkerId).collect(), revision: Some(Revision::new(revision)), ..Request::default() }
}

#[test]
fn without_a_group_nobody_is_served_and_nobody_waits() {
    let mut balancer = Balancer::new(2, Duration::ZERO, Rng::new(5));
    assert!(!balancer.is_ready());
    assert_eq!(enter(&mut balancer), Entry::Refused(Reason::NoneReady));
    hear(&mut balancer, &[("a", "1", true, &["a:1"])], 1);
    assert!(matches!(enter(&mut balancer), Entry::Run(..)));
    let Entry::Queued(ticket) = enter(&mut balancer) else { panic!("it waits") };
    balancer.apply(&Topology::default());
    assert_eq!(balancer.grants(NOW), [(ticket, Entry::Refused(Reason::NoneReady))]);
}

#[test]
fn somebody_else_at_the_same_address_is_another_worker() {
    let rows: &[Row] = &[("a", "1", true, &["a:1"])];
    let named = |uid: &str| {
        let mut topology = topology(rows);
        topology.groups.get_mut("a").unwrap().pods[0].member = Some(format!("local/m1/{uid}/0/0").into());
        topology
    };
    let mut balancer = Balancer::new(2, Duration::ZERO, Rng::new(5));
    let numbers = |changes: &crate::Changes| (changes.came.iter().map(|(worker, _)| worker.0).collect(), changes.left.len());
    let numbers = |changes| -> (Vec<u64>, usize) { numbers(&changes) };
    assert_eq!(numbers(balancer.apply(&named("x"))), (vec![0], 0));
    assert_eq!(numbers(balancer.apply(&named("x"))), (vec![], 0), "nothing has changed");
    assert_eq!(numbers(balancer.apply(&named("y"))), (vec![1], 1), "what the first has said is not the second's word");
}

#[test]
fn a_group_without_pods_does_not_serve() {
    let mut balancer = ready(&[("a", "1", true, &[])], 1);
    assert!(!balancer.is_ready());
    let came = balancer.apply(&topology(&[("a", "1", true, &["a:1", "a:2"])])).came;
    balancer.heard(came[0].0, stats(Phase::Ready, 1));
    assert!(!balancer.is_ready(), "its pods were never ready together");
}

#[test]
fn a_group_that_loses_the_pod_it_waited_for_serves_at_once() {
    let mut balancer = Balancer::new(2, Duration::ZERO, Rng::new(5));
    let came = balancer.apply(&topology(&[("a", "1", true, &["a:1", "a:2"])])).came;
    balancer.heard(came[0].0, stats(Phase::Ready, 1));
    assert!(!balancer.is_ready());
    balancer.apply(&topology(&[("a", "1", true, &["a:1"])]));
    assert!(balancer.is_ready());
}

#[test]
fn a_group_whose_pods_are_all_new_starts_again_from_nothing() {
    let mut balancer = ready(&[("a", "1", true, &["a:1", "a:2"])], 1);
    let came = balancer.apply(&topology(&[("a", "1", true, &["a:8", "a:9"])])).came;
    balancer.heard(came[0].0, stats(Phase::Ready, 1));
    assert!(!balancer.is_ready());
    balancer.heard(came[1].0, stats(Phase::Ready, 1));
    assert!(balancer.is_ready());
}

#[test]
fn a_group_that_comes_wakes_those_who_wait() {
    let mut balancer = ready(&[("a", "1", true, &["a:1"])], 1);
    enter(&mut balancer);
    let Entry::Queued(ticket) = enter(&mut balancer) else { panic!("it waits") };
    assert!(balancer.grants(NOW).is_empty());
    hear(&mut balancer, &[("a", "1", true, &["a:1"]), ("b", "1", true, &["b:1"])], 1);
    assert_eq!(granted(&mut balancer), [(ticket, only(1))]);
}

#[test]
fn a_group_that_opens_wakes_those_who_wait() {
    let mut balancer = ready(&[("a", "1", true, &["a:1"]), ("b", "1", false, &["b:1"])], 1);
    enter(&mut balancer);
    let Entry::Queued(ticket) = enter(&mut balancer) else { panic!("it waits") };
    assert!(balancer.grants(NOW).is_empty());
    balancer.apply(&topology(&[("a", "1", true, &["a:1"]), ("b", "1", true, &["b:1"])]));
    assert_eq!(granted(&mut balancer), [(ticket, only(1))]);
}

#[test]
fn a_closed_group_gets_nothing_new_and_keeps_what_it_has() {
    let mut balancer = ready(&[("a", "1", true, &["a:1"])], 4);
    let Entry::Run(held, _) = enter(&mut balancer) else { panic!("there is room") };
    let changes = balancer.apply(&topology(&[("a", "1", false, &["a:1"])]));
    assert_eq!(changes, Changes::default(), "its workers are followed on");
    assert!(!balancer.is_ready() && balancer.max_context().is_none());
    assert_eq!(enter(&mut balancer), Entry::Refused(Reason::NoneReady));
    assert_eq!(balancer.enter(bound("1", &[]), true, NOW), Entry::Refused(Reason::NoneReady), "no retry either");
    assert_eq!(balancer.running(), 1);
    balancer.release(held, NOW);
    assert_eq!(balancer.running(), 0);
    balancer.apply(&topology(&[("a", "1", true, &["a:1"])]));
    assert_eq!(goes_to(&mut balancer, Request::default()), Some(0), "it serves at once when it opens again");
}

#[test]
fn leases_outlive_their_group_and_numbers_are_not_given_again() {
    let mut balancer = ready(&[("a", "1", true, &["a:1", "a:2"])], 4);
    let Entry::Run(held, _) = enter(&mut balancer) else { panic!("there is room") };
    let changes = balancer.apply(&Topology::default());
    assert_eq!(changes.left, [WorkerId(0), WorkerId(1)]);
    assert_eq!((balancer.running(), balancer.groups(NOW).count()), (1, 0));
    let came: Vec<WorkerId> =
        balancer.apply(&topology(&[("a", "1", true, &["a:1", "a:2"])])).came.into_iter().map(|(id, _)| id).collect();
    assert_eq!(came, [WorkerId(2), WorkerId(3)]);
    // What still arrives of the old ones is nobody's.
    balancer.heard(held.worker, stats(Phase::Ready, 4));
    assert!(!balancer.is_ready());
    balancer.lost(held.worker);
    assert_eq!(balancer.report(held, &mut Request::default(), Outcome::Served, NOW), Next::Settled);
    balancer.release(held, NOW);
    assert_eq!(balancer.running(), 0);
    balancer.release(held, NOW);
    assert_eq!(balancer.running(), 0);
}

#[test]
fn pods_are_known_by_their_address() {
    let mut balancer = ready(&[("a", "1", true, &["a:1", "a:2"])], 4);
    let changes = balancer.apply(&topology(&[("a", "2", true, &["a:2", "a:3", "a:1"])]));
    assert_eq!((changes.came, changes.left), (vec![(WorkerId(2), Arc::from("a:3"))], vec![]));
    assert!(balancer.is_ready(), "a group that served goes on while pods join it");
    let changes = balancer.apply(&topology(&[("a", "2", true, &["a:9"])]));
    assert_eq!((changes.came.len(), changes.left.len()), (1, 3));
    assert!(!balancer.is_ready(), "none of its pods has spoken yet");
    balancer.heard(changes.came[0].0, stats(Phase::Ready, 4));
    assert!(balancer.is_ready());
}

#[test]
fn the_same_address_in_two_groups_is_two_workers() {
    let balancer = ready(&[("a", "1", true, &["x:1"]), ("b", "1", true, &["x:1"])], 4);
    assert_eq!(balancer.groups(NOW).map(|group| group.pods.len()).sum::<usize>(), 2);
    assert_eq!(balancer.revision(WorkerId(1)), Some(&Revision::new("1")));
}

#[test]
fn holdings_follow_the_topology() {
    let mut balancer = ready(&[("a", "1", true, &["a:1"])], 4);
    let mut changed = topology(&[("a", "1", true, &["a:1"])]);
    let held = Arc::new(m1_arch::ExpertSet::from_hex(1, 4, "c").unwrap());
    changed.groups.get_mut("a").unwrap().pods[0].holds = Some(Arc::clone(&held));
    assert_eq!(balancer.apply(&changed), Changes::default());
    let view = balancer.groups(NOW).next().unwrap();
    assert_eq!(view.pods[0].holds, Some(&held));
}

#[test]
fn a_retry_stays_in_its_revision_while_that_is_open() {
    let rows: &[Row] = &[("a", "1", true, &["a:1"]), ("b", "1", true, &["b:1"]), ("c", "2", true, &["c:1"])];
    let mut balancer = ready(rows, 9);
    for _ in 0..8 {
        assert_eq!(goes_to(&mut balancer, bound("1", &[0])), Some(1), "the idle group of another revision is no choice");
    }
    assert_eq!(
        balancer.enter(bound("1", &[0, 1]), true, NOW),
        Entry::Refused(Reason::AllFailed),
        "rather refused than moved to another revision"
    );
    // Open and not ready still counts as open: its pods come back, or the operator closes it.
    balancer.lost(WorkerId(0));
    balancer.lost(WorkerId(1));
    assert_eq!(balancer.enter(bound("1", &[]), true, NOW), Entry::Refused(Reason::NoneReady));
    balancer.apply(&topology(&[("a", "1", false, &["a:1"]), ("b", "1", false, &["b:1"]), ("c", "2", true, &["c:1"])]));
    assert_eq!(goes_to(&mut balancer, bound("1", &[0])), Some(2), "nothing of its revision is open: better moved than lost");
}

#[test]
fn a_retry_that_waits_for_its_revision_holds_nobody_up() {
    let mut balancer = ready(&[("a", "1", true, &["a:1"]), ("c", "2", true, &["c:1"])], 1);
    let Entry::Run(held, _) = balancer.enter(bound("1", &[]), false, NOW) else { panic!("there is room") };
    let Entry::Queued(retry) = balancer.enter(bound("1", &[]), true, NOW) else { panic!("it waits") };
    let Entry::Queued(other) = enter(&mut balancer) else { panic!("those who come later queue behind") };
    assert_eq!(granted(&mut balancer), [(other, only(1))]);
    balancer.release(held, NOW);
    assert_eq!(granted(&mut balancer), [(retry, only(0))]);
}

/// A random topology: up to three groups of up to three pods in two revisions.
fn dealt(dice: &mut Rng) -> Topology {
    let mut topology = Topology::default();
    for key in ["a", "b", "c"] {
        if dice.below(4) == 0 {
            continue;
        }
        let pods =
            (0..=dice.below(3)).map(|pod| PodSpec { address: format!("{key}:{}", pod + 1).into(), holds: None, member: None });
        let revision = Revision::new(["1", "2"][dice.below(2)]);
        topology
            .groups
            .insert(key.to_owned(), GroupSpec { revision, open: dice.below(3) > 0, pods: pods.collect(), ..GroupSpec::default() });
    }
    topology
}

/// What the test knows of the truth.
#[derive(Default)]
struct World {
    topology: Topology,
    followed: BTreeMap<WorkerId, Arc<str>>,
    ever: BTreeSet<WorkerId>,
    held: Vec<Seat>,
    waiting: BTreeMap<TicketId, Request>,
}

impl World {
    /// Changes are exactly the difference; numbers are new.
    fn changed(&mut self, topology: Topology, changes: Changes) {
        self.topology = topology;
        for (worker, address) in changes.came {
            assert!(self.ever.insert(worker), "{worker:?} was given before");
            self.followed.insert(worker, address);
        }
        for worker in changes.left {
            assert!(self.followed.remove(&worker).is_some(), "{worker:?} was not followed");
        }
        let mut followed: Vec<&Arc<str>> = self.followed.values().collect();
        let mut wanted: Vec<&Arc<str>> = self.topology.groups.values().flat_map(|g| &g.pods).map(|pod| &pod.address).collect();
        followed.sort();
        wanted.sort();
        assert_eq!(followed, wanted);
    }

    fn group_of(&self, worker: WorkerId) -> &GroupSpec {
        let address = &self.followed[&worker];
        self.topology.groups.values().find(|group| group.pods.iter().any(|pod| pod.address == *address)).unwrap()
    }

    /// Somebody was let in.
    fn runs(&mut self, seat: Seat, request: &Request) {
        let worker = seat.worker;
        let group = self.group_of(worker);
        assert!(group.open, "a closed group got a request");
        assert!(!request.avoid.contains(&worker), "a worker that failed it got it again");
        if let Some(revision) = &request.revision {
            let open = self.topology.groups.values().any(|group| group.open && group.revision == *revision);
            assert!(!open || group.revision == *revision, "a retry crossed revisions");
        }
        self.held.push(seat);
    }
}

/// Whether some worker that has room may be no use to it.
fn is_bound(request: &Request) -> bool {
    request.is_retry() || request.revision.is_some()
}

fn request(dice: &mut Rng, world: &World) -> Request {
    let revision = (dice.below(3) == 0).then(|| Revision::new(["1", "2"][dice.below(2)]));
    let avoid = world.followed.keys().copied().filter(|_| dice.below(6) == 0).collect();
    Request { avoid, revision, ..Request::default() }
}

/// One random step.
fn step(dice: &mut Rng, balancer: &mut Balancer, world: &mut World) {
    match dice.below(8) {
        0..=2 => {
            let request = request(dice, world);
            match balancer.enter(request.clone(), is_bound(&request), NOW) {
                Entry::Run(seat, _) => world.runs(seat, &request),
                Entry::Queued(ticket) => drop(world.waiting.insert(ticket, request)),
                Entry::Refused(_) => {}
            }
        }
        3 if !world.held.is_empty() => balancer.release(world.held.swap_remove(dice.below(world.held.len())), NOW),
        4 => {
            if let Some(ticket) = world.waiting.keys().next().copied() {
                world.waiting.remove(&ticket);
                balancer.leave(ticket);
            }
        }
        5 => {
            let topology = dealt(dice);
            let changes = balancer.apply(&topology);
            world.changed(topology, changes);
        }
        6 => {
            let known: Vec<WorkerId> = world.followed.keys().copied().collect();
            if let Some(worker) = known.get(dice.below(known.len())) {
                balancer.lost(*worker);
            }
        }
        _ => world.followed.keys().for_each(|worker| balancer.heard(*worker, stats(Phase::Ready, 2))),
    }
}

#[test]
fn every_rule_holds_over_many_random_histories() {
    let (mut granted, mut crossed) = (0, 0);
    for seed in 0..300 {
        let mut dice = Rng::new(seed);
        let mut balancer = Balancer::new(3, Duration::ZERO, Rng::new(seed ^ 77));
        let mut world = World::default();
        for _ in 0..200 {
            step(&mut dice, &mut balancer, &mut world);
            for (ticket, entry) in balancer.grants(NOW) {
                let request = world.waiting.remove(&ticket).unwrap();
                if let Entry::Run(seat, _) = entry {
                    granted += 1;
                    let revision = &world.group_of(seat.worker).revision;
                    crossed += u32::from(request.revision.as_ref().is_some_and(|own| own != revision));
                    world.runs(seat, &request);
                }
            }
            assert_eq!(balancer.running() as usize, world.held.len(), "seed {seed}: every lease is known");
            assert_eq!(balancer.queued(), world.waiting.len(), "seed {seed}: every waiting request is known");
            assert!(balancer.grants(NOW).is_empty(), "seed {seed}: one look is enough");
            if world.waiting.values().any(|request| !is_bound(request)) {
                let entry = balancer.enter(Request::default(), true, NOW);
                let Entry::Queued(ticket) = entry else { panic!("seed {seed}: somebody waits while there is room: {entry:?}") };
                balancer.leave(ticket);
            }
        }
        world.held.drain(..).for_each(|seat| balancer.release(seat, NOW));
        assert_eq!(balancer.running(), 0);
    }
    assert!(granted > 100 && crossed > 0, "the histories reach the rules: {granted}, {crossed}");
}
