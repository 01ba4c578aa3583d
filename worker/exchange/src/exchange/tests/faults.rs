//! Own steps while links break, peers stand still or lack what the table says: nothing is lost, nothing counts twice.

use super::*;

/// Experts 2 and 3 together at pod 1, once more apart at pods 2 and 3.
const APART: [(u16, &[u16]); 3] = [(1, &[2, 3]), (2, &[2]), (3, &[3])];
const TWICE: [(u16, &[u16]); 2] = [(1, &[2]), (2, &[2])];
const ONCE: [(u16, &[u16]); 1] = [(1, &[2, 3])];

#[test]
fn a_broken_link_loses_its_requests_to_another_holder() {
    let mut pod = Pod::new(&TWICE);
    assert_eq!(pod.open(1, &[2, NO]), ["send p1 #100 s1: 0[2,_]"]);
    assert_eq!(pod.on(down(1)), ["send p2 #101 s1: 0[2,_]"]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["discard #100"]);
    assert_eq!(pod.on(answer(2, 101, 1)), ["accept #101 s1: 0", "complete s1"]);
}

#[test]
fn without_another_holder_the_step_parks_until_the_link_is_back() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO, 3, NO]);
    assert_eq!(pod.on(down(1)), ["parked s1: [(2), (3)]"]);
    assert_eq!(pod.on(down(1)), NOTHING);
    assert_eq!(pod.on(up(1, 1)), ["send p1 #101 s1: 0[2,_] 1[3,_]", "resumed s1"]);
    assert_eq!(pod.on(answer(1, 101, 2)), ["accept #101 s1: 0 1", "complete s1"]);
}

#[test]
fn a_replaced_link_counts_as_down_and_up() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.on(up(1, 1)), ["send p1 #101 s1: 0[2,_]"]);
    assert_eq!(pod.open(2, &[2, NO]), NOTHING, "credits of the older link are gone with it");
}

#[test]
fn a_pod_that_refuses_is_not_asked_before_its_link_is_up() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.on(Event::PeerRefused { peer: PodId(1) }), ["parked s1: [(2)]"]);
    assert_eq!(pod.on(up(1, 4)), ["send p1 #101 s1: 0[2,_]", "resumed s1"]);
}

#[test]
fn what_a_suspect_owes_is_asked_of_another_too_and_the_first_answer_counts() {
    for (first, second) in [((1, 100), (2, 101)), ((2, 101), (1, 100))] {
        let mut pod = Pod::new(&TWICE);
        pod.open(1, &[2, NO]);
        assert_eq!(pod.wait(200, &[2]), NOTHING);
        assert_eq!(pod.wait(100, &[2]), ["send p2 #101 s1: 0[2,_]"]);
        assert_eq!(pod.exchange.health(PodId(1)), Health::Suspect);
        assert_eq!(pod.wait(200, &[2]), NOTHING);
        assert_eq!(pod.on(answer(first.0, first.1, 1)), [format!("accept #{} s1: 0", first.1), "complete s1".to_owned()]);
        assert_eq!(pod.on(answer(second.0, second.1, 1)), [format!("discard #{}", second.1)]);
    }
}

#[test]
fn a_suspect_is_asked_only_where_nobody_alive_is() {
    let mut pod = Pod::new(&TWICE);
    pod.wait(300, &[2]);
    assert_eq!(pod.open(1, &[2, NO]), ["send p2 #100 s1: 0[2,_]"]);
    assert_eq!(pod.wait(300, &[]), ["send p1 #101 s1: 0[2,_]"]);
    assert_eq!(pod.open(2, &[2, NO]), ["send p1 #102 s2: 0[2,_]"]);
    assert_eq!(pod.wait(100, &[]), ["send p2 #103 s2: 0[2,_]"]);
}

#[test]
fn a_sum_of_two_places_is_dropped_once_one_of_them_came() {
    let mut pod = Pod::new(&APART);
    assert_eq!(pod.open(1, &[2, 3, 2, NO]), ["send p1 #100 s1: 0[2,3]", "send p2 #101 s1: 1[2,_]"]);
    assert_eq!(pod.wait(300, &[2, 3]), ["send p2 #102 s1: 0[2,_]", "send p3 #103 s1: 0[_,3]"]);
    assert_eq!(pod.on(answer(2, 102, 1)), ["accept #102 s1: 0", "send p1 #104 s1: 0[_,3]"]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["discard #100"]);
    assert_eq!(pod.on(answer(2, 101, 1)), ["accept #101 s1: 1"]);
    assert_eq!(pod.on(answer(3, 103, 1)), ["accept #103 s1: 0", "complete s1"]);
    assert_eq!(pod.on(answer(1, 104, 1)), ["discard #104"]);
}

