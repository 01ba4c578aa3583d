//! What is told of attempts, and what follows: whom to try next, who is out, who tries, who is back.
use super::*;
use crate::standing::Standing;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A balancer over so many workers with eight slots each, and its clock.
struct Ward {
    balancer: Balancer,
    now: Duration,
}

impl Ward {
    fn new(workers: u64) -> Self {
        let mut balancer = balancer(&[usize::try_from(workers).unwrap()]);
        (0..workers).for_each(|id| balancer.heard(WorkerId(id), stats(Phase::Ready, 8)));
        Self { balancer, now: NOW }
    }

    fn send(&mut self, request: &Request, urgent: bool) -> Option<Seat> {
        match self.balancer.enter(request.clone(), urgent, self.now) {
            Entry::Run(seat, _) => Some(seat),
            Entry::Queued(ticket) => {
                self.balancer.leave(ticket);
                None
            }
            Entry::Refused(_) => None,
        }
    }

    /// A fresh request that goes to this worker, because the others are kept busy until it does.
    fn send_to(&mut self, worker: u64) -> Seat {
        let mut others = Vec::new();
        while others.len() < 20 {
            let seat = self.send(&Request::default(), false).unwrap();
            if seat.worker.0 == worker {
                others.into_iter().for_each(|seat| self.balancer.release(seat, self.now));
                return seat;
            }
            others.push(seat);
        }
        panic!("worker {worker} gets nothing");
    }

    fn tell(&mut self, seat: Seat, request: &mut Request, outcome: Outcome) -> Next {
        self.balancer.report(seat, request, outcome, self.now)
    }

    /// A request that this worker fails, and another one serves.
    fn fails_once(&mut self, worker: u64) {
        let mut request = Request::default();
        let seat = self.send_to(worker);
        self.fails(seat, &mut request);
        self.now += 60 * MS;
        let other = self.send(&request, true).unwrap();
        assert_ne!(other.worker, seat.worker);
        self.serves(other, &mut request);
        self.now += SECOND * 11;
    }

    fn fails(&mut self, seat: Seat, request: &mut Request) {
        assert_eq!(self.tell(seat, request, Outcome::Failed), Next::Again);
        self.balancer.release(seat, self.now);
    }

    fn serves(&mut self, seat: Seat, request: &mut Request) {
        assert_eq!(self.tell(seat, request, Outcome::Served), Next::Settled);
        assert_eq!(self.tell(seat, request, Outcome::Whole), Next::Settled);
        self.balancer.release(seat, self.now);
    }

    fn standing(&self, worker: usize) -> Standing {
        self.balancer.groups(self.now).next().unwrap().pods[worker].standing
    }

    /// Puts worker 0 out; it has failed three requests in a row.
    fn puts_out(&mut self) {
        (0..2).for_each(|_| self.fails_once(0));
        assert_eq!(self.standing(0), Standing::Good, "doubt has passed, and it is not out yet");
        self.fails_once(0);
        // `fails_once` lets time pass: back to when it happened.
        self.now -= SECOND * 11;
        assert_eq!(self.standing(0), Standing::Out);
    }
}

#[test]
fn a_failure_is_tried_elsewhere_once_and_then_given_up() {
    let mut ward = Ward::new(3);
    let mut request = Request::default();
    let first = ward.send(&request, false).unwrap();
    ward.fails(first, &mut request);
    assert_eq!((request.avoid.as_slice(), request.failed_at), (&[first.worker][..], NOW));
    ward.now += 60 * MS;
    let second = ward.send(&request, true).unwrap();
    assert_ne!(second.worker, first.worker);
    assert_eq!(ward.tell(second, &mut request, Outcome::Stalled), Next::GiveUp(Reason::AllFailed));
}

