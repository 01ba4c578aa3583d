//! Room is slots and KV, of all routers: what is counted when, who waits for it, and who passes whom.
use proptest::prelude::*;

use super::*;
use crate::choice::{Candidate, Share};
use crate::rng::Rng;

/// Worker 0 with so many slots and KV blocks of ten tokens.
fn one(slots: u32, blocks: u32) -> Balancer {
    let mut balancer = Balancer::new(64, Duration::ZERO, Rng::new(5));
    balancer.apply(&sizes(&[1]));
    balancer.heard(WorkerId(0), says(slots, blocks));
    balancer
}

fn says(slots: u32, blocks: u32) -> WorkerStats {
    WorkerStats { kv_total: blocks, kv_block_tokens: 10, ..stats(Phase::Ready, slots) }
}

fn ask(balancer: &mut Balancer, tokens: u32) -> Entry {
    balancer.enter(Request::new(tokens), false, NOW)
}

fn seat(balancer: &mut Balancer, tokens: u32) -> Seat {
    match ask(balancer, tokens) {
        Entry::Run(seat, _) => seat,
        other => panic!("no room for {tokens}: {other:?}"),
    }
}

fn ticket(balancer: &mut Balancer, tokens: u32) -> TicketId {
    match ask(balancer, tokens) {
        Entry::Queued(ticket) => ticket,
        other => panic!("{tokens} should wait: {other:?}"),
    }
}

/// Slots and KV blocks of worker 0 that count as taken.
fn taken(balancer: &Balancer) -> (u64, u64) {
    let candidates = balancer.table.candidates(NOW);
    (candidates[0].slots.used, candidates[0].kv.used)
}

#[test]
fn who_has_time_lets_others_pass_but_for_four_of_them() {
    let mut balancer = one(1, 100);
    let seated = seat(&mut balancer, 1);
    let patient = |balancer: &mut Balancer| match balancer.enter(Request { batch: true, ..Request::new(1) }, false, NOW) {
        Entry::Queued(ticket) => ticket,
        other => panic!("it should wait: {other:?}"),
    };
    let first = ticket(&mut balancer, 1);
    let (slow, slower) = (patient(&mut balancer), patient(&mut balancer));
    let others: Vec<TicketId> = (0..6).map(|_| ticket(&mut balancer, 1)).collect();
    let mut order = Vec::new();
    let mut seated = Some(seated);
    while let Some(seat) = seated.take() {
        balancer.release(seat, NOW);
        for (ticket, entry) in balancer.grants(NOW) {
            order.push(ticket);
            if let Entry::Run(seat, _) = entry {
                seated = Some(seat);
            }
        }
    }
    let wanted = [&[first], &others[..4], &[slow, slower], &others[4..]].concat();
    assert_eq!(order, wanted);
}

#[test]
fn own_seats_count_at_once_and_are_not_counted_twice() {
    let mut balancer = one(8, 100);
    let first = seat(&mut balancer, 95);
    seat(&mut balancer, 1);
    assert_eq!(taken(&balancer), (2, 11), "blocks are whole");
    balancer.heard(WorkerId(0), WorkerStats { running: 2, slots_used: 2, kv_used: 11, ..says(8, 100) });
    assert_eq!(taken(&balancer), (2, 11), "the same ones");
    seat(&mut balancer, 10);
    assert_eq!(taken(&balancer), (3, 12));
    balancer.release(first, NOW);
    assert_eq!(taken(&balancer), (2, 2));
    balancer.release(first, NOW);
    assert_eq!(taken(&balancer), (2, 2), "once");
}

#[test]
fn what_others_have_counts_until_the_next_status_and_own_seats_beside_it() {
    let mut balancer = one(8, 100);
    let own = seat(&mut balancer, 100);
    // Four of others, and one that waits for 20 blocks.
    let busy = WorkerStats { running: 5, slots_used: 5, waiting: 1, kv_used: 50, kv_waiting: 20, ..says(8, 100) };
    balancer.heard(WorkerId(0), busy);
    assert_eq!(taken(&balancer), (6, 70));
    seat(&mut balancer, 100);
    assert_eq!(taken(&balancer), (7, 80), "the status did not know of this one");
    balancer.release(own, NOW);
    assert_eq!(taken(&balancer), (6, 70), "room at once");
    balancer.heard(WorkerId(0), WorkerStats { running: 1, slots_used: 1, kv_used: 10, ..says(8, 100) });
    assert_eq!(taken(&balancer), (1, 10), "the others are gone");
}

