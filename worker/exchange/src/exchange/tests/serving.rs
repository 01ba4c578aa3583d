//! Peers' requests: who may ask, in which order they are served, and that each gets one end.

use super::*;
use crate::Serve;

fn serving() -> Pod {
    let mut pod = Pod::new(&[(0, &[0, 1])]);
    for peer in 1..3 {
        for lane in Lane::ALL {
            assert_eq!(pod.on(client_up(peer, lane)), NOTHING);
        }
    }
    pod
}

fn client_up(peer: u16, lane: Lane) -> Event<'static> {
    Event::ClientUp { peer: PodId(peer), lane }
}

fn client_down(peer: u16, lane: Lane) -> Event<'static> {
    Event::ClientDown { peer: PodId(peer), lane }
}

fn served(peer: u16, lane: Lane, id: u64) -> Event<'static> {
    Event::Served { peer: PodId(peer), lane, id: RequestId(id) }
}

impl Pod {
    fn next(&mut self, least_urgent: Lane) -> Option<(u16, u64)> {
        self.exchange.next_request(least_urgent).map(|serve| (serve.peer.0, serve.id.0))
    }
}

#[test]
fn the_most_urgent_lane_comes_first_and_in_it_the_oldest() {
    let mut pod = serving();
    for (peer, lane, id) in [(1, Lane::Bulk, 1), (2, Lane::Prefill, 2), (2, Lane::Decode, 3), (1, Lane::Decode, 1)] {
        assert_eq!(pod.request(peer, lane, id, &[0, NO, 1, 0]), NOTHING);
    }
    assert_eq!(pod.exchange.queued(), 4);
    let first = Serve { peer: PodId(2), lane: Lane::Decode, id: RequestId(3), layer: LayerId(1), rows: 2 };
    assert_eq!(pod.exchange.next_request(Lane::Bulk), Some(first));
    assert_eq!((pod.next(Lane::Decode), pod.next(Lane::Decode)), (Some((1, 1)), None));
    assert_eq!((pod.next(Lane::Prefill), pod.next(Lane::Prefill), pod.next(Lane::Bulk)), (Some((2, 2)), None, Some((1, 1))));
    assert!(!pod.exchange.is_quiet());
}

#[test]
fn a_reply_gives_its_credit_back() {
    let mut pod = serving();
    pod.request(1, Lane::Decode, 5, &[0, 1]);
    assert_eq!(pod.next(Lane::Decode), Some((1, 5)));
    assert_eq!(pod.on(served(1, Lane::Decode, 5)), ["reply p1 decode #5", "grant p1 decode: 1"]);
    assert_eq!(pod.on(served(1, Lane::Decode, 5)), NOTHING);
    assert!(pod.exchange.is_quiet());
}

#[test]
fn many_credits_go_back_some_at_a_time() {
    let mut pod = Pod::with(&[(0, &[0])], |config| config.credits = 9);
    pod.on(client_up(1, Lane::Decode));
    for id in 1..=100 {
        assert_eq!(pod.request(1, Lane::Decode, id, &[0, NO]), NOTHING);
        pod.next(Lane::Decode);
        let granted = pod.on(served(1, Lane::Decode, id)).into_iter().skip(1).collect::<Vec<_>>();
        let expected: &[&str] = if id % 2 == 0 { &["grant p1 decode: 2"] } else { &[] };
        assert_eq!(granted, expected);
    }
}

#[test]
fn experts_that_are_not_held_are_not_here() {
    let mut pod = serving();
    assert_eq!(pod.request(1, Lane::Decode, 5, &[0, 2]), ["not here p1 decode #5 epoch 1", "grant p1 decode: 1"]);
    pod.on(Event::Table(table(6, &[])));
    assert_eq!(pod.request(1, Lane::Decode, 6, &[7, NO]), ["not here p1 decode #6 epoch 6", "grant p1 decode: 1"]);
    assert_eq!(pod.next(Lane::Bulk), None);
}

#[test]
fn what_waits_for_an_expert_that_goes_is_refused() {
    let mut pod = serving();
    pod.request(1, Lane::Decode, 5, &[0, NO]);
    pod.request(2, Lane::Decode, 5, &[1, NO]);
    pod.request(1, Lane::Prefill, 6, &[0, 1]);
    let lines = pod.on(Event::Hold(Arc::new(set(&[1]))));
    let refused = |lane: &str| [format!("not here p1 {lane} epoch 1"), format!("grant p1 {}: 1", &lane[..lane.len() - 3])];
    assert_eq!(lines, [refused("decode #5"), refused("prefill #6")].concat());
    assert_eq!((pod.next(Lane::Bulk), pod.next(Lane::Bulk)), (Some((2, 5)), None));
    assert_eq!(pod.on(Event::Hold(Arc::new(set(&[])))), NOTHING);
    assert_eq!(pod.on(served(2, Lane::Decode, 5)), ["reply p2 decode #5", "grant p2 decode: 1"]);
}