#[test]
fn one_failure_alone_only_raises_doubt() {
    let mut ward = Ward::new(2);
    let seat = ward.send_to(0);
    ward.fails(seat, &mut Request::default());
    assert_eq!((ward.standing(0), ward.standing(1)), (Standing::Doubted, Standing::Good));
    for _ in 0..8 {
        assert_eq!(ward.send(&Request::default(), false).unwrap().worker.0, 1, "the other one has room");
    }
    assert!(ward.send(&Request::default(), false).is_none(), "not so soon after its failure");
    ward.now += 250 * MS;
    let probe = ward.send(&Request::default(), false).unwrap();
    assert_eq!(probe.worker.0, 0);
    assert!(ward.send(&Request::default(), false).is_none(), "one at a time");
    ward.serves(probe, &mut Request::default());
    assert_eq!(ward.standing(0), Standing::Good);
    let again = ward.send(&Request::default(), false).unwrap();
    ward.fails(again, &mut Request::default());
    ward.now += SECOND * 10;
    assert_eq!(ward.standing(0), Standing::Good, "doubt ends by itself");
}

#[test]
fn what_two_workers_fail_is_the_requests_fault() {
    let mut ward = Ward::new(2);
    for _ in 0..20 {
        let mut request = Request::default();
        let first = ward.send(&request, false).unwrap();
        ward.fails(first, &mut request);
        ward.now += 60 * MS;
        let second = ward.send(&request, true).unwrap();
        assert_eq!(ward.tell(second, &mut request, Outcome::Failed), Next::GiveUp(Reason::AllFailed));
        ward.balancer.release(second, ward.now);
        ward.now += SECOND;
    }
    assert_eq!((ward.standing(0), ward.standing(1)), (Standing::Doubted, Standing::Doubted));
}

#[test]
fn after_its_pause_exactly_one_request_tries_a_worker() {
    let mut ward = Ward::new(3);
    ward.puts_out();
    assert_ne!(ward.send(&Request::default(), false).unwrap().worker.0, 0);
    ward.now += SECOND;
    assert_eq!(ward.standing(0), Standing::Due);
    let trial = ward.send(&Request::default(), false).unwrap();
    assert_eq!((trial.worker.0, ward.standing(0)), (0, Standing::Out));
    for _ in 0..10 {
        assert_ne!(ward.send(&Request::default(), false).unwrap().worker.0, 0, "one, not two");
    }
    ward.balancer.release(trial, ward.now);
    assert_eq!(ward.standing(0), Standing::Due, "its client went away: the next one tries");
    let trial = ward.send(&Request::default(), false).unwrap();
    assert_eq!(trial.worker.0, 0);
    assert_eq!(ward.tell(trial, &mut Request::default(), Outcome::Served), Next::Settled);
    assert_eq!(ward.standing(0), Standing::Good);
    ward.balancer.release(trial, ward.now);
    assert_eq!(ward.standing(0), Standing::Good);
}

#[test]
fn what_an_older_request_gets_does_not_bring_a_worker_back() {
    let mut ward = Ward::new(2);
    let older = ward.send_to(0);
    ward.puts_out();
    assert_eq!(ward.tell(older, &mut Request::default(), Outcome::Served), Next::Settled);
    assert_eq!(ward.tell(older, &mut Request::default(), Outcome::Whole), Next::Settled);
    assert_eq!(ward.standing(0), Standing::Out);
    ward.now += SECOND;
    assert_eq!(ward.standing(0), Standing::Due, "its pause is no longer either");
}

