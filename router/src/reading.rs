//! Who reads requests and writes whole answers: short ones where they come, long ones in a few threads of their own, so that a million tokens hold up
//! nobody. A client that goes away takes its request with it.

mod lane;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use crate::App;
use crate::error::ApiError;
use crate::http::body::Given;
use crate::requests::Context;

pub use lane::Held;
use lane::Lane;

/// A body of so many bytes is read at once: some hundred microseconds at the most, little more than to wake a thread and to be woken by it is worth.
const SHORT: usize = 4 << 10;
/// An answer with so many tokens' log-probabilities is written at once: with twenty alternatives each, a hundred kilobytes.
const SHORT_MARKS: usize = 64;
/// The longest bodies of each lane but the last, and the bytes of them that may be held at once: nobody waits for a body of more than eight times its
/// own length, but for those beyond a mebibyte.
const LANES: [(usize, usize); 2] = [(128 << 10, 32 << 20), (1 << 20, 128 << 20)];
/// So many of the longest bodies may be held at once; others wait before they are received.
const LONGEST_HELD: usize = 15;
/// Bodies read at once, of each lane: parsing and tokenising take up to six times a body's memory, and half of the cores serve the others.
const MOST_THREADS: usize = 4;

/// The lanes, shortest first.
#[derive(Debug)]
pub struct Readers([Arc<Lane>; 3]);

impl Readers {
    /// For bodies of at most so many bytes.
    pub fn new(longest: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)).min(MOST_THREADS);
        let [short, middle] = LANES.map(|(longest, held)| Lane::new(longest, threads, held));
        Self([short, middle, Lane::new(longest, threads, longest.saturating_mul(LONGEST_HELD))])
    }

    fn lane(&self, bytes: usize) -> &Arc<Lane> {
        let [short, middle, long] = &self.0;
        [short, middle].into_iter().find(|lane| bytes <= lane.longest).unwrap_or(long)
    }

    /// Waits until a body may have grown to so many bytes.
    ///
    /// # Errors
    /// Too much of others has come, or the body has to give way to them.
    pub async fn hold(&self, held: &mut Held, bytes: usize) -> Result<(), ApiError> {
        self.lane(bytes).hold(held, bytes).await
    }
}

/// Tells a thread that nobody waits for what it reads.
struct Leaves(Arc<AtomicBool>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl App {
    /// Unpacks and reads a body.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn reading<T: Send + 'static>(
        self: &Arc<Self>,
        mut given: Given,
        work: impl FnOnce(&Context<'_>, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        for lane in &self.readers.0 {
            if given.is_packed() {
                // Nobody knows how long it is: it waits for longer ones when it has shown to be one.
                let place = Arc::clone(&lane.threads).acquire_owned().await;
                let most = lane.longest;
                given = in_thread(place, move || given.unpack(most).map(|()| given)).await?;
            }
        }
        if given.len() <= SHORT {
            return self.read(given, &AtomicBool::new(false), work);
        }
        let place = Arc::clone(&self.readers.lane(given.len()).threads).acquire_owned().await;
        let cancelled = Arc::new(AtomicBool::new(false));
        let leaves = Leaves(Arc::clone(&cancelled));
        let app = Arc::clone(self);
        let read = in_thread(place, move || app.read(given, &cancelled, work)).await;
        drop(leaves);
        read
    }

    /// Writes a whole answer, of which so many tokens have log-probabilities.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn writing(
        self: &Arc<Self>,
        marks: usize,
        work: impl FnOnce() -> Result<String, ApiError> + Send + 'static,
    ) -> Result<String, ApiError> {
        if marks <= SHORT_MARKS {
            return work();
        }
        let place = Arc::clone(&self.readers.lane(LANES[1].0).threads).acquire_owned().await;
        in_thread(place, work).await
    }

    fn read<T>(
        &self,
        given: Given,
        cancelled: &AtomicBool,
        work: impl FnOnce(&Context<'_>, &[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let random = || self.pool.random();
        let context = Context { model: &self.model, limits: self.limits(), cancelled, random: &random };
        let (bytes, _held) = given.into_parts();
        work(&context, &bytes)
    }
}

/// Works in a thread of the place that it has; whoever has gone still holds it until that was noticed.
async fn in_thread<T: Send + 'static>(
    place: Result<OwnedSemaphorePermit, AcquireError>,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.unwrap_or_else(|error| Err(ApiError::Internal(format!("a task died: {error}"))))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_longest_bodies_keep_no_other_from_being_received() {
        const LONGEST: usize = 32 << 20;
        let readers = Readers::new(LONGEST);
        let mut hogs: Vec<Held> = Vec::new();
        for _ in 0..=LONGEST_HELD {
            let mut held = Held::default();
            for bytes in [64 << 10, 128 << 10, 1 << 20, (1 << 20) + 1, LONGEST] {
                readers.hold(&mut held, bytes).await.unwrap();
            }
            hogs.push(held);
        }
        let mut other = Held::default();
        let within = Duration::from_secs(10);
        for bytes in [100 << 10, 1 << 20] {
            tokio::time::timeout(within, readers.hold(&mut other, bytes)).await.expect("it does not wait").unwrap();
        }
        let mut long = Held::default();
        let waits = tokio::time::timeout(Duration::from_millis(50), readers.hold(&mut long, LONGEST)).await;
        assert!(waits.is_err(), "one more of the longest waits");
        hogs.clear();
        tokio::time::timeout(within, readers.hold(&mut long, LONGEST)).await.expect("until there is room").unwrap();
    }
}
