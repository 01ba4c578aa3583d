//! Whom experts are counted for: one tally for each router that asks, kept while a status stream or a sequence of that router
//! lives and ten minutes longer. The device thread counts and publishes; status streams read. A tally that was dropped and
//! comes again begins anew, and says so by the time it began.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use m1_engine::{RoutingCounts, RoutingShape, TallyId};
use m1_proto::worker::Routing;
use tokio::sync::watch;

use crate::device::convert;

/// Routers counted for at once. Each takes 60 KB twice; a deployment has a handful.
const MOST: usize = 64;
/// How long a tally is kept that no stream and no sequence uses: longer than a router takes to come back.
const KEPT: Duration = Duration::from_secs(600);

/// All tallies of one worker.
#[derive(Debug)]
pub struct Tallies {
    shape: RoutingShape,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// When the youngest began, so that no two begin at one time.
    last_began: u64,
    by_router: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    tally: Arc<Tally>,
    /// Since when nobody else has held it, as far as was seen.
    idle_since: Option<Instant>,
}

impl Entry {
    /// How long nobody else has held it; `None` while somebody does.
    fn idle_for(&mut self, now: Instant) -> Option<Duration> {
        // Handles are only made under the lock that the caller holds.
        let idle = Arc::strong_count(&self.tally) == 1;
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(now));
        self.idle_since.map(|since| now.duration_since(since))
    }
}

/// The counts of one router's sequences. Whoever holds it keeps it from being dropped.
#[derive(Debug)]
pub struct Tally {
    /// Its number in the engine.
    pub id: TallyId,
    /// When it began, in microseconds since 1970; no two of one process began at the same time.
    pub began_us: u64,
    told: watch::Sender<Told>,
}

/// What is published of a tally.
#[derive(Debug, Clone)]
pub struct Told {
    /// Without weights.
    pub counts: Arc<Routing>,
    /// Grows where somebody waits for these very counts: a sequence has ended.
    pub urgent: u64,
}

impl Tally {
    /// Publishes the present counts.
    pub fn publish(&self, counts: &RoutingCounts, urgent: bool) {
        let counts = Arc::new(convert::routing(counts));
        self.told.send_modify(|told| {
            told.counts = counts;
            told.urgent += u64::from(urgent);
        });
    }

    /// Follows what is published.
    pub fn follow(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    /// Tokens of what was published last.
    pub fn tokens(&self) -> u64 {
        self.told.borrow().counts.tokens
    }
}

impl Tallies {
    /// None yet, for a model of this shape.
    pub fn new(shape: RoutingShape) -> Self {
        Self { shape, inner: Mutex::default() }
    }

    /// The tally of a router, made if there is none. `None` where the name is empty, or where there are as many as may be
    /// and all are in use.
    pub fn open(&self, router: &str, now: Instant) -> Option<Arc<Tally>> {
        if router.is_empty() {
            return None;
        }
        let mut inner = self.inner();
        if let Some(entry) = inner.by_router.get_mut(router) {
            entry.idle_since = None;
            return Some(entry.tally.clone());
        }
        if inner.by_router.len() >= MOST {
            let idle = inner.by_router.iter_mut().map(|(router, entry)| (entry.idle_for(now), router));
            let (_, oldest) = idle.filter_map(|(idle, router)| Some((idle?, router))).max()?;
            let oldest = oldest.clone();
            inner.by_router.remove(&oldest);
        }
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64);
        let began_us = clock.max(inner.last_began + 1);
        let id = TallyId(inner.next);
        (inner.next, inner.last_began) = (inner.next + 1, began_us);
        let counts = Arc::new(convert::routing(&RoutingCounts::without_weights(self.shape)));
        let tally = Arc::new(Tally { id, began_us, told: watch::Sender::new(Told { counts, urgent: 0 }) });
        inner.by_router.insert(router.to_owned(), Entry { tally: tally.clone(), idle_since: None });
        Some(tally)
    }

    /// Drops what nobody has used for long; those that are left, by number.
    pub fn kept(&self, now: Instant) -> HashMap<TallyId, Arc<Tally>> {
        let mut inner = self.inner();
        inner.by_router.retain(|_, entry| entry.idle_for(now).is_none_or(|idle| idle < KEPT));
        inner.by_router.values().map(|entry| (entry.tally.id, entry.tally.clone())).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: RoutingShape = RoutingShape { layers: 80, experts: 32, top_k: 2 };

    fn tallies() -> (Tallies, Instant) {
        (Tallies::new(SHAPE), Instant::now())
    }

    #[test]
    fn a_router_has_one_tally_and_nobody_has_none() {
        let (tallies, now) = tallies();
        let one = tallies.open("a", now).unwrap();
        assert_eq!(tallies.open("a", now).unwrap().id, one.id);
        let other = tallies.open("b", now).unwrap();
        assert!(other.id != one.id && other.began_us > one.began_us);
        assert!(tallies.open("", now).is_none());
        assert_eq!((one.tokens(), one.follow().borrow().counts.expert_tokens.len()), (0, 80 * 32));
    }

    #[test]
    fn one_that_nobody_uses_is_kept_for_ten_minutes_and_begins_anew_after_that() {
        let (tallies, now) = tallies();
        let at = |seconds| now + Duration::from_secs(seconds);
        let first = tallies.open("a", now).unwrap();
        assert_eq!(tallies.kept(at(10_000)).len(), 1, "it is in use");
        let (id, began) = (first.id, first.began_us);
        drop(first);
        assert_eq!(tallies.kept(at(10_001)).len(), 1);
        assert_eq!(tallies.kept(at(10_600)).len(), 1);
        assert_eq!(tallies.open("a", at(10_600)).unwrap().id, id, "and used again");
        assert_eq!(tallies.kept(at(10_601)).len(), 1);
        assert_eq!(tallies.kept(at(11_201)).len(), 0);
        let again = tallies.open("a", at(11_202)).unwrap();
        assert!(again.id != id && again.began_us > began);
    }

    #[test]
    fn there_are_no_more_than_64() {
        let (tallies, now) = tallies();
        let mut used: Vec<_> = (0..MOST).map(|n| tallies.open(&n.to_string(), now).unwrap()).collect();
        assert!(tallies.open("one more", now).is_none());
        used.remove(7);
        assert!(tallies.open("one more", now).is_some());
        assert_eq!(tallies.kept(now).len(), MOST);
        assert!(tallies.open("7", now).is_some(), "a place that nobody uses goes to whoever asks");
        assert!(tallies.inner().by_router.len() <= MOST);
    }

    #[test]
    fn what_is_published_is_followed_and_says_whether_it_is_waited_for() {
        let (tallies, now) = tallies();
        let tally = tallies.open("a", now).unwrap();
        let follow = tally.follow();
        let counts = RoutingCounts { tokens: 7, ..RoutingCounts::without_weights(SHAPE) };
        tally.publish(&counts, false);
        assert_eq!((follow.borrow().counts.tokens, follow.borrow().urgent, tally.tokens()), (7, 0, 7));
        tally.publish(&counts, true);
        assert_eq!(follow.borrow().urgent, 1);
    }
}