#[test]
fn pauses_double_up_to_a_minute_while_trials_fail() {
    let mut ward = Ward::new(2);
    ward.puts_out();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let from = ward.now;
        while ward.standing(0) == Standing::Out {
            ward.now += 10 * MS;
        }
        pauses.push((ward.now - from).as_secs_f64().round() as u64);
        let mut request = Request::default();
        let trial = ward.send(&request, false).unwrap();
        assert_eq!(trial.worker.0, 0);
        ward.fails(trial, &mut request);
        let other = ward.send(&request, true).unwrap();
        ward.serves(other, &mut request);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn a_trial_that_nobody_makes_good_lengthens_nothing() {
    let mut ward = Ward::new(2);
    ward.puts_out();
    for _ in 0..6 {
        ward.now += SECOND;
        assert_eq!(ward.standing(0), Standing::Due);
        let mut request = Request::default();
        let trial = ward.send(&request, false).unwrap();
        ward.fails(trial, &mut request);
        let other = ward.send(&request, true).unwrap();
        assert_eq!(ward.tell(other, &mut request, Outcome::Failed), Next::GiveUp(Reason::AllFailed));
        ward.balancer.release(other, ward.now);
    }
}

#[test]
fn the_last_worker_is_never_put_out() {
    let mut ward = Ward::new(2);
    ward.puts_out();
    // The other one fails now; the one that is out serves.
    for _ in 0..5 {
        let mut request = Request::default();
        let seat = ward.send(&request, false).unwrap();
        if seat.worker.0 == 1 {
            ward.fails(seat, &mut request);
            let rescue = ward.send(&request, true).unwrap();
            assert_eq!(rescue.worker.0, 0, "better than nobody");
            ward.serves(rescue, &mut request);
        } else {
            ward.serves(seat, &mut request);
        }
        assert!(ward.standing(0) != Standing::Out || ward.standing(1) != Standing::Out);
        ward.now += 20 * MS;
    }
    assert_eq!(ward.standing(0), Standing::Good, "it came back by what it served");
}

#[test]
fn a_worker_alone_is_not_put_out_whatever_it_breaks() {
    let rows: [Vec<String>; 2] = [vec!["a:1".to_owned()], vec!["b:1".to_owned()]];
    let mut topology = Topology::fixed(&rows);
    topology.groups.get_mut("0001").unwrap().revision = Revision::new("2");
    let mut ward = Ward { balancer: Balancer::new(9, Duration::ZERO, Rng::new(5)), now: NOW };
    ward.balancer.apply(&topology);
    (0..2).for_each(|id| ward.balancer.heard(WorkerId(id), stats(Phase::Ready, 8)));
    for _ in 0..20 {
        let seat = ward.send_to(0);
        ward.tell(seat, &mut Request::default(), Outcome::Served);
        ward.tell(seat, &mut Request::default(), Outcome::Broken);
        ward.balancer.release(seat, ward.now);
        ward.now += 300 * MS;
    }
    assert_eq!(ward.standing(0), Standing::Doubted, "the other one is of another revision: whom this one has would have nobody");
}

#[test]
fn what_it_has_served_since_outweighs_an_older_failure() {
    let mut ward = Ward::new(2);
    let mut failed = Vec::new();
    for _ in 0..3 {
        failed.push((ward.send_to(0), Request::default()));
    }
    for (seat, request) in &mut failed {
        ward.fails(*seat, request);
    }
    ward.now += SECOND * 11;
    let seat = ward.send_to(0);
    ward.serves(seat, &mut Request::default());
    for (_, request) in &mut failed {
        let other = ward.send(request, true).unwrap();
        ward.serves(other, request);
    }
    assert_eq!(ward.standing(0), Standing::Good);
}

#[test]
fn refusals_and_clients_that_go_say_nothing_of_a_worker() {
    let mut ward = Ward::new(2);
    for outcome in [Outcome::Full, Outcome::NotReady] {
        for _ in 0..20 {
            let mut request = Request::default();
            let seat = ward.send(&request, false).unwrap();
            assert_eq!(ward.tell(seat, &mut request, outcome), Next::Again);
            assert!(request.avoid.is_empty(), "it may come back there");
            ward.balancer.release(seat, ward.now);
            ward.now += SECOND;
        }
    }
    for _ in 0..20 {
        let seat = ward.send(&Request::default(), false).unwrap();
        ward.balancer.release(seat, ward.now);
    }
    assert_eq!((ward.standing(0), ward.standing(1)), (Standing::Good, Standing::Good));
}

#[test]
fn one_request_without_room_keeps_no_other_out() {
    let mut ward = Ward::new(1);
    let mut hog = Request::default();
    for _ in 0..9 {
        let seat = ward.send(&hog, false).unwrap();
        ward.tell(seat, &mut hog, Outcome::Full);
        ward.balancer.release(seat, ward.now);
        assert!(ward.send(&hog, false).is_none(), "it does not ask again at once");
        let other = ward.send(&Request::default(), false).expect("others fit still");
        ward.serves(other, &mut Request::default());
        ward.balancer.heard(WorkerId(0), stats(Phase::Ready, 8));
        ward.now += SECOND;
    }
    for place in 0..3 {
        let mut other = Request::default();
        let seat = ward.send(&other, false).unwrap_or_else(|| panic!("{place}"));
        ward.tell(seat, &mut other, Outcome::Full);
        ward.balancer.release(seat, ward.now);
    }
    assert!(ward.send(&Request::default(), false).is_none(), "what three have found is known");
    ward.balancer.heard(WorkerId(0), stats(Phase::Ready, 8));
    let mut other = Request::default();
    let seat = ward.send(&other, false).expect("a status is news");
    ward.tell(seat, &mut other, Outcome::NotReady);
    ward.balancer.release(seat, ward.now);
    assert!(ward.send(&Request::default(), false).is_none(), "one that takes none takes none");
}

#[test]
fn the_budget_bounds_retries_but_not_those_of_the_lost_and_of_trials() {
    let mut ward = Ward::new(2);
    let mut fail = |outcome| {
        let mut request = Request::default();
        let seat = ward.send(&request, false).unwrap();
        let next = ward.tell(seat, &mut request, outcome);
        ward.balancer.release(seat, ward.now);
        next
    };
    let granted = (0..300).filter(|_| fail(Outcome::Failed) == Next::Again).count();
    // A tenth of the requests that came so far, each time: at most a fifth of 300 and the floor.
    assert!((100..=160).contains(&granted), "{granted}");
    assert_eq!(fail(Outcome::Stalled), Next::GiveUp(Reason::NoRetries));
    assert_eq!(fail(Outcome::Lost), Next::Again, "nobody is there to be overloaded");
}

#[test]
fn answers_that_break_double_the_doubt_until_one_is_whole() {
    let mut ward = Ward::new(2);
    let mut doubts = Vec::new();
    for _ in 0..5 {
        let seat = ward.send_to(0);
        ward.tell(seat, &mut Request::default(), Outcome::Served);
        ward.tell(seat, &mut Request::default(), Outcome::Broken);
        ward.balancer.release(seat, ward.now);
        let from = ward.now;
        while ward.standing(0) == Standing::Doubted {
            ward.now += 100 * MS;
        }
        doubts.push((ward.now - from).as_secs());
    }
    assert_eq!(doubts, [10, 20, 40, 60, 60]);
    let seat = ward.send_to(0);
    ward.serves(seat, &mut Request::default());
    let seat = ward.send_to(0);
    ward.tell(seat, &mut Request::default(), Outcome::Broken);
    ward.now += SECOND * 10;
    assert_eq!(ward.standing(0), Standing::Good);
}

#[test]
fn a_worker_that_breaks_all_it_has_is_put_out_and_back_when_an_answer_goes_on() {
    let mut ward = Ward::new(2);
    let seats: Vec<Seat> = (0..8).map(|_| ward.send_to(0)).collect();
    for seat in &seats {
        ward.tell(*seat, &mut Request::default(), Outcome::Served);
    }
    for seat in seats {
        ward.tell(seat, &mut Request::default(), Outcome::Broken);
        ward.balancer.release(seat, ward.now);
    }
    assert_eq!(ward.standing(0), Standing::Out);
    ward.now += SECOND;
    let trial = ward.send(&Request::default(), false).unwrap();
    ward.tell(trial, &mut Request::default(), Outcome::Served);
    ward.now += SECOND * 9;
    assert_eq!((trial.worker.0, ward.standing(0)), (0, Standing::Out), "a first token is not enough here");
    ward.tell(trial, &mut Request::default(), Outcome::Broken);
    ward.balancer.release(trial, ward.now);
    ward.now += SECOND * 2;
    assert_eq!(ward.standing(0), Standing::Due);
    let trial = ward.send(&Request::default(), false).unwrap();
    ward.tell(trial, &mut Request::default(), Outcome::Served);
    ward.now += SECOND * 10;
    assert_eq!(ward.standing(0), Standing::Good, "ten seconds of it are");
    assert!((0..4).any(|_| ward.send(&Request::default(), false).unwrap().worker.0 == 0));
}
