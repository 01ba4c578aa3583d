//! Own steps while nothing fails: who is asked, in what frames, against which credit, and what counts of the answers.

use super::*;

/// Each pod holds two experts, pod 0 experts 0 and 1.
const EACH_ONCE: [(u16, &[u16]); 4] = [(0, &[0, 1]), (1, &[2, 3]), (2, &[4, 5]), (3, &[6, 7])];

#[test]
fn a_step_without_peers_is_local_and_done() {
    let mut pod = Pod::new(&EACH_ONCE);
    assert_eq!(pod.open(7, &[1, 0, NO, NO, NO, 1]), ["local s7: 0[1,0] 2[_,1]", "complete s7"]);
    assert_eq!(pod.open(7, &[NO, NO]), ["complete s7"]);
    assert!(pod.exchange.is_quiet());
}

#[test]
fn rows_go_to_their_holders_before_the_own_ones() {
    let mut pod = Pod::new(&EACH_ONCE);
    let lines = pod.open(7, &[0, 2, 4, 3, 2, 3]);
    assert_eq!(lines, ["send p1 #100 s7: 0[_,2] 1[_,3] 2[2,3]", "send p2 #101 s7: 1[4,_]", "local s7: 0[0,_]"]);
    assert_eq!(pod.on(answer(2, 101, 1)), ["accept #101 s7: 1"]);
    assert_eq!(pod.on(answer(1, 100, 3)), ["accept #100 s7: 0 1 2", "complete s7"]);
    assert_eq!(pod.on(answer(1, 100, 3)), ["discard #100"]);
    assert!(pod.exchange.is_quiet());
}

#[test]
fn frames_hold_so_many_rows_and_take_a_credit_each() {
    let mut pod = Pod::new(&EACH_ONCE);
    pod.on(down(1));
    pod.on(up(1, 1));
    assert_eq!(pod.open(7, &[2, NO, 3, 2, 2, NO, 3, NO, 0, 2]), ["send p1 #100 s7: 0[2,_] 1[3,2] 2[2,_]", "local s7: 4[0,_]"]);
    assert_eq!(pod.on(answer(1, 100, 3)), ["accept #100 s7: 0 1 2"]);
    assert_eq!(pod.on(grant(1, 3)), ["send p1 #101 s7: 3[3,_] 4[_,2]"]);
    assert_eq!(pod.on(grant(1, 1)), NOTHING);
    assert_eq!(pod.on(answer(1, 101, 2)), ["accept #101 s7: 3 4", "complete s7"]);
}

#[test]
fn who_has_no_credit_does_not_hold_up_the_others() {
    let mut pod = Pod::new(&EACH_ONCE);
    pod.on(down(1));
    pod.on(up(1, 0));
    assert_eq!(pod.open(7, &[2, 4]), ["send p2 #100 s7: 0[_,4]"]);
    assert_eq!(pod.on(grant(2, 1)), NOTHING);
    assert_eq!(pod.on(grant(1, 1)), ["send p1 #101 s7: 0[2,_]"]);
}

#[test]
fn the_oldest_step_gets_credit_first() {
    let mut pod = Pod::new(&EACH_ONCE);
    pod.on(down(1));
    pod.on(up(1, 0));
    pod.open(9, &[2, NO]);
    pod.open(8, &[3, NO]);
    assert_eq!(pod.on(grant(1, 1)), ["send p1 #100 s9: 0[2,_]"]);
    assert_eq!(pod.on(grant(1, 1)), ["send p1 #101 s8: 0[3,_]"]);
}

#[test]
fn both_places_of_a_row_join_where_one_pod_has_both() {
    // Expert 2 is at pods 1 and 2, expert 3 at pods 2 and 3, expert 4 at pod 1 alone.
    let mut pod = Pod::new(&[(1, &[2, 4]), (2, &[2, 3]), (3, &[3])]);
    assert_eq!(pod.open(1, &[2, 3]), ["send p2 #100 s1: 0[2,3]"]);
    assert_eq!(pod.open(2, &[2, 4]), ["send p1 #101 s2: 0[2,4]"]);
}

#[test]
fn rows_spread_over_the_holders_of_an_expert() {
    let mut pod = Pod::new(&[(1, &[2]), (2, &[2])]);
    assert_eq!(pod.open(1, &[2, NO, 2, NO, 2, NO]), ["send p1 #100 s1: 0[2,_] 2[2,_]", "send p2 #101 s1: 1[2,_]"]);
    assert_eq!(pod.open(2, &[2, NO]), ["send p2 #102 s2: 0[2,_]"]);
    pod.on(down(1));
    pod.on(up(1, 0));
    assert_eq!(pod.open(3, &[2, NO]), ["send p2 #104 s3: 0[2,_]"], "the one without credit is not waited for");
}

#[test]
fn own_experts_are_never_asked_of_others_and_others_never_of_this_pod() {
    let mut pod = Pod::new(&[(0, &[0]), (1, &[0])]);
    assert_eq!(pod.open(1, &[0, NO]), ["local s1: 0[0,_]", "complete s1"]);
    pod.on(Event::Hold(Arc::new(set(&[]))));
    assert_eq!(pod.open(1, &[0, NO]), ["send p1 #100 s1: 0[0,_]"]);
}

