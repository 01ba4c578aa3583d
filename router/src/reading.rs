//! Who reads requests and writes whole answers: short ones where they come, long ones in a few threads of their own, so that a million tokens hold up
//! nobody. A client that goes away takes its request with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::App;
use crate::error::ApiError;
use crate::http::body::Given;
use crate::requests::Context;

/// A body of so many bytes is read at once: some hundred microseconds, less than to wake a thread and to be woken by it is worth.
const SHORT: usize = 16 << 10;
/// An answer with so many tokens' log-probabilities is written at once: with twenty alternatives each, a hundred kilobytes.
const SHORT_MARKS: usize = 64;
/// A body that is no longer than this has a lane of its own, in which nobody waits for the longest.
const MIDDLE: usize = 1 << 20;
/// Long bodies read at once, of each lane: parsing and tokenising take up to six times a body's memory, and half of the cores serve the others.
const MOST_THREADS: usize = 4;
/// Bytes of bodies up to [`MIDDLE`] that may be held at once.
const MIDDLES_HELD: usize = 128 << 20;
/// So many of the longest bodies may be held at once; others wait before they are received.
const LONGEST_HELD: usize = 16;
/// A body that is no longer than this counts for nothing there.
const FREE: usize = 64 << 10;
/// The unit in which held bodies are counted.
const UNIT: usize = 1 << 10;
/// Units taken at a time.
const STEP: usize = 256;
/// How long a body waits for its turn to be received.
const TURN: Duration = Duration::from_secs(30);

/// The threads that read, and the memory of what they read.
#[derive(Debug)]
struct Lane {
    threads: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

impl Lane {
    fn new(threads: usize, bytes: usize) -> Self {
        let units = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        Self { threads: Arc::new(Semaphore::new(threads)), memory: Arc::new(Semaphore::new(units)) }
    }
}

/// Both lanes.
#[derive(Debug)]
pub struct Readers {
    middle: Lane,
    long: Lane,
}

/// The memory of a body.
#[derive(Debug, Default)]
pub struct Held {
    permit: Option<OwnedSemaphorePermit>,
    is_long: bool,
}

impl Readers {
    /// For bodies of at most so many bytes.
    pub fn new(longest: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)).min(MOST_THREADS);
        let long = (longest + UNIT).saturating_mul(LONGEST_HELD);
        Self { middle: Lane::new(threads, MIDDLES_HELD), long: Lane::new(threads, long) }
    }

    fn lane(&self, bytes: usize) -> &Lane {
        if bytes > MIDDLE { &self.long } else { &self.middle }
    }

    /// Waits until a body may have grown to so many bytes. What has not come yet holds nothing.
    ///
    /// # Errors
    /// Too much of other long ones has come.
    pub async fn hold(&self, held: &mut Held, bytes: usize) -> Result<(), ApiError> {
        let is_long = bytes > MIDDLE;
        let before = held.permit.as_ref().filter(|_| held.is_long == is_long).map_or(0, OwnedSemaphorePermit::num_permits);
        let has = FREE / UNIT + before;
        let Some(more) = bytes.div_ceil(UNIT).checked_sub(has).filter(|more| *more > 0) else { return Ok(()) };
        let units = u32::try_from(more.next_multiple_of(STEP)).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.lane(bytes).memory).acquire_many_owned(units);
        let Ok(Ok(permit)) = tokio::time::timeout(TURN, turn).await else {
            return Err(ApiError::NotReady("too many long bodies are being received; try again".to_owned()));
        };
        match &mut held.permit {
            Some(same) if held.is_long == is_long => same.merge(permit),
            // It has become a long one, and leaves the other lane.
            other => *other = Some(permit),
        }
        held.is_long = is_long;
        Ok(())
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
        given: Given,
        work: impl FnOnce(&Context<'_>, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if given.len() <= SHORT && !given.is_packed() {
            return self.read(given, &AtomicBool::new(false), work);
        }
        // What is packed is as long as it is unpacked, which nobody knows yet.
        let lane = if given.is_packed() { &self.readers.long } else { self.readers.lane(given.len()) };
        let place = Arc::clone(&lane.threads).acquire_owned().await;
        let cancelled = Arc::new(AtomicBool::new(false));
        let leaves = Leaves(Arc::clone(&cancelled));
        let app = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            // Whoever has gone still holds the thread until it has noticed.
            let _place = place;
            app.read(given, &cancelled, work)
        });
        let read = read.await.unwrap_or_else(|error| Err(ApiError::Internal(format!("a task died: {error}"))));
        drop(leaves);
        read
    }

    /// Writes a whole answer, of which so many tokens have log-probabilities.
    ///
    /// # Errors
    /// The thread died.
    pub async fn writing(
        self: &Arc<Self>,
        marks: usize,
        work: impl FnOnce() -> String + Send + 'static,
    ) -> Result<String, ApiError> {
        if marks <= SHORT_MARKS {
            return Ok(work());
        }
        let _place = Arc::clone(&self.readers.middle.threads).acquire_owned().await;
        tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::Internal(format!("a task died: {error}")))
    }

    fn read<T>(
        &self,
        given: Given,
        cancelled: &AtomicBool,
        work: impl FnOnce(&Context<'_>, &[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let random = || self.pool.random();
        let context = Context { model: &self.model, limits: self.limits(), cancelled, random: &random };
        let (bytes, _held) = given.unpacked()?;
        work(&context, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_bodies_keep_no_other_from_being_received() {
        const LONGEST: usize = 32 << 20;
        let readers = Readers::new(LONGEST);
        let mut hogs: Vec<Held> = Vec::new();
        for _ in 0..LONGEST_HELD {
            let mut held = Held::default();
            for bytes in [FREE, MIDDLE, MIDDLE + 1, LONGEST] {
                readers.hold(&mut held, bytes).await.unwrap();
            }
            hogs.push(held);
        }
        let mut other = Held::default();
        let within = Duration::from_secs(10);
        tokio::time::timeout(within, readers.hold(&mut other, 100 << 10)).await.expect("it does not wait").unwrap();
        tokio::time::timeout(within, readers.hold(&mut other, MIDDLE)).await.expect("nor does it later").unwrap();
        let mut long = Held::default();
        let waits = tokio::time::timeout(Duration::from_millis(50), readers.hold(&mut long, LONGEST)).await;
        assert!(waits.is_err(), "one more of the longest waits");
        hogs.clear();
        tokio::time::timeout(within, readers.hold(&mut long, LONGEST)).await.expect("until there is room").unwrap();
    }
}
