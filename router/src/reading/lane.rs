//! The memory of bodies that are being received, and who gives it up: where there is none left, the slowest goes, so that a few that trickle shut out
//! nobody; and one of those that wait may always come to its end, so that many that have half of what they need do not wait for each other.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::ApiError;

/// A body that is no longer than this takes no memory that is counted.
const FREE: usize = 64 << 10;
/// The unit in which memory is counted.
const UNIT: usize = 1 << 10;
/// How long a body waits for room.
const TURN: Duration = Duration::from_secs(30);
/// Bytes per second at which a body gives way to nobody.
const STEADY: usize = 256 << 10;
/// Over how long that is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// How often one that waits looks for one that is too slow.
const LOOK: Duration = Duration::from_millis(100);

/// The threads that read bodies up to some length, and the memory of what they read.
#[derive(Debug)]
pub struct Lane {
    /// Bytes of the longest body here.
    pub longest: usize,
    /// Who reads.
    pub threads: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// Whoever has this grows without asking for more.
    last: Arc<Semaphore>,
    coming: Mutex<Vec<Arc<Coming>>>,
}

/// A body that is being received.
#[derive(Debug)]
struct Coming {
    speed: Mutex<Speed>,
    gives_way: Notify,
}

#[derive(Debug)]
struct Speed {
    bytes: usize,
    /// The begin of the window that is measured, and what had come then.
    since: (Instant, usize),
    /// Bytes per second in the window before.
    before: Option<usize>,
    /// Whether it waits for memory, and so cannot be fast; or was told to go.
    is_excused: bool,
}

impl Speed {
    fn new(now: Instant, bytes: usize) -> Self {
        Self { bytes, since: (now, bytes), before: None, is_excused: false }
    }

    /// Bytes per second, lately; none where that is not known yet.
    fn lately(&self, now: Instant) -> Option<usize> {
        let passed = now - self.since.0;
        let came = self.bytes - self.since.1;
        if passed >= WINDOW { Some((came as f64 / passed.as_secs_f64()) as usize) } else { self.before }
    }

    fn came(&mut self, now: Instant, bytes: usize) {
        self.bytes = bytes;
        let lately = self.lately(now);
        if now - self.since.0 >= WINDOW {
            (self.before, self.since) = (lately, (now, bytes));
        }
    }
}

impl Coming {
    fn speed(&self) -> std::sync::MutexGuard<'_, Speed> {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of a body.
#[derive(Debug, Default)]
pub struct Held(Option<Place>);

/// Where it has it.
#[derive(Debug)]
struct Place {
    lane: Arc<Lane>,
    coming: Arc<Coming>,
    memory: Option<OwnedSemaphorePermit>,
    last: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lane.forget(&self.coming);
    }
}

impl Held {
    /// Comes back when the body has to give way to others.
    pub async fn gives_way(&self) -> ApiError {
        match &self.0 {
            Some(place) => place.coming.gives_way.notified().await,
            None => std::future::pending().await,
        }
        ApiError::GaveWay { least: STEADY / UNIT }
    }

    /// All of it is here: whatever becomes of it now is not the client's doing.
    pub fn mark_complete(&mut self) {
        if let Some(place) = &self.0 {
            place.lane.forget(&place.coming);
        }
    }
}

impl Lane {
    /// Reads bodies up to some bytes in so many threads, and holds so many bytes of them at once, and one body more.
    pub fn new(longest: usize, threads: usize, bytes: usize) -> Arc<Self> {
        let units = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let [threads, memory, last] = [threads, units, 1].map(|permits| Arc::new(Semaphore::new(permits)));
        Arc::new(Self { longest, threads, memory, last, coming: Mutex::default() })
    }

    /// Waits until a body may have grown to so many bytes. What has not come yet holds nothing.
    ///
    /// # Errors
    /// Too much of others has come, or the body has to give way to them.
    pub async fn hold(self: &Arc<Self>, held: &mut Held, bytes: usize) -> Result<(), ApiError> {
        if bytes <= FREE {
            return Ok(());
        }
        if held.0.as_ref().is_none_or(|place| !Arc::ptr_eq(&place.lane, self)) {
            // What it had elsewhere it keeps until there is room here.
            let place = self.enter(bytes);
            let place = self.grow(place, bytes).await?;
            held.0 = Some(place);
            return Ok(());
        }
        if let Some(place) = held.0.take() {
            held.0 = Some(self.grow(place, bytes).await?);
        }
        Ok(())
    }

    fn enter(self: &Arc<Self>, bytes: usize) -> Place {
        let speed = Mutex::new(Speed::new(Instant::now(), bytes));
        let coming = Arc::new(Coming { speed, gives_way: Notify::new() });
        self.coming().push(Arc::clone(&coming));
        Place { lane: Arc::clone(self), coming, memory: None, last: None }
    }

    async fn grow(&self, mut place: Place, bytes: usize) -> Result<Place, ApiError> {
        place.coming.speed().came(Instant::now(), bytes);
        let has = FREE / UNIT + place.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(UNIT).saturating_sub(has);
        if more == 0 || place.last.is_some() {
            return Ok(place);
        }
        // In portions, so that not every packet asks.
        let units = u32::try_from(more.next_multiple_of((self.longest.min(1 << 20) / UNIT / 4).max(1))).unwrap_or(u32::MAX);
        let memory = match Arc::clone(&self.memory).try_acquire_many_owned(units) {
            Ok(memory) => memory,
            Err(_) => match self.wait(&place.coming, units).await? {
                Room::Memory(memory) => memory,
                Room::Last(last) => {
                    place.last = Some(last);
                    return Ok(place);
                }
            },
        };
        match &mut place.memory {
            Some(same) => same.merge(memory),
            none => *none = Some(memory),
        }
        Ok(place)
    }

