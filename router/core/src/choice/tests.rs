//! The choice alone: load, room, standing, what waits and what is refused.
use super::*;

const LATER: Turn<'_> = Turn { kept: &[], keeps: None, waited: Duration::ZERO, now: Duration::from_secs(9) };

fn candidate(worker: u64, used: u64, slots: u64) -> Candidate {
    Candidate { worker: WorkerId(worker), slots: Share { used, total: slots }, ..Candidate::default() }
}

/// Slots for eight, and so many of 100 KV blocks of 16 tokens in use.
fn with_kv(worker: u64, used: u64) -> Candidate {
    Candidate { kv: Share { used, total: 100 }, block_tokens: 16, ..candidate(worker, 0, 8) }
}

fn standing(worker: u64, used: u64, standing: Standing) -> Candidate {
    Candidate { standing, ..candidate(worker, used, 4) }
}

fn decide_for(candidates: &[Candidate], request: &Request) -> (Choice, Reason) {
    let decision = choose(candidates, request, LATER, &mut Rng::new(3));
    (decision.choice, decision.reason)
}

fn avoiding(avoid: &[u64]) -> Request {
    Request { avoid: avoid.iter().map(|id| WorkerId(*id)).collect(), ..Request::default() }
}

fn decide(candidates: &[Candidate], avoid: &[u64]) -> (Choice, Reason) {
    decide_for(candidates, &avoiding(avoid))
}

fn send(worker: u64) -> Choice {
    Choice::Send(WorkerId(worker))
}

fn wait(keeps: u64) -> (Choice, Reason) {
    (Choice::Wait(Some(WorkerId(keeps))), Reason::AllFull)
}

#[test]
fn the_least_loaded_worker_takes_it() {
    let two = [candidate(0, 2, 8), candidate(1, 1, 8)];
    assert_eq!(decide(&two, &[]), (send(1), Reason::LeastLoaded));
    assert_eq!(decide(&two, &[1]), (send(0), Reason::OnlyOne));
    assert_eq!(decide(&two, &[0, 1]), (Choice::Refuse, Reason::AllFailed));
}

#[test]
fn two_workers_at_most_touch_a_request() {
    let four = [0, 1, 2, 3].map(|worker| candidate(worker, 0, 8));
    assert!(matches!(decide(&four, &[3]).0, Choice::Send(_)));
    assert_eq!(decide(&four, &[0, 1]), (Choice::Refuse, Reason::AllFailed));
}

#[test]
fn load_is_a_share_of_the_slots() {
    assert_eq!(decide(&[candidate(0, 2, 4), candidate(1, 3, 16)], &[]).0, send(1));
    assert_eq!(decide(&[candidate(0, 0, 4), candidate(1, 0, 16)], &[]).0, send(1), "the larger of two that are idle");
    assert_eq!(decide(&[candidate(0, 9, 0)], &[]).0, send(0), "a worker that does not say has room");
}

#[test]
fn load_is_slots_or_kv_whichever_is_fuller() {
    let slots_are_fuller = Candidate { slots: Share { used: 4, total: 8 }, ..with_kv(0, 10) };
    assert_eq!(decide(&[slots_are_fuller.clone(), with_kv(1, 50)], &[]).0, send(1));
    assert_eq!(decide(&[slots_are_fuller, with_kv(1, 70)], &[]).0, send(0));
}

#[test]
fn full_or_refusing_workers_make_it_wait() {
    assert_eq!(decide(&[candidate(0, 2, 2)], &[]), wait(0));
    let refusing = Candidate { refusing: true, ..candidate(0, 0, 2) };
    assert_eq!(decide(&[refusing], &[]), wait(0));
    assert_eq!(decide(&[], &[]), (Choice::Refuse, Reason::NoneReady));
}

#[test]
fn a_request_needs_its_kv_too() {
    let workers = [with_kv(0, 90), with_kv(1, 95)];
    assert_eq!(decide_for(&workers, &Request::new(160)), (send(0), Reason::OnlyOne), "ten blocks are free there");
    assert_eq!(decide_for(&workers, &Request::new(161)), wait(0), "eleven are nowhere; most is free on the first");
    assert_eq!(decide_for(&workers, &Request::new(1600)).0, Choice::Wait(Some(WorkerId(0))), "it may have a worker to itself");
    assert_eq!(decide_for(&workers, &Request::new(1601)), (Choice::Refuse, Reason::TooLarge));
    let growing = |given| decide_for(&workers, &Request::growing(1_000_000, given));
    assert_eq!(growing(159), (send(0), Reason::OnlyOne), "it begins with what is given and one token more, and grows");
    assert_eq!(growing(160), wait(0));
    let silent = Candidate { block_tokens: 0, ..with_kv(2, 0) };
    assert_eq!(decide_for(&[silent], &Request::new(u32::MAX)).0, send(2), "a worker that does not say refuses for itself");
    let short = Candidate { max_context: 100, ..candidate(0, 0, 8) };
    assert_eq!(decide_for(std::slice::from_ref(&short), &Request::new(101)), (Choice::Refuse, Reason::TooLarge));
    assert_eq!(decide_for(&[short, candidate(1, 7, 8)], &Request::new(101)).0, send(1));
}