#[test]
fn a_step_keeps_its_table_for_rows_that_were_not_asked_yet() {
    let mut pod = Pod::new(&[(1, &[2])]);
    pod.on(down(1));
    pod.on(up(1, 0));
    pod.open(1, &[2, NO]);
    assert_eq!(pod.on(Event::Table(table(2, &[(2, &[2])]))), NOTHING);
    assert_eq!(pod.open(2, &[2, NO]), ["send p2 #100 s2 epoch 2: 0[2,_]"]);
    assert_eq!(pod.on(grant(1, 1)), ["send p1 #101 s1 epoch 2: 0[2,_]"]);
    assert_eq!(pod.on(not_here(1, 101)), ["send p2 #102 s1 epoch 2: 0[2,_]"], "asked again by the newest");
}

#[test]
fn older_tables_are_refused_and_the_same_is_ignored() {
    let mut pod = Pod::new(&[]);
    assert_eq!(pod.on(Event::Table(table(0, &[]))), ["refused epoch 0 of lease 0, present epoch 1 of lease 0"]);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.on(Event::Table(table(1, &[(1, &[2])]))), NOTHING);
}

#[test]
fn late_answers_of_an_aborted_step_are_discarded() {
    let mut pod = Pod::new(&EACH_ONCE);
    pod.open(7, &[2, NO]);
    assert_eq!(pod.on(Event::Abort { step: StepId(7) }), NOTHING);
    assert_eq!(pod.on(Event::Abort { step: StepId(7) }), NOTHING);
    assert_eq!(pod.open(7, &[2, NO]), ["send p1 #101 s7: 0[2,_]"]);
    assert_eq!((pod.exchange.open_steps(), pod.exchange.open_requests()), (1, 2));
    assert_eq!(pod.on(answer(1, 100, 1)), ["discard #100"]);
    assert_eq!(pod.on(answer(1, 101, 1)), ["accept #101 s7: 0", "complete s7"]);
}

#[test]
fn only_the_server_gives_credits_back() {
    let mut pod = Pod::new(&EACH_ONCE);
    for (step, id) in [(1, 100), (2, 101), (3, 102), (4, 103)] {
        pod.open(step, &[2, NO]);
        pod.on(Event::Abort { step: StepId(step) });
        pod.on(answer(1, id, 1));
    }
    assert_eq!(pod.open(5, &[2, NO]), NOTHING);
    assert_eq!(pod.on(grant(1, 1)), ["send p1 #104 s5: 0[2,_]"]);
}

#[test]
fn routings_that_cannot_be_are_refused() {
    let mut pod = Pod::new(&EACH_ONCE);
    assert_eq!(pod.open(1, &[8, 0]), ["failed s1: expert: 8 given, allowed: 0 to 7"]);
    assert_eq!(
        pod.open(1, &[0, 1, 2]),
        ["failed s1: experts: 3 places given for 2 rows, allowed: the same number, 1 to 2, for each row"]
    );
    let wrong = Event::Open { step: StepId(1), lane: Lane::Decode, layer: LayerId(2), experts: &[0, 1] };
    assert_eq!(pod.on(wrong), ["failed s1: layer: 2 given, allowed: 0 to 1"]);
    pod.open(1, &[2, NO]);
    assert_eq!(pod.open(1, &[0, 1]), ["failed s1: step 1 has an exchange open already"]);
    assert_eq!(pod.on(answer(1, 100, 1)), ["discard #100"]);
    assert_eq!(pod.exchange.open_steps(), 0);
}

#[test]
fn events_about_pods_that_cannot_be_peers_change_nothing() {
    let mut pod = Pod::new(&EACH_ONCE);
    let life = Life { epoch: Some(1), still: Duration::ZERO, busy: Duration::ZERO, since_busy: None };
    for peer in [0, 64, u16::MAX] {
        for event in [up(peer, 4), grant(peer, 1), not_here(peer, 100), down(peer), Event::PeerRefused { peer: PodId(peer) }] {
            assert_eq!(pod.on(event), NOTHING);
        }
        assert_eq!(pod.on(answer(peer, 100, 1)), ["discard #100"]);
        assert_eq!(pod.on(Event::Life { peer: PodId(peer), life }), NOTHING);
        assert_eq!(pod.exchange.health(PodId(peer)), Health::Dead);
        let refused = pod.request(peer, Lane::Decode, 5, &[0, NO]);
        assert_eq!(refused, [format!("drop client p{peer} decode: request 5: pod {peer} has no decode connection here")]);
        assert_eq!(pod.on(Event::ClientUp { peer: PodId(peer), lane: Lane::Bulk }), NOTHING);
        assert_eq!(pod.on(Event::ClientDown { peer: PodId(peer), lane: Lane::Bulk }), NOTHING);
    }
    assert_eq!(pod.open(1, &[2, NO]), ["send p1 #100 s1: 0[2,_]"]);
}