#[test]
fn rows_that_came_otherwise_are_left_out_by_position() {
    let mut pod = Pod::new(&[(1, &[2, 3]), (2, &[2])]);
    pod.on(down(2));
    assert_eq!(pod.open(1, &[3, NO, 2, NO, 3, 2]), ["send p1 #100 s1: 0[3,_] 1[2,_] 2[3,2]"]);
    pod.wait(300, &[2]);
    assert_eq!(pod.on(up(2, 4)), ["send p2 #101 s1: 1[2,_] 2[_,2]"]);
    // Row 2 of the first request is a sum with place 1, which came from pod 2: place 0 is asked once more.
    assert_eq!(pod.on(answer(2, 101, 2)), ["accept #101 s1: 1 2", "send p1 #102 s1: 2[3,_]"]);
    assert_eq!(pod.on(answer(1, 100, 3)), ["accept #100 s1: 0@0"]);
    assert_eq!(pod.on(answer(1, 102, 1)), ["accept #102 s1: 2", "complete s1"]);
}

#[test]
fn the_dead_are_not_asked_and_a_step_parks_until_they_live() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.wait(1900, &[]), NOTHING);
    assert_eq!(pod.wait(100, &[]), ["parked s1: [(2)]"]);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Dead);
    assert_eq!(pod.open(2, &[3, NO]), ["parked s2: [(3)]"]);
    // Its link stood all the time, so it still owes the first request.
    assert_eq!(pod.wait(100, &[1]), ["send p1 #101 s2: 0[3,_]", "resumed s1", "resumed s2"]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["accept #100 s1: 0", "complete s1"]);
}

#[test]
fn an_answer_of_the_dead_is_taken() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    pod.wait(2000, &[]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["accept #100 s1: 0", "resumed s1", "complete s1"]);
}

#[test]
fn a_new_link_to_a_dead_pod_is_no_sign_of_life() {
    let mut pod = Pod::new(&ONCE);
    pod.wait(2000, &[]);
    pod.on(down(1));
    pod.on(up(1, 4));
    assert_eq!(pod.exchange.health(PodId(1)), Health::Dead);
    pod.beat(1, 50, Duration::ZERO);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Alive);
    pod.wait(2000, &[]);
    pod.beat(1, 50, Duration::ZERO);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Dead, "the same counter is no progress");
    pod.beat(1, 1, Duration::ZERO);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Alive, "that of a new life begins anew");
}

#[test]
fn after_the_wait_a_parked_step_goes_on_without_the_rows_that_lack_an_expert() {
    let mut pod = Pod::new(&ONCE);
    assert_eq!(pod.open(1, &[2, 7, 3, 2, 7, 2]), ["send p1 #100 s1: 0[2,_] 1[3,2] 2[_,2]", "parked s1: [(7)]"]);
    assert_eq!(pod.wait(29_900, &[1]), NOTHING);
    let unavailable = "given up s1 [0, 2]: layer 1: no reachable pod holds expert 7: waited 30s";
    assert_eq!(pod.wait(100, &[1]), [unavailable]);
    assert_eq!(pod.on(answer(1, 100, 3)), ["accept #100 s1: 1@1", "complete s1"], "what is given up counts no more");
    assert_eq!(pod.exchange.open_steps(), 0);
}

#[test]
fn a_step_whose_every_row_is_given_up_is_complete() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, 7]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["accept #100 s1: 0"]);
    assert_eq!(pod.wait(29_900, &[1]), NOTHING);
    let unavailable = "given up s1 [0]: layer 1: no reachable pod holds expert 7: waited 30s";
    assert_eq!(pod.wait(100, &[1]), [unavailable, "complete s1"]);
}

#[test]
fn a_caller_may_wait_no_longer() {
    let mut pod = Pod::new(&[(1, &[2])]);
    let no_longer = |step| Event::GiveUp { step: StepId(step) };
    assert_eq!(pod.open(1, &[2, 7, 2, NO]), ["send p1 #100 s1: 0[2,_] 1[2,_]", "parked s1: [(7)]"]);
    assert_eq!(pod.on(no_longer(2)), NOTHING);
    let unavailable = "given up s1 [0]: layer 1: no reachable pod holds expert 7: waited 0ns";
    assert_eq!(pod.on(no_longer(1)), [unavailable]);
    assert_eq!(pod.on(no_longer(1)), NOTHING, "it is not parked");
    // What only then is found to be missing parks it again.
    assert_eq!(pod.on(down(1)), ["parked s1: [(2)]"]);
    assert_eq!(pod.on(no_longer(1)), ["given up s1 [1]: layer 1: no reachable pod holds expert 2: waited 0ns", "complete s1"]);
}