#[test]
fn a_status_that_does_not_know_of_a_new_seat_takes_nothing_away() {
    let mut balancer = one(2, 100);
    seat(&mut balancer, 100);
    seat(&mut balancer, 100);
    balancer.heard(WorkerId(0), says(2, 100));
    assert_eq!(taken(&balancer), (2, 20));
    assert!(matches!(ask(&mut balancer, 10), Entry::Queued(_)));
}

#[test]
fn a_worker_that_comes_back_with_other_blocks_is_counted_anew() {
    let mut balancer = one(8, 100);
    let held = seat(&mut balancer, 95);
    balancer.heard(WorkerId(0), WorkerStats { kv_block_tokens: 50, kv_total: 20, ..says(8, 100) });
    assert_eq!(taken(&balancer), (1, 2));
    balancer.release(held, NOW);
    assert_eq!(taken(&balancer), (0, 0));
    balancer.heard(WorkerId(0), WorkerStats { kv_block_tokens: 0, kv_total: 20, kv_used: 20, ..says(8, 100) });
    seat(&mut balancer, 1_000_000);
}

#[test]
fn too_large_is_refused_by_name_and_large_waits() {
    let mut balancer = one(8, 100);
    assert_eq!(ask(&mut balancer, 1001), Entry::Refused(Reason::TooLarge));
    seat(&mut balancer, 10);
    let waits = ticket(&mut balancer, 1000);
    assert!(balancer.grants(NOW).is_empty());
    balancer.leave(waits);
}

#[test]
fn small_ones_do_not_overtake_a_large_one_on_the_worker_that_it_waits_for() {
    let mut balancer = one(8, 100);
    let (a, b) = (seat(&mut balancer, 300), seat(&mut balancer, 300));
    let large = ticket(&mut balancer, 900);
    let small = ticket(&mut balancer, 10);
    assert!(balancer.grants(NOW).is_empty(), "40 blocks are free, and kept");
    balancer.release(a, NOW);
    assert!(balancer.grants(NOW).is_empty());
    balancer.release(b, NOW);
    let granted: Vec<TicketId> = balancer.grants(NOW).into_iter().map(|(ticket, _)| ticket).collect();
    assert_eq!(granted, [large, small], "in their order, and what is left over is not kept any more");
}

#[test]
fn small_ones_go_on_elsewhere_while_a_large_one_waits() {
    let mut balancer = Balancer::new(64, Duration::ZERO, Rng::new(5));
    balancer.apply(&sizes(&[2]));
    balancer.heard(WorkerId(0), says(8, 100));
    balancer.heard(WorkerId(1), says(8, 100));
    let held = [seat(&mut balancer, 500), seat(&mut balancer, 600)];
    let large = ticket(&mut balancer, 1000);
    assert!(balancer.grants(NOW).is_empty());
    let near = held[0].worker;
    for _ in 0..4 {
        let small = ticket(&mut balancer, 100);
        let granted = balancer.grants(NOW);
        assert_eq!((granted.len(), granted[0].0), (1, small));
        assert_ne!(place(&granted[0].1).unwrap().0, near.0, "the worker with more room is kept");
    }
    balancer.release(held[0], NOW);
    let granted = balancer.grants(NOW);
    assert_eq!((granted[0].0, place(&granted[0].1).unwrap().0), (large, near.0));
}

#[test]
fn the_load_is_what_workers_say_and_what_has_begun_since() {
    let mut balancer = one(8, 100);
    balancer.heard(WorkerId(0), WorkerStats { running: 3, waiting: 2, slots_used: 3, kv_used: 40, ..says(8, 100) });
    seat(&mut balancer, 10);
    let load = balancer.load(NOW);
    // One began since the status: that this router knows itself.
    assert_eq!((load.running, load.waiting, load.slots_used, load.slots_total), (4, 2, 3, 8));
    assert_eq!((load.kv_used, load.kv_total, load.reachable, load.out), (40, 100, 1, 0));
    balancer.lost(WorkerId(0));
    assert_eq!(balancer.load(NOW), Load::default());
}