#[test]
fn a_client_beyond_its_credit_loses_its_connection() {
    let mut pod = serving();
    for id in 1..=4 {
        assert_eq!(pod.request(1, Lane::Decode, id, &[0, NO]), NOTHING);
    }
    pod.next(Lane::Decode);
    let mut lines = pod.request(1, Lane::Decode, 5, &[0, NO]);
    assert_eq!(lines.remove(0), "drop client p1 decode: request 5: sent without credit, 4 frames may be open");
    assert_eq!(lines, ["forget p1 decode #2", "forget p1 decode #3", "forget p1 decode #4"]);
    assert_eq!(
        pod.request(1, Lane::Decode, 6, &[0, NO]),
        ["drop client p1 decode: request 6: pod 1 has no decode connection here"]
    );
    assert_eq!(pod.request(1, Lane::Prefill, 6, &[0, NO]), NOTHING, "nothing else suffers");
    assert_eq!(pod.on(served(1, Lane::Decode, 1)), ["forget p1 decode #1"]);
    assert_eq!(pod.on(client_down(1, Lane::Decode)), NOTHING);
}

#[test]
fn a_number_that_came_before_is_forgotten_and_the_first_one_stays() {
    let mut pod = serving();
    pod.request(1, Lane::Decode, 5, &[0, NO]);
    assert_eq!(pod.request(1, Lane::Decode, 5, &[0, NO]), ["forget p1 decode #5"]);
    assert_eq!(pod.next(Lane::Decode), Some((1, 5)));
    assert_eq!(pod.on(served(1, Lane::Decode, 5)), ["reply p1 decode #5", "grant p1 decode: 1"]);
    assert_eq!(pod.request(1, Lane::Decode, 4, &[0, NO]), ["forget p1 decode #4"]);
    assert_eq!(pod.request(1, Lane::Prefill, 4, &[0, NO]), NOTHING, "lanes are connections of their own");
}

#[test]
fn a_lost_connection_takes_its_requests_with_it() {
    let mut pod = serving();
    for id in 1..=2 {
        pod.request(1, Lane::Decode, id, &[0, NO]);
    }
    pod.request(2, Lane::Decode, 7, &[0, NO]);
    assert_eq!(pod.next(Lane::Decode), Some((1, 1)));
    assert_eq!(pod.on(client_down(1, Lane::Decode)), ["forget p1 decode #2"]);
    // A new life of the same pod uses the same number.
    pod.on(client_up(1, Lane::Decode));
    assert_eq!(pod.request(1, Lane::Decode, 1, &[0, NO]), NOTHING);
    assert_eq!(pod.on(served(1, Lane::Decode, 1)), ["forget p1 decode #1"], "that was the older one");
    assert_eq!((pod.next(Lane::Decode), pod.next(Lane::Decode)), (Some((2, 7)), Some((1, 1))));
    assert_eq!(pod.on(served(1, Lane::Decode, 1)), ["reply p1 decode #1", "grant p1 decode: 1"]);
}

#[test]
fn requests_that_cannot_be_end_their_connection() {
    let ask = |layer, rows, experts: &[u16]| {
        let mut pod = serving();
        let (peer, lane, id) = (PodId(1), Lane::Decode, RequestId(9));
        let lines = pod.on(Event::Request { peer, lane, id, epoch: 1, layer: LayerId(layer), rows, experts });
        assert_eq!(pod.exchange.queued(), usize::from(lines.is_empty()));
        lines.join(" | ").replace("drop client p1 decode: ", "")
    };
    assert_eq!(ask(2, 1, &[0, 1]), "layer: 2 given, allowed: 0 to 1");
    assert_eq!(ask(1, 1, &[0, 8]), "expert: 8 given, allowed: 0 to 7");
    assert_eq!(ask(1, 0, &[]), "rows: 0 given, allowed: 1 to 3");
    assert_eq!(ask(1, 4, &[0; 8]), "rows: 4 given, allowed: 1 to 3");
    let places =
        |given, rows| format!("experts: {given} places given for {rows} rows, allowed: the same number, 1 to 2, for each row");
    assert_eq!(ask(1, 2, &[0; 3]), places(3, 2));
    assert_eq!(ask(1, 2, &[0; 6]), places(6, 2));
    assert_eq!(ask(1, 2, &[]), places(0, 2));
    assert_eq!(ask(1, 2, &[0, 1]), "", "one slot a row is fine");
}