#[test]
fn progress_begins_the_wait_anew_and_time_that_a_step_goes_on_is_no_wait() {
    let mut pod = Pod::new(&[(1, &[2]), (2, &[3])]);
    pod.on(down(2));
    assert_eq!(pod.open(1, &[2, 3]), ["send p1 #100 s1: 0[2,_]", "parked s1: [(3)]"]);
    pod.wait(20_000, &[1, 2]);
    assert_eq!(pod.on(up(2, 4)), ["send p2 #101 s1: 0[_,3]", "resumed s1"]);
    assert_eq!(pod.on(down(2)), ["parked s1: [(3)]"]);
    // What it stood before the answer does not count any more.
    assert_eq!(pod.on(answer(1, 100, 1)), ["accept #100 s1: 0"]);
    pod.wait(20_000, &[1, 2]);
    assert_eq!(pod.on(up(2, 4)), ["send p2 #102 s1: 0[_,3]", "resumed s1"]);
    pod.wait(20_000, &[1, 2]);
    assert_eq!(pod.on(down(2)), ["parked s1: [(3)]"]);
    assert_eq!(pod.wait(9_900, &[1, 2]), NOTHING);
    let unavailable = "given up s1 [0]: layer 1: no reachable pod holds expert 3: waited 30s";
    assert_eq!(pod.wait(100, &[1, 2]), [unavailable, "complete s1"]);
}

#[test]
fn a_slow_answer_is_asked_of_another_too() {
    let mut pod = Pod::new(&TWICE);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.wait(4_900, &[1, 2]), NOTHING);
    assert_eq!(pod.wait(100, &[1, 2]), ["send p2 #101 s1: 0[2,_]"]);
    assert_eq!(pod.wait(5_000, &[1, 2]), NOTHING);
}

#[test]
fn an_overdue_answer_ends_its_link() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    pod.on(Event::Abort { step: StepId(1) });
    pod.wait(10_000, &[1]);
    pod.open(2, &[2, NO]);
    assert_eq!(pod.wait(49_900, &[1]), NOTHING);
    let overdue = "drop link p1 decode: request 100: no answer from pod 1 for 60s";
    assert_eq!(pod.wait(100, &[1]), [overdue, "parked s2: [(2)]"]);
    assert_eq!(pod.on(down(1)), NOTHING);
    assert_eq!(pod.on(up(1, 4)), ["send p1 #102 s2: 0[2,_]", "resumed s2"]);
}

#[test]
fn an_answer_of_the_wrong_size_ends_its_link() {
    let mut pod = Pod::new(&TWICE);
    pod.open(1, &[2, NO]);
    let wrong = "drop link p1 decode: answer 100: 2 rows given, 1 asked";
    assert_eq!(pod.on(answer(1, 100, 2)), ["discard #100", wrong, "send p2 #101 s1: 0[2,_]"]);
}

#[test]
fn what_is_not_here_is_asked_elsewhere() {
    let mut pod = Pod::new(&TWICE);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.on(not_here(1, 100)), ["send p2 #101 s1: 0[2,_]"]);
    assert_eq!(pod.on(not_here(1, 100)), NOTHING);
    assert_eq!(pod.open(2, &[2, NO]), ["send p2 #102 s2: 0[2,_]"], "pod 1 is not asked for it now");
}

#[test]
fn rows_that_wait_for_an_absent_pod_move_to_the_newest_table_with_the_refused_ones() {
    let mut pod = Pod::new(&ONCE);
    pod.on(down(1));
    pod.on(up(1, 1));
    assert_eq!(pod.open(1, &[2, NO, 2, NO, 2, NO, 2, NO, 2, NO]), ["send p1 #100 s1: 0[2,_] 1[2,_] 2[2,_]"]);
    assert_eq!(pod.on(Event::Table(table(2, &[(2, &[2])]))), NOTHING);
    let moved = ["send p2 #101 s1 epoch 2: 3[2,_] 4[2,_] 0[2,_]", "send p2 #102 s1 epoch 2: 1[2,_] 2[2,_]"];
    assert_eq!(pod.on(not_here(1, 100)), moved);
}