    async fn wait(&self, coming: &Coming, units: u32) -> Result<Room, ApiError> {
        let full = || ApiError::NotReady("too many long bodies are being received; try again".to_owned());
        let (mut memory, mut last) =
            (pin!(Arc::clone(&self.memory).acquire_many_owned(units)), pin!(Arc::clone(&self.last).acquire_owned()));
        let until = Instant::now() + TURN;
        coming.speed().is_excused = true;
        let room = loop {
            self.ask_slowest(Instant::now());
            tokio::select! {
                biased;
                memory = &mut memory => break Room::Memory(memory.map_err(|_| full())?),
                last = &mut last => break Room::Last(last.map_err(|_| full())?),
                () = tokio::time::sleep_until(until.min(Instant::now() + LOOK)) => {}
            }
            if Instant::now() >= until {
                return Err(full());
            }
        };
        let mut speed = coming.speed();
        *speed = Speed::new(Instant::now(), speed.bytes);
        Ok(room)
    }

    /// Has the slowest of those that are too slow give way.
    fn ask_slowest(&self, now: Instant) {
        let slow = |coming: &Arc<Coming>| {
            let speed = coming.speed();
            let lately = speed.lately(now).filter(|lately| !speed.is_excused && *lately < STEADY)?;
            Some((lately, std::cmp::Reverse(speed.bytes), Arc::clone(coming)))
        };
        let slowest = self.coming().iter().filter_map(slow).min_by_key(|(lately, bytes, _)| (*lately, *bytes));
        if let Some((_, _, coming)) = slowest {
            coming.speed().is_excused = true;
            coming.gives_way.notify_one();
        }
    }

    fn forget(&self, coming: &Arc<Coming>) {
        self.coming().retain(|other| !Arc::ptr_eq(other, coming));
    }

    fn coming(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Coming>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a body that waited got.
enum Room {
    Memory(OwnedSemaphorePermit),
    Last(OwnedSemaphorePermit),
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const SOON: Duration = Duration::from_secs(10);

    async fn grown(lane: &Arc<Lane>, bytes: usize) -> Held {
        let mut held = Held::default();
        tokio::time::timeout(SOON, lane.hold(&mut held, bytes)).await.unwrap().unwrap();
        held
    }

    #[tokio::test]
    async fn the_slowest_gives_way_at_once() {
        let lane = Lane::new(MIB, 1, 4 * MIB);
        let mut hogs = Vec::new();
        for _ in 0..4 {
            hogs.push(grown(&lane, MIB - 1).await);
        }
        // The room beyond the lane's goes to one that has come whole and takes its time.
        let mut read = grown(&lane, MIB).await;
        read.mark_complete();
        tokio::time::sleep(WINDOW).await;
        let mut polite = Held::default();
        let (got, asked) = tokio::join!(tokio::time::timeout(SOON, lane.hold(&mut polite, 100 << 10)), async {
            let waits: Vec<_> =
                hogs.into_iter().map(|hog| tokio::spawn(async move { hog.gives_way().await.reason().to_owned() })).collect();
            let mut asked = 0;
            for wait in waits {
                asked += usize::from(tokio::time::timeout(2 * LOOK, wait).await.is_ok());
            }
            asked
        });
        got.expect("it does not wait for the hogs").unwrap();
        assert_eq!(asked, 1, "and no more of them went than it needed");
    }

    #[tokio::test]
    async fn half_of_many_do_not_wait_for_each_other() {
        let lane = Lane::new(MIB, 1, 8 * MIB);
        let mut tasks = Vec::new();
        let all = Arc::new(tokio::sync::Barrier::new(16));
        for _ in 0..16 {
            let (lane, all) = (Arc::clone(&lane), Arc::clone(&all));
            tasks.push(tokio::spawn(async move {
                let mut held = grown(&lane, MIB / 2).await;
                all.wait().await;
                lane.hold(&mut held, MIB).await
            }));
        }
        for task in tasks {
            tokio::time::timeout(SOON, task).await.expect("each gets its end in turn").unwrap().unwrap();
        }
        assert!(lane.coming().is_empty(), "nothing stays behind");
        assert_eq!((lane.memory.available_permits(), lane.last.available_permits()), (8 << 10, 1));
    }

    #[test]
    fn speed_is_that_of_late() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut speed = Speed::new(begun, 0);
        speed.came(after(10), 30 * MIB);
        assert_eq!(speed.lately(after(500)), None, "not known yet");
        speed.came(after(1000), 30 * MIB + 1);
        assert!(speed.lately(after(1500)).unwrap() > 29 * MIB);
        for second in 2..5 {
            speed.came(after(second * 1000), 30 * MIB + second as usize);
        }
        assert_eq!(speed.lately(after(4500)), Some(1), "what came fast is no leave to trickle");
        assert_eq!(speed.lately(after(60_000)), Some(0));
    }
}