#[test]
fn garbage_in_a_status_overflows_nothing() {
    let most = WorkerStats {
        running: u32::MAX,
        waiting: u32::MAX,
        slots_used: u32::MAX,
        slots_total: u32::MAX,
        kv_used: u32::MAX,
        kv_waiting: u32::MAX,
        kv_total: u32::MAX,
        kv_block_tokens: u32::MAX,
        ..stats(Phase::Ready, 1)
    };
    let mut balancer = Balancer::new(64, Duration::ZERO, Rng::new(5));
    balancer.apply(&sizes(&[2]));
    balancer.heard(WorkerId(0), most);
    balancer.heard(WorkerId(1), WorkerStats { kv_block_tokens: 1, ..most });
    assert!(matches!(ask(&mut balancer, u32::MAX), Entry::Queued(_)));
    balancer.heard(WorkerId(0), WorkerStats { running: 0, waiting: 0, slots_used: 0, kv_used: 0, kv_waiting: 0, ..most });
    assert_eq!(balancer.grants(NOW).len(), 1);
    balancer.heard(WorkerId(0), most);
    assert_eq!(balancer.load(NOW).running, 2 * u64::from(u32::MAX));
}

/// One step of a history over two or three workers.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A request of so many tokens comes.
    Come(u32),
    /// One of those that run ends.
    End(usize),
    /// One that waits goes away.
    Leave(usize),
    /// A worker says that others have so many sequences and blocks there.
    Say(u64, u32, u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => prop_oneof![1u32..60, 300u32..400].prop_map(Act::Come),
        3 => (0usize..64).prop_map(Act::End),
        1 => (0usize..64).prop_map(Act::Leave),
        1 => (0u64..3, 0u32..4, 0u32..30).prop_map(|(worker, seats, blocks)| Act::Say(worker, seats, blocks)),
    ];
    prop::collection::vec(act, 1..120)
}

/// The balancer, and what the test knows.
struct Book {
    balancer: Balancer,
    workers: u64,
    running: Vec<(Seat, u32)>,
    /// In their order.
    waiting: Vec<(TicketId, u32)>,
}