#[test]
fn a_refused_request_for_two_experts_is_asked_again_for_each_alone() {
    let mut pod = Pod::new(&ONCE);
    assert_eq!(pod.open(1, &[2, 3]), ["send p1 #100 s1: 0[2,3]"]);
    assert_eq!(pod.on(not_here(1, 100)), ["send p1 #101 s1: 0[2,_]", "send p1 #102 s1: 0[_,3]"]);
    assert_eq!(pod.on(answer(1, 101, 1)), ["accept #101 s1: 0"]);
    assert_eq!(pod.on(not_here(1, 102)), ["parked s1: [(3)]"]);
}

#[test]
fn an_absent_expert_is_asked_for_again_by_one_frame_now_and_then() {
    let mut pod = Pod::new(&ONCE);
    pod.on(Event::CreditGranted { peer: PodId(1), lane: Lane::Decode, frames: 4 });
    assert_eq!(pod.open(1, &[2, NO, 2, NO, 2, NO]), ["send p1 #100 s1: 0[2,_] 1[2,_] 2[2,_]"]);
    pod.open(2, &[2, NO]);
    assert_eq!(pod.on(not_here(1, 100)), ["parked s1: [(2)]"]);
    assert_eq!(pod.on(not_here(1, 101)), ["parked s2: [(2)]"]);
    // The question does not end the stand; its answer does, for everybody.
    assert_eq!(pod.wait(100, &[1]), ["send p1 #102 s1: 0[2,_] 1[2,_] 2[2,_]"]);
    assert_eq!(pod.on(up(3, 4)), NOTHING);
    assert_eq!(pod.on(not_here(1, 102)), NOTHING);
    assert_eq!(pod.wait(100, &[1]), ["send p1 #103 s1: 0[2,_] 1[2,_] 2[2,_]"]);
    let resumed = ["accept #103 s1: 0 1 2", "send p1 #104 s2: 0[2,_]", "resumed s1", "complete s1", "resumed s2"];
    assert_eq!(pod.on(answer(1, 103, 3)), resumed);
}

#[test]
fn frames_for_one_expert_keep_to_their_rows() {
    let mut pod = Pod::with(&ONCE, |config| config.ask_again_after = Duration::ZERO);
    assert_eq!(pod.open(1, &[2, NO, 2, 3, 2, 2, 2, NO]), ["send p1 #100 s1: 0[2,_] 1[2,3] 2[2,2]", "send p1 #101 s1: 3[2,_]"]);
    assert_eq!(pod.on(not_here(1, 100)), ["send p1 #102 s1: 0[2,_] 1[2,_] 2[2,2]", "send p1 #103 s1: 1[_,3]"]);
    assert_eq!(pod.on(grant(1, 2)), NOTHING);
    assert_eq!(pod.on(not_here(1, 101)), ["send p1 #104 s1: 3[2,_]", "parked s1: [(2)]"]);
}

#[test]
fn the_absent_are_not_asked_for_what_a_living_pod_owes() {
    let mut pod = Pod::new(&TWICE);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.on(not_here(1, 100)), ["send p2 #101 s1: 0[2,_]"]);
    assert_eq!(pod.wait(300, &[1]), NOTHING);
    assert_eq!(pod.exchange.health(PodId(2)), Health::Suspect);
    assert_eq!(pod.wait(1_600, &[1]), NOTHING);
    assert_eq!(pod.wait(100, &[1]), ["send p1 #102 s1: 0[2,_]", "parked s1: [(2)]"]);
}

#[test]
fn asking_an_absent_pod_again_and_again_is_no_progress() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    let (mut id, mut lines) = (100, pod.on(not_here(1, 100)));
    assert_eq!(lines, ["parked s1: [(2)]"]);
    while pod.exchange.open_steps() > 0 && pod.now < Micros(60_000_000) {
        lines = pod.wait(100, &[1]);
        if lines.first().is_some_and(|line| line.starts_with("send")) {
            id += 1;
            assert_eq!(pod.on(not_here(1, id)), NOTHING);
            pod.on(grant(1, 1));
        }
    }
    assert_eq!((lines.len(), pod.now), (2, Micros(30_000_000)), "{lines:?}");
}

