//! Simulations of workers that fail, stall, flap, break and come back: few requests go to them, none is lost that another worker could serve, nobody is put
//! out for a request's own fault, and never are all workers out (`sim` holds that at every step).

mod sim;

use m1_router_core::Reason;
use sim::{CLIENTS, Clients, DEADLINE, Does, Script, Seen, WELL, always, flapping, ms, run, secs, until, with_deaths};

const FAST: Does = Does::Fail(ms(2));
const CLOSED: Clients = Clients { closed: 16, rate: 0, ..CLIENTS };
const RARE: Clients = Clients { rate: 2, ..CLIENTS };
/// Bad ones of all.
const SHAPES: [(usize, usize); 6] = [(1, 2), (1, 4), (2, 4), (3, 4), (5, 8), (7, 8)];

/// Workers of which the first `bad` do as said.
fn of(bad: usize, workers: usize, does: Does) -> Vec<Script> {
    (0..workers).map(|n| always(if n < bad { does } else { WELL })).collect()
}

fn play(seed: u64, scripts: Vec<Script>, clients: Clients) -> Seen {
    run(seed, 16, scripts, clients)
}

/// Every pattern: its name, and what happened.
fn patterns(does: Does, clients: Clients, mut check: impl FnMut(&str, usize, Seen)) {
    for (bad, workers) in SHAPES {
        for seed in 0..4 {
            let name = format!("{bad} of {workers} {does:?}, {} clients, {} a second, seed {seed}", clients.closed, clients.rate);
            check(&name, bad, play(seed, of(bad, workers, does), clients));
        }
    }
}

#[test]
fn three_of_four_that_fail_fast_draw_next_to_nothing() {
    for seed in 0..50 {
        let hundred = Clients { closed: 4, rate: 0, time: secs(8), ..CLIENTS };
        let seen = play(seed, of(3, 4, FAST), hundred);
        let bad: usize = seen.bad.iter().sum();
        assert!(seen.served >= 100 && bad <= 20 && seen.unserved.len() <= 1, "seed {seed}: {bad} bad, {seen:?}");
    }
}

#[test]
fn workers_that_fail_get_few_requests_and_none_is_lost() {
    for does in [FAST, Does::Fail(ms(400)), Does::Stall] {
        for clients in [CLOSED, CLIENTS] {
            patterns(does, clients, |name, bad, seen| {
                assert!(seen.bad_share() < 0.06, "{name}: {} of the attempts, {:?}", seen.bad_share(), seen.bad);
                // Before anything is known of anybody, a request may meet two bad ones.
                let late = seen.unserved.iter().filter(|(at, _)| *at > secs(1) + DEADLINE).count();
                assert!(late == 0 && seen.unserved.len() <= 2 && seen.impatient == 0, "{name}: {:?}", seen.unserved);
                assert!(seen.ejections.iter().take(bad).all(|times| *times == 1), "{name}: {:?}", seen.ejections);
                assert!(seen.ejections.iter().skip(bad).all(|times| *times == 0), "{name}: {:?}", seen.ejections);
            });
        }
    }
}

#[test]
fn few_requests_are_enough_to_tell() {
    patterns(FAST, RARE, |name, bad, seen| {
        // Three in a row, then one at growing pauses: after 1, 2, 4, 8, 16, 32 s.
        assert!(seen.bad.iter().take(bad).all(|attempts| *attempts <= 3 + 6), "{name}: {:?}", seen.bad);
        assert!(seen.unserved.len() <= 2, "{name}: {:?}", seen.unserved);
    });
}

#[test]
fn workers_that_break_their_answers_get_few_requests() {
    for clients in [CLOSED, CLIENTS, RARE] {
        patterns(Does::Break(ms(30)), clients, |name, bad, seen| {
            // Such a request has begun: it is lost. Each worker may break what it has at once, then one after 10, 20, 40 s.
            let most = bad * (3 + 16);
            assert!(seen.unserved.len() <= most, "{name}: {} lost, {:?}", seen.unserved.len(), seen.bad);
            assert!(seen.ejections.iter().skip(bad).all(|times| *times == 0), "{name}: {:?}", seen.ejections);
        });
    }
}

#[test]
fn a_worker_that_flaps_loses_nothing() {
    for does in [FAST, Does::Stall] {
        for (span, seed) in [(ms(500), 1), (secs(2), 2), (secs(5), 3), (secs(12), 4)] {
            let scripts = vec![flapping(span, WELL, does), always(WELL), always(WELL)];
            let seen = play(seed, scripts, Clients { time: secs(120), ..CLIENTS });
            assert_eq!((seen.unserved.len(), seen.impatient), (0, 0), "{does:?} every {span:?}");
            assert!(seen.bad_share() < 0.06, "{does:?} every {span:?}: {}", seen.bad_share());
        }
    }
}