#[test]
fn what_is_kept_for_others_is_no_room() {
    let workers = [with_kv(0, 0), with_kv(1, 50)];
    let (first, both) = ([WorkerId(0)], [WorkerId(0), WorkerId(1)]);
    let decide = |by_others: &[WorkerId], own| {
        choose(&workers, &Request::new(16), Turn { kept: by_others, keeps: own, ..LATER }, &mut Rng::new(3)).choice
    };
    assert_eq!(decide(&first, None), send(1));
    assert_eq!(decide(&both, None), Choice::Wait(None));
    let large = |own| choose(&workers, &Request::new(1600), Turn { kept: &first, keeps: own, ..LATER }, &mut Rng::new(3)).choice;
    assert_eq!(large(None), Choice::Wait(Some(WorkerId(1))));
    assert_eq!(large(Some(WorkerId(0))), Choice::Wait(Some(WorkerId(1))), "what an earlier one keeps now");
    let full = [with_kv(0, 99), with_kv(1, 50)];
    let stays = choose(&full, &Request::new(1600), Turn { keeps: Some(WorkerId(0)), ..LATER }, &mut Rng::new(3));
    assert_eq!(stays.choice, Choice::Wait(Some(WorkerId(0))), "it has waited for this one");
}

#[test]
fn after_a_while_a_large_request_waits_in_a_worker_that_others_use() {
    let full = Candidate { shared: true, ..with_kv(0, 90) };
    let long = Turn { waited: HANDED_OVER, ..LATER };
    let decide = |worker: &Candidate, turn| choose(std::slice::from_ref(worker), &Request::new(300), turn, &mut Rng::new(3));
    assert_eq!(decide(&full, LATER).choice, Choice::Wait(Some(WorkerId(0))));
    assert_eq!(decide(&full, long), Decision { choice: send(0), reason: Reason::WaitsThere });
    let others = [
        Candidate { shared: false, ..full.clone() },
        Candidate { queues: true, ..full.clone() },
        Candidate { refusing: true, ..full.clone() },
        Candidate { slots: Share { used: 8, total: 8 }, ..full.clone() },
        Candidate { kv: Share { used: 101, total: 100 }, ..full.clone() },
    ];
    for worker in others {
        assert_eq!(decide(&worker, long).choice, Choice::Wait(Some(WorkerId(0))), "{worker:?}");
    }
}

#[test]
fn a_worker_that_is_due_is_tried_first_by_those_who_can_try_again() {
    let workers = [standing(0, 0, Standing::Good), standing(1, 3, Standing::Due), standing(2, 0, Standing::Out)];
    assert_eq!(decide(&workers, &[]), (send(1), Reason::Trial));
    assert_eq!(decide(&workers, &[2]), (send(0), Reason::OnlyOne));
    let full = [standing(0, 0, Standing::Good), standing(1, 4, Standing::Due)];
    assert_eq!(decide(&full, &[]).0, send(0));
}

#[test]
fn a_doubted_worker_takes_what_others_have_no_room_for() {
    let doubted = standing(1, 0, Standing::Doubted);
    assert_eq!(decide(&[standing(0, 3, Standing::Good), doubted.clone()], &[]).0, send(0));
    let full = standing(0, 4, Standing::Good);
    assert_eq!(decide(&[full.clone(), doubted.clone()], &[]).0, send(1));
    let hushed = Candidate { hushed: true, ..doubted.clone() };
    assert_eq!(decide(&[full.clone(), hushed.clone()], &[]), wait(0), "one at a time");
    assert_eq!(decide(&[full, doubted, candidate(2, 4, 4)], &[2]).0, Choice::Wait(Some(WorkerId(0))), "not its last attempt");
    assert_eq!(decide(&[hushed, candidate(2, 0, 4)], &[2]).0, send(1), "but rather than none");
}

#[test]
fn a_retry_goes_where_the_last_request_went_well() {
    let proven = Candidate { proven: true, ..candidate(1, 3, 4) };
    let workers = [candidate(0, 0, 4), proven, candidate(2, 0, 4)];
    assert_eq!(decide(&workers, &[2]).0, send(1));
    assert_ne!(decide(&workers, &[]).0, send(1), "a first attempt goes by load");
}

#[test]
fn a_retry_waits_a_moment_rather_than_go_where_nothing_is_known() {
    let unknown = candidate(0, 0, 4);
    let retry = Request { failed_at: LATER.now, ..avoiding(&[2]) };
    let decide = |now| choose(std::slice::from_ref(&unknown), &retry, Turn { now, ..LATER }, &mut Rng::new(3)).choice;
    assert_eq!(decide(LATER.now), Choice::Wait(Some(WorkerId(0))));
    assert_eq!(decide(LATER.now + SETTLES), send(0));
    let proven = [Candidate { proven: true, ..unknown.clone() }];
    assert_eq!(decide_for(&proven, &retry).0, send(0));
}

#[test]
fn where_all_are_out_all_are_in() {
    let workers = [standing(0, 1, Standing::Out), standing(1, 2, Standing::Out)];
    assert_eq!(decide(&workers, &[]), (send(0), Reason::Trial));
    assert_eq!(decide(&workers, &[0]), (send(1), Reason::Trial));
    let with_good = [standing(0, 1, Standing::Out), standing(1, 4, Standing::Good)];
    assert_eq!(decide(&with_good, &[]), wait(1));
}

#[test]
fn ties_are_spread() {
    let three = [candidate(0, 1, 4), candidate(1, 1, 4), candidate(2, 1, 4)];
    let mut rng = Rng::new(11);
    let mut seen = [0u32; 3];
    for _ in 0..300 {
        let decision = choose(&three, &Request::default(), LATER, &mut rng);
        assert_eq!(decision.reason, Reason::Drawn);
        if let Choice::Send(worker) = decision.choice {
            seen[usize::try_from(worker.0).unwrap()] += 1;
        }
    }
    assert!(seen.iter().all(|n| *n > 60), "{seen:?}");
}