impl Book {
    fn new(workers: u64) -> Self {
        let mut balancer = Balancer::new(1000, Duration::ZERO, Rng::new(5));
        balancer.apply(&sizes(&[usize::try_from(workers).unwrap()]));
        (0..workers).for_each(|id| balancer.heard(WorkerId(id), says(4, 40)));
        Self { balancer, workers, running: Vec::new(), waiting: Vec::new() }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Come(tokens) => match self.balancer.enter(Request::new(tokens), false, NOW) {
                Entry::Run(seat, _) => {
                    assert!(self.waiting.is_empty(), "it overtook those who wait");
                    self.running.push((seat, tokens));
                }
                Entry::Queued(ticket) => self.waiting.push((ticket, tokens)),
                Entry::Refused(reason) => panic!("{tokens} fit an empty worker: {reason:?}"),
            },
            Act::End(index) if !self.running.is_empty() => {
                let (seat, _) = self.running.swap_remove(index % self.running.len());
                self.balancer.release(seat, NOW);
            }
            Act::Leave(index) if !self.waiting.is_empty() => {
                let (ticket, _) = self.waiting.remove(index % self.waiting.len());
                self.balancer.leave(ticket);
            }
            Act::Say(worker, seats, blocks) if worker < self.workers => {
                let (own, own_blocks) = self.own(worker);
                let running = own + seats;
                let kv_used = own_blocks + blocks;
                self.balancer.heard(WorkerId(worker), WorkerStats { running, slots_used: running, kv_used, ..says(4, 40) });
            }
            Act::End(_) | Act::Leave(_) | Act::Say(..) => {}
        }
    }

    /// Own sequences and their blocks on a worker.
    fn own(&self, worker: u64) -> (u32, u32) {
        let on = self.running.iter().filter(|(seat, _)| seat.worker.0 == worker);
        on.fold((0, 0), |(seats, blocks), (_, tokens)| (seats + 1, blocks + tokens.div_ceil(10)))
    }

    fn settle(&mut self) {
        let before = self.balancer.table.candidates(NOW);
        let granted = self.balancer.grants(NOW);
        self.check_order(before, &granted);
        for (ticket, entry) in granted {
            let place = self.waiting.iter().position(|(waiting, _)| *waiting == ticket).unwrap();
            let (_, tokens) = self.waiting.remove(place);
            let Entry::Run(seat, _) = entry else { panic!("{tokens} fit an empty worker") };
            self.running.push((seat, tokens));
        }
    }

    /// Goes through the queue as it was: whoever was passed had no room on the worker that was taken, and that worker was not kept for it.
    fn check_order(&self, mut workers: Vec<Candidate>, granted: &[(TicketId, Entry)]) {
        let mut passed: Vec<(Request, Option<WorkerId>)> = Vec::new();
        for (ticket, tokens) in &self.waiting {
            let request = Request::new(*tokens);
            let entry = granted.iter().find(|(granted, _)| granted == ticket);
            let Some((_, Entry::Run(seat, _))) = entry else {
                let keeps = self.balancer.queue.iter().find(|waiter| waiter.ticket == *ticket).and_then(|waiter| waiter.keeps);
                passed.push((request, keeps));
                continue;
            };
            let worker = workers.iter_mut().find(|candidate| candidate.worker == seat.worker).unwrap();
            assert!(worker.has_room(&request), "{tokens} went where there is no room: {worker:?}");
            for (other, keeps) in &passed {
                assert!(!worker.has_room(other), "{tokens} overtook {} on {worker:?}", other.tokens);
                assert_ne!(*keeps, Some(worker.worker), "{tokens} took what was kept for {}", other.tokens);
            }
            worker.slots.used += 1;
            worker.kv = Share { used: worker.kv.used + worker.blocks(*tokens), ..worker.kv };
        }
        // Nobody waits who could go: whoever is first has room nowhere.
        if let Some((first, _)) = passed.first() {
            assert!(!workers.iter().any(|worker| worker.has_room(first)), "{} waits while there is room", first.tokens);
        }
    }
}

proptest! {
    #[test]
    fn nobody_overtakes_somebody_who_could_have_used_the_same_room(workers in 1u64..4, acts in acts()) {
        let mut book = Book::new(workers);
        for act in acts {
            book.act(act);
            book.settle();
            for worker in 0..workers {
                let (seats, blocks) = book.own(worker);
                prop_assert!(seats <= 4 && blocks <= 40, "{worker} has {seats} sequences and {blocks} blocks");
            }
        }
    }

    /// Small ones keep coming, and each runs for 20 steps. A large one that needs a whole worker runs when the three before it have gone, and those that
    /// ran on its worker then.
    #[test]
    fn a_large_one_waits_for_those_before_it_only(workers in 1u64..4, sizes in prop::collection::vec(1u32..90, 400)) {
        let mut book = Book::new(workers);
        let mut ends = VecDeque::new();
        let (mut large, mut waited) = (None, 0);
        for (step, tokens) in sizes.into_iter().enumerate() {
            while ends.front().is_some_and(|(end, _)| *end <= step) {
                let Some((_, seat)) = ends.pop_front() else { break };
                book.running.retain(|(running, _)| *running != seat);
                book.balancer.release(seat, NOW);
            }
            if step == 60 {
                book.act(Act::Come(400));
                large = book.waiting.last().map(|(ticket, _)| *ticket);
            } else if book.waiting.len() < 3 {
                book.act(Act::Come(tokens));
            }
            book.settle();
            waited += usize::from(large.is_some_and(|large| book.waiting.iter().any(|(ticket, _)| *ticket == large)));
            for (seat, _) in &book.running {
                if !ends.iter().any(|(_, known)| known == seat) {
                    ends.push_back((step + 20, *seat));
                }
            }
        }
        prop_assert!(large.is_some() && waited <= 20 * 4, "it waited for {waited} steps");
    }
}
