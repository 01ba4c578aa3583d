//! Heartbeats of peers between the IO threads, which read them, and the device thread, which judges by them. Nothing waits
//! here: a heartbeat replaces the one before it, whether or not the device has looked.
//!
//! Here too are the ticks that wake the device. At most one stands in its inbox, and one that found no room is seen all the
//! same, because the device looks at [`Pulses::take_tick`] in every turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use m1_exchange::{Beat, Life, Listening, MAX_PODS, Micros, PodId, Pulse};

/// One peer.
#[derive(Debug, Default)]
struct Peer {
    pulse: Pulse,
    round_trip_us: Option<u32>,
}

/// What the device finds about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The peer.
    pub peer: PodId,
    /// By its heartbeats.
    pub life: Life,
    /// Last measured round trip, where one was.
    pub round_trip_us: Option<u32>,
}

/// All peers'.
#[derive(Debug)]
pub struct Pulses {
    started: Instant,
    listening: Mutex<Listening>,
    peers: [Mutex<Peer>; MAX_PODS],
    tick_due: AtomicBool,
    tick_queued: AtomicBool,
}

impl Default for Pulses {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            listening: Mutex::default(),
            peers: std::array::from_fn(|_| Mutex::default()),
            tick_due: AtomicBool::new(false),
            tick_queued: AtomicBool::new(false),
        }
    }
}

impl Pulses {
    /// The IO side looks around: it would have read by now what came a moment ago. Makes a tick due; true: one is to be put into
    /// the device's inbox.
    pub fn look(&self) -> bool {
        locked(&self.listening).look(self.wall());
        self.tick_due.store(true, Ordering::Release);
        !self.tick_queued.swap(true, Ordering::AcqRel)
    }

    /// The device has found the tick in its inbox, or there was no room for it.
    pub fn unqueue_tick(&self) {
        self.tick_queued.store(false, Ordering::Release);
    }

    /// Whether time has passed since the last look of the device.
    pub fn take_tick(&self) -> bool {
        // Every turn comes by here, most of them for nothing: a load is cheaper than a swap.
        self.tick_due.load(Ordering::Relaxed) && self.tick_due.swap(false, Ordering::AcqRel)
    }

    /// A connection to a peer stands.
    pub fn greeted(&self, peer: PodId) {
        let now = self.now();
        if let Some(peer) = self.peers.get(peer.index()) {
            locked(peer).pulse.greeted(now);
        }
    }

    /// A heartbeat of a peer is read, with the round trip that it ends, if any.
    pub fn read(&self, peer: PodId, beat: Beat, round_trip_us: Option<u32>) {
        let now = self.now();
        if let Some(peer) = self.peers.get(peer.index()) {
            let mut peer = locked(peer);
            peer.pulse.read(beat, now);
            peer.round_trip_us = round_trip_us.or(peer.round_trip_us);
        }
    }

    /// What is known of every peer that was ever connected.
    pub fn known(&self) -> impl Iterator<Item = Known> + '_ {
        let now = self.now();
        self.peers.iter().zip(0..).filter_map(move |(peer, pod)| {
            let peer = locked(peer);
            Some(Known { peer: PodId(pod), life: peer.pulse.life(now)?, round_trip_us: peer.round_trip_us })
        })
    }

    /// What is known of one peer; none where it was never connected.
    pub fn life(&self, peer: PodId) -> Option<Life> {
        let now = self.now();
        locked(self.peers.get(peer.index())?).pulse.life(now)
    }

    /// The time in which this pod could hear.
    fn now(&self) -> Micros {
        locked(&self.listening).at(self.wall())
    }

    fn wall(&self) -> Micros {
        Micros(self.started.elapsed().as_micros() as u64)
    }
}

/// No holder of these locks can panic between two halves of a change.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tick_stands_in_the_inbox_once_and_is_due_whether_or_not_it_does() {
        let pulses = Pulses::default();
        assert!(!pulses.take_tick());
        assert!(pulses.look(), "the first goes into the inbox");
        assert!(!pulses.look(), "it is still there");
        assert!(pulses.take_tick() && !pulses.take_tick(), "and is due once");
        assert!(!pulses.look() && pulses.take_tick(), "a device that reads its inbox slowly is told all the same");
        pulses.unqueue_tick();
        assert!(pulses.look());
    }

    #[test]
    fn peers_are_kept_apart() {
        let pulses = Pulses::default();
        pulses.greeted(PodId(3));
        pulses.read(PodId(63), Beat { progress: 1, epoch: 9, busy: Duration::from_secs(50) }, Some(70));
        pulses.read(PodId(63), Beat { progress: 2, epoch: 9, busy: Duration::from_secs(50) }, None);
        pulses.read(PodId(64), Beat { progress: 1, epoch: 9, busy: Duration::ZERO }, None);
        pulses.greeted(PodId(u16::MAX));
        let known: Vec<_> = pulses.known().map(|known| (known.peer.0, known.life.epoch, known.round_trip_us)).collect();
        assert_eq!(known, [(3, None, None), (63, Some(9), Some(70))]);
        assert!(pulses.life(PodId(63)).unwrap().busy > Duration::from_secs(40));
        assert_eq!((pulses.life(PodId(4)), pulses.life(PodId(64))), (None, None));
    }
}
