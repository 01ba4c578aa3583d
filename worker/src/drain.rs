//! How a worker stops working without taking anything from anybody. Own sequences end first; then peers are served on until
//! none of them needs this pod: their sequences need its experts as much as its own needed theirs. All within one limit.
//!
//! A pod that has no sequence left ends its own connections to its peers. Pods that drain together, as when a whole group is
//! deleted, see by that at once that nobody needs them, and none waits for the other.

use std::time::Duration;

use m1_proto::worker::Phase;
use tokio::time::Instant;

use crate::device::{DeviceHandle, DeviceMessage};
use crate::status::SharedStatus;

/// How often is looked. A step of a decoding peer takes longer.
const LOOK: Duration = Duration::from_millis(20);
/// Peers that asked for nothing for this long have no sequence in a step. One that decodes asks many times a second; longer
/// would only hold up a pod whose peers are connected and idle.
const QUIET: Duration = Duration::from_secs(1);

/// Why a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// No own sequence is left, no peer needs this pod.
    Done,
    /// No own sequence is left; peers still ask.
    PeersLeft,
    /// So many own sequences are left.
    SequencesLeft(u32),
}

/// Stops admission, lets sequences end, then serves peers until they are quiet or gone; all within `limit`.
pub async fn drain(events: &DeviceHandle, status: &SharedStatus, limit: Duration) -> Drained {
    let end = Instant::now() + limit;
    if status.brief().phase() == Phase::Loading && left(status) == 0 && status.clients() == 0 {
        // It runs nothing, serves nobody and hears nothing for as long as it reads.
        return Drained::Done;
    }
    // A device that has ended has nothing left; a full inbox is one that is busy.
    match tokio::time::timeout_at(end, events.send(DeviceMessage::Drain)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Drained::Done,
        Err(_) => return Drained::SequencesLeft(left(status)),
    }
    let left = drained(status, limit).await;
    if left > 0 {
        return Drained::SequencesLeft(left);
    }
    let quiet = async {
        // A device that has ended serves nobody.
        if events.send(DeviceMessage::Leave).await.is_ok() {
            quiet(status).await;
        }
    };
    match tokio::time::timeout_at(end, quiet).await {
        Ok(()) => Drained::Done,
        Err(_) => Drained::PeersLeft,
    }
}

/// Waits until no sequence is left or the limit has passed; returns how many are left.
pub async fn drained(status: &SharedStatus, limit: Duration) -> u32 {
    let end = Instant::now() + limit;
    loop {
        let left = left(status);
        if (left == 0 && admits_no_more(status)) || Instant::now() >= end {
            return left;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn left(status: &SharedStatus) -> u32 {
    let now = status.brief();
    now.running + now.waiting
}

/// Before the device has seen that it drains, a sequence may stand in front of it that is not counted yet. One that loads sees
/// nothing; what stands in front of it is refused after that.
fn admits_no_more(status: &SharedStatus) -> bool {
    matches!(status.brief().phase(), Phase::Draining | Phase::Loading)
}

/// Waits until no peer needs this pod.
async fn quiet(status: &SharedStatus) {
    let mut quiet = Quiet::new(status.traffic().received(), Instant::now());
    while !quiet.is_over(status, Instant::now()) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Since when peers have been quiet.
#[derive(Debug)]
struct Quiet {
    heard: u64,
    since: Instant,
}

impl Quiet {
    fn new(heard: u64, now: Instant) -> Self {
        Self { heard, since: now }
    }

    /// Whether no peer is connected, or none has asked for [`QUIET`] and none waits for an answer.
    fn is_over(&mut self, status: &SharedStatus, now: Instant) -> bool {
        let heard = status.traffic().received();
        if heard != self.heard || status.owed() > 0 {
            *self = Self::new(heard, now);
        }
        status.clients() == 0 || now.duration_since(self.since) >= QUIET
    }
}

#[cfg(test)]
mod tests {
    use m1_exchange::{Lane, PodId};

    use super::*;
    use crate::traffic::Direction;

    /// Longer than any of these tests.
    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(50);

    /// A device that drains and has nothing to do; what reaches it is kept.
    fn idle() -> (DeviceHandle, tokio::sync::mpsc::Receiver<DeviceMessage>, SharedStatus) {
        let (events, inbox) = DeviceHandle::channel();
        let status = SharedStatus::new(Default::default());
        status.update(|status| status.set_phase(Phase::Draining));
        (events, inbox, status)
    }

    #[tokio::test]
    async fn without_peers_nothing_is_waited_for() {
        let (events, mut inbox, status) = idle();
        assert_eq!(drain(&events, &status, LONG).await, Drained::Done);
        assert!(matches!(inbox.try_recv(), Ok(DeviceMessage::Drain)));
        assert!(matches!(inbox.try_recv(), Ok(DeviceMessage::Leave)));
        drop(inbox);
        status.update(|status| status.running = 1);
        assert_eq!(drain(&events, &status, LONG).await, Drained::Done, "a device that has ended");
    }

    #[tokio::test]
    async fn a_device_that_reads_its_first_weights_is_not_waited_for() {
        let (events, mut inbox, status) = idle();
        status.update(|status| status.set_phase(Phase::Loading));
        assert_eq!(drain(&events, &status, LONG).await, Drained::Done);
        assert!(inbox.try_recv().is_err(), "it would not hear it");
        status.set_clients(1);
        assert_eq!(drain(&events, &status, SHORT).await, Drained::PeersLeft, "peers wait for one that reads other experts");
    }

    #[tokio::test]
    async fn the_limit_holds_for_sequences_and_for_peers() {
        let (events, _inbox, status) = idle();
        status.set_clients(1);
        status.set_owed(1);
        assert_eq!(drain(&events, &status, SHORT).await, Drained::PeersLeft);
        status.update(|status| status.running = 2);
        assert_eq!(drain(&events, &status, SHORT).await, Drained::SequencesLeft(2));
    }

    #[tokio::test]
    async fn a_device_that_has_not_heard_yet_is_waited_for() {
        let (_events, _inbox, status) = idle();
        status.update(|status| status.set_phase(Phase::Ready));
        let began = Instant::now();
        assert_eq!(drained(&status, SHORT).await, 0);
        assert!(began.elapsed() >= SHORT);
        status.update(|status| status.set_phase(Phase::Loading));
        assert_eq!(drained(&status, LONG).await, 0, "what loads runs nothing");
    }

    #[test]
    fn peers_are_quiet_a_second_after_their_last_word() {
        let (_events, _inbox, status) = idle();
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let mut quiet = Quiet::new(0, began);
        assert!(quiet.is_over(&status, began), "nobody is there");
        status.set_clients(2);
        assert!(!quiet.is_over(&status, at(999)));
        status.traffic().count(PodId(1), Lane::Decode, Direction::Received, 1);
        assert!(!quiet.is_over(&status, at(1000)), "one has asked");
        status.set_owed(1);
        assert!(!quiet.is_over(&status, at(3000)), "and is being answered");
        status.set_owed(0);
        assert!(!quiet.is_over(&status, at(3999)));
        assert!(quiet.is_over(&status, at(4000)));
    }
}