#[test]
fn an_absent_expert_is_asked_for_at_once_when_its_pod_or_table_changes() {
    let events = [Event::Life { peer: PodId(1), life: life(2) }, Event::Table(table(1 + 1, &ONCE)), up(1, 4)];
    for event in events {
        let mut pod = Pod::new(&ONCE);
        pod.beat(1, 1, Duration::ZERO);
        pod.open(1, &[2, NO]);
        assert_eq!(pod.on(not_here(1, 100)), ["parked s1: [(2)]"]);
        let lines = pod.on(event);
        assert!(lines[0].starts_with("send p1 #101 s1") && lines[1..] == ["resumed s1"], "{lines:?}");
    }
}

#[test]
fn a_new_table_resumes_what_it_places() {
    let mut pod = Pod::new(&[]);
    assert_eq!(pod.open(1, &[2, 7]), ["parked s1: [(2), (7)]"]);
    assert_eq!(pod.on(Event::Table(table(2, &[(1, &[2])]))), ["send p1 #100 s1 epoch 2: 0[2,_]"]);
    assert_eq!(pod.on(Event::Table(table(3, &[(2, &[7])]))), ["send p2 #101 s1 epoch 3: 0[_,7]", "resumed s1"]);
}

#[test]
fn experts_that_come_here_are_computed_here() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, 3, 7, NO]);
    pod.on(down(1));
    let lines = pod.on(Event::Hold(Arc::new(set(&[2, 3, 7]))));
    assert_eq!(lines, ["local s1: 0[2,3] 1[7,_]", "resumed s1", "complete s1"]);
}

#[test]
fn own_places_make_sums_with_them_worthless() {
    let mut pod = Pod::new(&ONCE);
    assert_eq!(pod.open(1, &[2, 3]), ["send p1 #100 s1: 0[2,3]"]);
    pod.wait(300, &[]);
    // Wanted of another holder too, and this pod is one now.
    assert_eq!(pod.on(Event::Hold(Arc::new(set(&[2])))), ["send p1 #101 s1: 0[_,3]", "local s1: 0[2,_]"]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["discard #100"]);
    assert_eq!(pod.on(answer(1, 101, 1)), ["accept #101 s1: 0", "complete s1"]);
}

fn life(epoch: u64) -> Life {
    Life { epoch: Some(epoch), still: Duration::ZERO, busy: Duration::ZERO, since_busy: None }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_announced_a_long_turn_is_asked_as_a_suspect_is_and_lives() {
    let mut pod = Pod::new(&TWICE);
    pod.open(1, &[2, NO]);
    pod.beat(1, 1, 5 * SECOND);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Alive);
    assert_eq!(pod.wait(100, &[2]), ["send p2 #101 s1: 0[2,_]"], "what it owes is asked of another at once");
    assert_eq!(pod.open(2, &[2, NO]), ["send p2 #102 s2: 0[2,_]"]);
    pod.wait(4900, &[2]);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Alive);
    pod.wait(300, &[2]);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Suspect, "it overstays");
    pod.wait(1600, &[2]);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Suspect);
    pod.wait(100, &[2]);
    assert_eq!(pod.exchange.health(PodId(1)), Health::Dead);
}

#[test]
fn a_step_waits_for_the_only_holder_through_what_it_announced() {
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    for progress in 1..4 {
        pod.beat(1, progress, 100 * SECOND);
        assert_eq!(pod.wait(99_900, &[]), NOTHING, "it loads weights for minutes");
    }
    pod.beat(1, 9, Duration::ZERO);
    assert_eq!(pod.on(answer(1, 100, 1)), ["accept #100 s1: 0", "complete s1"]);
}

#[test]
fn an_answer_is_overdue_by_the_time_that_was_not_announced_or_at_last() {
    let overdue = |waited: Duration| format!("drop link p1 decode: request 100: no answer from pod 1 for {waited:?}");
    let mut pod = Pod::new(&ONCE);
    pod.open(1, &[2, NO]);
    pod.beat(1, 900, 100 * SECOND);
    pod.wait(100_000, &[]);
    assert_eq!(pod.wait(59_900, &[1]), NOTHING);
    assert_eq!(pod.wait(100, &[1]), [overdue(160 * SECOND), "parked s1: [(2)]".into()]);
    let mut pod = Pod::with(&ONCE, |config| config.answer_at_last = 200 * SECOND);
    pod.open(1, &[2, NO]);
    let mut lines = Vec::new();
    for progress in 1..5 {
        pod.beat(1, progress, 100 * SECOND);
        lines.extend(pod.wait(50_000, &[]));
    }
    assert_eq!(lines, [overdue(200 * SECOND), "parked s1: [(2)]".into()]);
}