#[test]
fn a_worker_that_is_well_again_is_back_within_its_longest_pause() {
    for (ill, seed) in [(3, 1), (20, 2), (100, 3), (300, 4)] {
        let scripts = vec![until(secs(ill), FAST, WELL), always(WELL)];
        let seen = play(seed, scripts, Clients { time: secs(ill + 90), ..CLIENTS });
        let back = seen.back[0].unwrap_or_default();
        assert!(back >= secs(ill) && back <= secs(ill + 61), "ill for {ill} s, back at {back:?}");
        let after = back.as_secs() + 1;
        let (first, second) = (seen.served_in(0, after, ill + 90), seen.served_in(1, after, ill + 90));
        assert!(first * 3 > second, "it has its share again: {first} beside {second}");
        assert_eq!(seen.unserved, [], "ill for {ill} s");
    }
}

#[test]
fn when_all_fail_they_are_all_back_at_once() {
    for (does, seed) in [(FAST, 1), (Does::Fail(ms(300)), 2), (Does::Stall, 3)] {
        let scripts = (0..4).map(|_| until(secs(30), does, WELL)).collect();
        let seen = play(seed, scripts, CLIENTS);
        // Nobody serves what another one failed, but for the first to heal.
        assert!(seen.back.iter().flatten().all(|back| *back > secs(30)), "{does:?}: {:?}", seen.back);
        let healed = secs(30) + DEADLINE + DEADLINE;
        assert!(seen.unserved.iter().all(|(at, _)| *at <= healed), "{does:?}: {:?}", seen.unserved.last());
        for worker in 0..4 {
            assert!(seen.served_in(worker, 35, 60) > 100, "{does:?}: {worker} serves {}", seen.served_in(worker, 35, 60));
        }
    }
}

#[test]
fn retries_are_bounded_when_all_fail() {
    let clients = Clients { rate: 400, time: secs(20), ..CLIENTS };
    let seen = play(7, of(4, 4, FAST), clients);
    let (requests, attempts) = (seen.unserved.len(), seen.attempts.iter().sum::<usize>());
    assert!(requests > 7000 && attempts < requests * 125 / 100 + 100, "{attempts} attempts for {requests} requests");
    assert!(seen.unserved.iter().any(|(_, reason)| *reason == Reason::NoRetries));
}

#[test]
fn requests_that_kill_what_they_touch_put_nobody_out() {
    for (poisoned, seed) in [(FAST, 1), (Does::Fail(ms(300)), 2), (Does::Stall, 3)] {
        for poison in [2, 10, 50, 100] {
            let seen = play(seed, of(0, 4, FAST), Clients { poison, poisoned, ..CLIENTS });
            let name = format!("{poison} % that {poisoned:?}");
            assert_eq!(seen.ejections, [0; 4], "{name}");
            assert_eq!((seen.unserved.len(), seen.impatient), (0, 0), "{name}");
            assert!(seen.poison > 0, "{name}");
            // Each visits two at most.
            let attempts: usize = seen.attempts.iter().sum();
            assert!(attempts <= seen.served + 2 * seen.poison, "{name}: {attempts}");
        }
    }
}

#[test]
fn poison_beside_a_bad_worker_still_puts_only_that_one_out() {
    for seed in 0..8 {
        let seen = play(seed, of(1, 4, FAST), Clients { poison: 10, ..CLIENTS });
        assert!(seen.ejections[0] >= 1 && seen.ejections[1..] == [0; 3], "seed {seed}: {:?}", seen.ejections);
        assert!(seen.unserved.len() <= 2 && seen.bad_share() < 0.02, "seed {seed}: {:?} {}", seen.unserved, seen.bad_share());
    }
}

#[test]
fn answers_that_break_everywhere_put_nobody_out() {
    for poison in [20, 60, 80] {
        let clients = Clients { poison, poisoned: Does::Break(ms(30)), ..CLIENTS };
        for seed in 0..4 {
            let seen = play(seed, of(0, 4, FAST), clients);
            assert!(seen.ejections.iter().sum::<usize>() <= 2, "{poison} %, seed {seed}: {:?}", seen.ejections);
            assert_eq!(seen.unserved.len(), 0, "{poison} %, seed {seed}");
        }
    }
}

#[test]
fn a_killed_worker_of_two_fails_no_request_that_has_not_begun() {
    // Long prompts: of a thousand requests half are on it and have not begun, many more than the budget allows retries.
    let scripts = || (0..2).map(|_| always(Does::Serve(ms(1500), ms(1600)))).collect();
    for seed in 0..6 {
        let clients = Clients { closed: 1000, rate: 0, time: secs(12), ..CLIENTS };
        for died in [ms(700 + 111 * seed), ms(5300 + 111 * seed)] {
            let seen = with_deaths(seed, 600, scripts(), clients, &[(seed % 2, died)]);
            let (lost, unserved) = (seen.bad.iter().sum::<usize>(), &seen.unserved);
            // Those that had begun broke when it died; all others were answered.
            assert!(
                unserved.len() < 150 && seen.impatient == 0,
                "seed {seed}: {}, {:?}",
                unserved.len(),
                &unserved[..unserved.len().min(9)]
            );
            assert!(unserved.iter().all(|(at, _)| at.abs_diff(died) < ms(1)), "seed {seed}: those it had, when it died");
            assert!(lost < 100, "seed {seed}: {lost} were sent to it after that");
        }
    }
}
