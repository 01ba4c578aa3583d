//! Queue, leases and refusals of the balancer; groups that come and go are in `changes.rs`, what is told of attempts in `records.rs`, KV in `room.rs`.
mod changes;
mod records;
mod room;

use super::*;
use crate::worker::Phase;

const NOW: Duration = Duration::from_secs(9);

fn stats(phase: Phase, slots: u32) -> WorkerStats {
    WorkerStats { phase, slots_total: slots, ..WorkerStats::default() }
}

/// A topology of groups with so many pods each, numbered through from 0.
fn sizes(groups: &[usize]) -> Topology {
    let mut next = 0..;
    let groups: Vec<Vec<String>> =
        groups.iter().map(|pods| next.by_ref().take(*pods).map(|pod| format!("pod-{pod}:1")).collect()).collect();
    Topology::fixed(&groups)
}

/// A balancer of such groups with a queue of two.
fn balancer(groups: &[usize]) -> Balancer {
    let mut balancer = Balancer::new(2, Duration::ZERO, Rng::new(5));
    balancer.apply(&sizes(groups));
    balancer
}

/// One group of two ready pods with one slot each.
fn two_pods() -> Balancer {
    let mut balancer = balancer(&[2]);
    balancer.heard(WorkerId(0), stats(Phase::Ready, 1));
    balancer.heard(WorkerId(1), stats(Phase::Ready, 1));
    balancer
}

fn enter(balancer: &mut Balancer) -> Entry {
    balancer.enter(Request::default(), false, NOW)
}

/// Whom it runs on, and why.
fn place(entry: &Entry) -> Option<(u64, Reason)> {
    match entry {
        Entry::Run(seat, reason) => Some((seat.worker.0, *reason)),
        _ => None,
    }
}

fn only(worker: u64) -> Option<(u64, Reason)> {
    Some((worker, Reason::OnlyOne))
}

#[test]
fn a_group_serves_when_every_pod_is_ready() {
    let mut balancer = balancer(&[2]);
    balancer.heard(WorkerId(0), stats(Phase::Ready, 1));
    assert!(!balancer.is_ready());
    assert_eq!(enter(&mut balancer), Entry::Refused(Reason::NoneReady));
    balancer.heard(WorkerId(1), stats(Phase::Connecting, 1));
    assert!(!balancer.is_ready());
    balancer.heard(WorkerId(1), stats(Phase::Ready, 1));
    assert!(balancer.is_ready());
}

#[test]
fn one_complete_group_is_enough() {
    let mut balancer = balancer(&[1, 2]);
    balancer.heard(WorkerId(1), stats(Phase::Ready, 1));
    assert!(!balancer.is_ready());
    balancer.heard(WorkerId(0), stats(Phase::Ready, 1));
    assert_eq!(place(&enter(&mut balancer)), only(0));
}

#[test]
fn after_a_loss_the_pods_that_call_themselves_ready_serve_on() {
    let mut balancer = two_pods();
    balancer.lost(WorkerId(0));
    assert_eq!(place(&enter(&mut balancer)), only(1));
    balancer.heard(WorkerId(1), stats(Phase::Connecting, 1));
    assert!(!balancer.is_ready());
    balancer.heard(WorkerId(1), stats(Phase::Ready, 1));
    assert!(!balancer.is_ready(), "the group starts again from nothing");
}

#[test]
fn requests_wait_in_order_and_the_queue_is_bounded() {
    let mut balancer = two_pods();
    assert!(matches!(enter(&mut balancer), Entry::Run(..)));
    let Entry::Run(second, _) = enter(&mut balancer) else { panic!("there is room") };
    let (Entry::Queued(a), Entry::Queued(b)) = (enter(&mut balancer), enter(&mut balancer)) else { panic!("they wait") };
    assert_eq!(enter(&mut balancer), Entry::Refused(Reason::QueueFull));
    assert!(balancer.grants(NOW).is_empty());
    balancer.release(second, NOW);
    assert!(matches!(enter(&mut balancer), Entry::Refused(Reason::QueueFull)), "nobody overtakes");
    let granted = balancer.grants(NOW);
    assert_eq!((granted.len(), granted[0].0, place(&granted[0].1)), (1, a, only(second.worker.0)));
    assert_eq!((balancer.running(), balancer.queued()), (2, 1));
    balancer.leave(b);
    assert_eq!(balancer.queued(), 0);
}

#[test]
fn those_who_wait_are_told_when_nobody_is_left() {
    let mut balancer = balancer(&[1]);
    balancer.heard(WorkerId(0), stats(Phase::Ready, 1));
    enter(&mut balancer);
    let Entry::Queued(ticket) = enter(&mut balancer) else { panic!("it waits") };
    balancer.lost(WorkerId(0));
    assert_eq!(balancer.grants(NOW), [(ticket, Entry::Refused(Reason::NoneReady))]);
}

