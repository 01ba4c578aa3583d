//! `WatchStats`: a status when something has changed, at most every interval, and a sign of life where nothing has. A router's
//! stream tells that router's counts of experts too, and at once where a sequence of it has ended.

use std::sync::Arc;
use std::time::Duration;

use m1_proto::worker::StatusResponse;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::status::SharedStatus;
use crate::tallies::{Tally, Told};

/// Shortest interval; a smaller one asked for is raised to it.
const SHORTEST: Duration = Duration::from_millis(50);
/// Interval where the request gives none.
const USUAL: Duration = Duration::from_millis(500);
/// Longest silence while nothing changes: whoever listens takes a longer one for the end.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// One stream of statuses.
pub struct Watching {
    status: Arc<SharedStatus>,
    changes: watch::Receiver<StatusResponse>,
    /// Where the stream is of a router that names itself.
    router: Option<Counted>,
    /// Whether it names itself; then it is told no arrays but its own.
    brief: bool,
    every: Duration,
    last: Option<Sent>,
}

struct Counted {
    tally: Arc<Tally>,
    told: watch::Receiver<Told>,
    urgent: u64,
    /// Tokens that were told last; none before the first time.
    tokens: Option<u64>,
}

struct Sent {
    at: Instant,
    status: StatusResponse,
}

impl Watching {
    /// A stream; `brief` where the watcher names a router, and `tally` that router's, where one could be had.
    pub fn new(status: Arc<SharedStatus>, interval_ms: u32, brief: bool, tally: Option<Arc<Tally>>) -> Self {
        let every = if interval_ms == 0 { USUAL } else { Duration::from_millis(interval_ms.into()).max(SHORTEST) };
        let router = tally.map(|tally| Counted { told: tally.follow(), urgent: 0, tokens: None, tally });
        Self { changes: status.follow(), status, router, brief, every, last: None }
    }

    /// The next status.
    pub async fn next(&mut self) -> StatusResponse {
        loop {
            let now = Instant::now();
            let due = self.last.as_ref().map_or(now, |last| last.at + self.every);
            if let Some(status) = self.look(now, now >= due) {
                return status;
            }
            let waited = self.router.as_mut().map(|router| &mut router.told);
            let counted = async {
                match waited {
                    // Both senders live as long as this stream.
                    Some(told) => told.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            // What loading has read changes without a word, so it is looked at too.
            let again = if now < due { due } else { now + self.every };
            tokio::select! {
                () = tokio::time::sleep_until(again) => {}
                _ = self.changes.changed(), if now >= due => {}
                _ = counted => {}
            }
        }
    }

    /// The present status, where it is to be told now.
    fn look(&mut self, now: Instant, due: bool) -> Option<StatusResponse> {
        let urgent = self.router.as_ref().is_some_and(|router| router.told.borrow().urgent != router.urgent);
        if !due && !urgent {
            return None;
        }
        let mut status = if self.brief { self.status.brief() } else { self.status.read() };
        let experts = self.router.as_mut().and_then(|router| {
            let told = router.told.borrow_and_update().clone();
            status.incarnation = router.tally.began_us;
            router.urgent = told.urgent;
            (router.tokens.replace(told.counts.tokens) != Some(told.counts.tokens)).then(|| told.counts.as_ref().clone())
        });
        let silent = self
            .last
            .as_ref()
            .is_some_and(|last| experts.is_none() && last.status == status && now < last.at + SIGN_OF_LIFE.max(self.every));
        if silent {
            return None;
        }
        self.last = Some(Sent { at: now, status: status.clone() });
        status.experts = experts;
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use m1_engine::{RoutingCounts, RoutingShape};

    use super::*;
    use crate::tallies::Tallies;

    const SHAPE: RoutingShape = RoutingShape { layers: 2, experts: 4, top_k: 2 };

    fn shared() -> Arc<SharedStatus> {
        Arc::new(SharedStatus::new(StatusResponse { incarnation: 7, ..StatusResponse::default() }))
    }

    fn counts(tokens: u64) -> RoutingCounts {
        RoutingCounts { tokens, ..RoutingCounts::without_weights(SHAPE) }
    }

    /// Longer than any of these tests.
    const NEVER: u32 = 600_000;

    async fn next(watching: &mut Watching) -> StatusResponse {
        tokio::time::timeout(Duration::from_secs(60), watching.next()).await.expect("a status")
    }

    #[tokio::test]
    async fn a_change_is_told_at_most_every_interval_and_a_sign_of_life_every_two_seconds() {
        let status = shared();
        let mut watching = Watching::new(status.clone(), 200, false, None);
        next(&mut watching).await;
        let began = Instant::now();
        status.update(|status| status.running = 1);
        assert_eq!(next(&mut watching).await.running, 1);
        assert!(began.elapsed() >= Duration::from_millis(150), "the interval is kept: {:?}", began.elapsed());
        status.update(|status| status.running = 1);
        let began = Instant::now();
        assert_eq!(next(&mut watching).await.running, 1);
        assert!(began.elapsed() >= Duration::from_millis(1900), "nothing has changed for {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_router_is_told_its_counts_when_they_have_changed_and_at_once_at_an_end() {
        let (status, tallies) = (shared(), Tallies::new(SHAPE));
        status.set_routing(&counts(9));
        let tally = tallies.open("r", std::time::Instant::now()).unwrap();
        let mut watching = Watching::new(status.clone(), 50, true, Some(tally.clone()));
        let first = next(&mut watching).await;
        assert_eq!(first.experts.unwrap().expert_tokens, [0; 8], "what counts start from");
        assert_eq!(first.incarnation, tally.began_us);
        assert!(first.routing.is_none_or(|routing| routing.expert_tokens.is_empty()));
        tally.publish(&counts(3), false);
        assert_eq!(next(&mut watching).await.experts.unwrap().tokens, 3);
        status.update(|status| status.running = 2);
        assert!(next(&mut watching).await.experts.is_none(), "they have not changed since");

        let mut patient = Watching::new(status.clone(), NEVER, true, Some(tally.clone()));
        next(&mut patient).await;
        tally.publish(&counts(4), false);
        let silence = tokio::time::timeout(Duration::from_millis(100), patient.next()).await;
        assert!(silence.is_err(), "it waits for its interval");
        tally.publish(&counts(5), true);
        assert_eq!(next(&mut patient).await.experts.unwrap().tokens, 5);
    }

    #[tokio::test]
    async fn who_names_no_router_is_told_all_arrays() {
        let status = shared();
        status.set_routing(&counts(9));
        let told = Watching::new(status, 0, false, None).next().await;
        assert_eq!((told.routing.unwrap().expert_tokens.len(), told.experts, told.incarnation), (8, None, 7));
    }
}