#[test]
fn those_who_wait_are_served_when_somebody_comes_back() {
    let at = |seconds| NOW + Duration::from_secs(seconds);
    let mut balancer = Balancer::new(2, Duration::from_secs(10), Rng::new(5));
    balancer.apply(&sizes(&[1]));
    assert_eq!(enter(&mut balancer), Entry::Refused(Reason::NoneReady), "nobody was there yet");
    balancer.heard(WorkerId(0), stats(Phase::Ready, 9));
    balancer.grants(NOW);
    balancer.lost(WorkerId(0));
    assert!(!balancer.is_ready());
    let Entry::Queued(first) = balancer.enter(Request::default(), false, at(5)) else { panic!("it waits") };
    assert!(matches!(balancer.enter(Request::default(), false, at(5)), Entry::Queued(_)));
    assert_eq!(balancer.enter(Request::default(), false, at(5)), Entry::Refused(Reason::QueueFull));
    assert_eq!(balancer.grants(at(9)), []);
    balancer.heard(WorkerId(0), stats(Phase::Ready, 9));
    let granted = balancer.grants(at(9));
    assert_eq!((granted.len(), granted[0].0, place(&granted[0].1)), (2, first, only(0)));
    balancer.lost(WorkerId(0));
    let Entry::Queued(late) = balancer.enter(Request::default(), false, at(18)) else { panic!("it waits") };
    assert_eq!(balancer.grants(at(19)), [(late, Entry::Refused(Reason::NoneReady))], "not for ever");
    assert_eq!(balancer.enter(Request::default(), false, at(20)), Entry::Refused(Reason::NoneReady));
}

#[test]
fn nobody_waits_where_no_group_is_left_to_come_back() {
    let mut balancer = Balancer::new(2, Duration::from_secs(10), Rng::new(5));
    balancer.apply(&sizes(&[1]));
    balancer.heard(WorkerId(0), stats(Phase::Ready, 9));
    balancer.grants(NOW);
    balancer.apply(&Topology::default());
    assert_eq!(enter(&mut balancer), Entry::Refused(Reason::NoneReady));
}

/// A request is sent and comes back.
fn refuse(balancer: &mut Balancer, outcome: Outcome) {
    let Entry::Run(seat, _) = balancer.enter(Request::default(), true, NOW + REFUSAL_HOLDS) else { panic!("there is room") };
    assert_eq!(balancer.report(seat, &mut Request::default(), outcome, NOW), Next::Again);
    balancer.release(seat, NOW);
}

#[test]
fn a_refusal_holds_until_a_status_or_a_moment_later() {
    let mut balancer = balancer(&[1]);
    balancer.heard(WorkerId(0), stats(Phase::Ready, 4));
    (0..3).for_each(|_| refuse(&mut balancer, Outcome::Full));
    let Entry::Queued(ordinary) = enter(&mut balancer) else { panic!("it waits") };
    let Entry::Queued(urgent) = balancer.enter(Request::default(), true, NOW) else { panic!("it waits") };
    assert!(balancer.grants(NOW).is_empty());
    let later: Vec<TicketId> = balancer.grants(NOW + REFUSAL_HOLDS).into_iter().map(|(ticket, _)| ticket).collect();
    assert_eq!(later, [urgent, ordinary]);
    refuse(&mut balancer, Outcome::NotReady);
    assert!(matches!(enter(&mut balancer), Entry::Queued(_)));
    balancer.heard(WorkerId(0), stats(Phase::Ready, 4));
    balancer.grants(NOW);
    assert!(matches!(enter(&mut balancer), Entry::Run(..)));
}

#[test]
fn leases_and_tickets_balance_over_many_random_histories() {
    for seed in 0..200 {
        let mut dice = Rng::new(seed);
        let mut balancer = two_pods();
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            match dice.below(6) {
                0 | 1 => match enter(&mut balancer) {
                    Entry::Run(seat, _) => held.push(seat),
                    Entry::Queued(ticket) => waiting.push(ticket),
                    Entry::Refused(_) => {}
                },
                2 if !held.is_empty() => balancer.release(held.swap_remove(dice.below(held.len())), NOW),
                3 if !waiting.is_empty() => balancer.leave(waiting.swap_remove(dice.below(waiting.len()))),
                4 => {
                    balancer.lost(WorkerId(0));
                }
                _ => (0..2).for_each(|id| balancer.heard(WorkerId(id), stats(Phase::Ready, 1))),
            }
            for (ticket, entry) in balancer.grants(NOW) {
                waiting.retain(|other| *other != ticket);
                if let Entry::Run(seat, _) = entry {
                    held.push(seat);
                }
            }
            assert_eq!(balancer.running() as usize, held.len(), "seed {seed}");
            assert_eq!(balancer.queued(), waiting.len(), "seed {seed}");
            assert!(held.len() <= 2 && waiting.len() <= 2, "seed {seed}");
        }
    }
}
