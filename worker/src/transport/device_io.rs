//! Connections that the device thread drives itself, those of the decode lane: while it waits it sleeps on their sockets, so a frame that comes wakes it and
//! nobody else. While it computes nobody reads or writes there, until its next look between two pieces of work.
//!
//! So nothing here may judge by the clock on the wall: a device that computes for a minute has not waited for one, see [`looked_for`]. Nor may
//! whoever is connected take the device's time: a look is bounded, and after a long one the device computes for as long.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, yield_now};

/// Connections of peers at once: one of every other pod, as there may be, and as many that take their place. Further ones are served on the IO threads.
const ROOM: usize = 2 * m1_exchange::MAX_PODS;
/// Tasks between two looks at the sockets: few, so that what wakes the device does not wait behind all of them.
const TASKS: u32 = 16;
/// A look ends after this.
const LOOK: Duration = Duration::from_millis(1);
/// Parts in which [`looked_for`] waits.
const PARTS: u32 = 50;
/// Between two looks at what is left to be sent when the device ends.
const ENDING: Duration = Duration::from_millis(5);

/// What a device thread drives. It belongs to that thread; others reach it by its [`DeviceIoHandle`].
#[derive(Debug)]
pub struct DeviceIo {
    /// Present until this is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    shared: Arc<Shared>,
    /// No look before this.
    rest_until: Option<Instant>,
}

/// Hands connections and tasks to a [`DeviceIo`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceIoHandle {
    runtime: Handle,
    shared: Arc<Shared>,
}

/// What connections and their device know of each other.
#[derive(Debug)]
pub(super) struct Shared {
    began: Instant,
    /// When the look that is under way ends, in microseconds from `began`; `u64::MAX` while the device waits.
    until: AtomicU64,
    /// Number of the look that is under way, or was last.
    look: AtomicU64,
    /// Bytes that have gone through sockets.
    moved: AtomicU64,
    /// Who goes on with the next look.
    held: Mutex<Held>,
    /// The device's thread, once it has looked.
    thread: OnceLock<ThreadId>,
    /// Whether that thread drives connections now.
    drives: AtomicBool,
    /// Connections that stand.
    pub(super) open: AtomicUsize,
    room: Arc<Semaphore>,
}

/// Tasks that go on with the next look, in this order: whoever was not read in one goes before whoever was, so nobody who sends without end keeps
/// others from being read.
#[derive(Debug, Default)]
struct Held {
    unread: Vec<Waker>,
    read: Vec<Waker>,
}

impl Shared {
    /// A task goes on with the next look; `read`: in this one something was read for it.
    pub(super) fn hold(&self, task: &Waker, read: bool) {
        let mut held = self.held();
        match read {
            true => held.read.push(task.clone()),
            false => held.unread.push(task.clone()),
        }
    }

    /// Whether this is the device's thread, and something else is done there than driving connections.
    pub(super) fn between_looks(&self) -> bool {
        !self.drives.load(Ordering::Relaxed) && self.thread.get() == Some(&std::thread::current().id())
    }

    /// Drives connections on this thread until `until` is there.
    fn drive<T>(&self, runtime: &Runtime, until: impl Future<Output = T>) -> T {
        self.thread.get_or_init(|| std::thread::current().id());
        self.drives.store(true, Ordering::Relaxed);
        let done = runtime.block_on(async {
            self.release();
            until.await
        });
        self.drives.store(false, Ordering::Relaxed);
        done
    }

    fn release(&self) {
        let Held { unread, read } = std::mem::take(&mut *self.held());
        unread.into_iter().chain(read).for_each(Waker::wake);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self) -> u64 {
        self.look.load(Ordering::Relaxed)
    }

    /// Whether the look that is under way should end.
    pub(super) fn over(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until != u64::MAX && self.began.elapsed().as_micros() as u64 >= until
    }

    /// So many bytes have gone through a socket.
    pub(super) fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl DeviceIo {
    /// Without any connection.
    ///
    /// # Errors
    /// The operating system gives no event queue.
    pub fn new() -> io::Result<Self> {
        let shared = Shared {
            began: Instant::now(),
            until: AtomicU64::new(u64::MAX),
            look: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            held: Mutex::default(),
            thread: OnceLock::new(),
            drives: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(ROOM)),
        };
        let runtime = Builder::new_current_thread().enable_all().event_interval(TASKS).build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle, shared: Arc::new(shared), rest_until: None })
    }

    /// The handle for others.
    pub fn handle(&self) -> DeviceIoHandle {
        DeviceIoHandle { runtime: self.handle.clone(), shared: self.shared.clone() }
    }

    /// Waits for a message and drives the connections meanwhile. None: nobody can send one any more.
    pub fn wait<T>(&mut self, inbox: &mut mpsc::Receiver<T>) -> Option<T> {
        if let Ok(message) = inbox.try_recv() {
            // Messages of others do not keep the connections from being looked at.
            self.look();
            return Some(message);
        }
        let shared = &self.shared;
        shared.until.store(u64::MAX, Ordering::Relaxed);
        shared.drive(self.runtime.as_ref()?, inbox.recv())
    }

    /// Sends what can be sent and reads what has come, without waiting for more.
    pub fn look(&mut self) {
        let (Some(runtime), began) = (&self.runtime, Instant::now()) else { return };
        if self.rest_until.is_some_and(|until| began < until) {
            return;
        }
        let shared = &*self.shared;
        let until = began.duration_since(shared.began) + LOOK;
        shared.until.store(until.as_micros() as u64, Ordering::Relaxed);
        shared.look.fetch_add(1, Ordering::Relaxed);
        let cut = shared.drive(runtime, async {
            // What is to be done is done before the first of these ends, and what has come is found then; it is read before the second ends.
            yield_now().await;
            let mut moved = None;
            while moved != Some(shared.moved.load(Ordering::Relaxed)) {
                if shared.over() {
                    return true;
                }
                moved = Some(shared.moved.load(Ordering::Relaxed));
                yield_now().await;
            }
            false
        });
        self.rest_until = cut.then(|| began + began.elapsed() * 2);
    }

    /// Ends: what connections have to send still goes out, within the limit.
    pub fn finish(self, limit: Duration) {
        let (Some(runtime), began, shared) = (&self.runtime, Instant::now(), &self.shared) else { return };
        shared.until.store(u64::MAX, Ordering::Relaxed);
        shared.drive(runtime, async {
            while shared.open.load(Ordering::Relaxed) > 0 && began.elapsed() < limit {
                tokio::time::sleep(ENDING).await;
            }
        });
    }
}

impl Drop for DeviceIo {
    fn drop(&mut self) {
        // Where a device does not start this is dropped by an async task, which must not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl DeviceIoHandle {
    /// Runs a task where the device drives it.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }

    /// Room for one more peer's connection, if there is any.
    pub(super) fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.shared.room.clone().try_acquire_owned().ok()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// Passes when the device has looked for so long. Time in which it computed counts as one part of many at most, and what came in that time is read
/// before this passes.
pub(super) async fn looked_for(length: Duration) {
    for _ in 0..PARTS {
        tokio::time::sleep(length / PARTS).await;
    }
    for _ in 0..4 {
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nobody_looked_is_not_waited() {
        let mut io = DeviceIo::new().unwrap();
        let length = Duration::from_millis(500);
        let waiting = io.handle().spawn(looked_for(length));
        io.look();
        std::thread::sleep(length * 2);
        io.look();
        assert!(!waiting.is_finished());
        let (_sender, mut inbox) = mpsc::channel::<()>(1);
        let began = Instant::now();
        while !waiting.is_finished() {
            assert!(began.elapsed() < length * 20, "it never passes");
            io.look();
            assert!(inbox.try_recv().is_err());
        }
        assert!(began.elapsed() > length / 2, "after {:?}", began.elapsed());
    }

    #[test]
    fn a_look_does_what_is_due_and_does_not_wait() {
        let mut io = DeviceIo::new().unwrap();
        let (sender, mut inbox) = mpsc::channel(1);
        io.handle().spawn(async move {
            for word in 0..3 {
                sender.send(word).await.unwrap();
            }
        });
        io.look();
        assert_eq!(inbox.try_recv().ok(), Some(0));
        assert_eq!((0..3).map(|_| io.wait(&mut inbox)).collect::<Vec<_>>(), [Some(1), Some(2), None], "its sender is gone");
    }

    #[test]
    fn what_comes_without_end_ends_a_look_and_then_the_device_has_its_time() {
        let mut io = DeviceIo::new().unwrap();
        let (shared, limit) = (io.shared.clone(), Instant::now() + LOOK * 5000);
        io.handle().spawn(async move {
            while Instant::now() < limit {
                shared.count(1);
                yield_now().await;
            }
        });
        let (began, mut looked) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < LOOK * 100 {
            let before = Instant::now();
            io.look();
            looked += Some(before.elapsed()).filter(|took| *took > LOOK / 2).unwrap_or_default();
        }
        assert!(looked < LOOK * 70, "{looked:?} of {:?}", began.elapsed());
    }

    #[test]
    fn messages_of_others_do_not_keep_the_connections_waiting() {
        let mut io = DeviceIo::new().unwrap();
        let (sender, mut inbox) = mpsc::channel(8);
        (0..8).for_each(|word| sender.try_send(word).unwrap());
        let task = io.handle().spawn(async {});
        assert_eq!(io.wait(&mut inbox), Some(0));
        assert!(task.is_finished());
    }

    #[test]
    fn whoever_was_not_read_goes_first_in_the_next_look() {
        struct Word(&'static str, mpsc::Sender<&'static str>);
        impl std::task::Wake for Word {
            fn wake(self: Arc<Self>) {
                self.1.try_send(self.0).unwrap();
            }
        }
        let mut io = DeviceIo::new().unwrap();
        let (sender, mut woken) = mpsc::channel(3);
        for (word, read) in [("read", true), ("first", false), ("second", false)] {
            io.shared.hold(&Waker::from(Arc::new(Word(word, sender.clone()))), read);
        }
        assert!(woken.try_recv().is_err());
        io.look();
        assert_eq!([(); 3].map(|()| woken.try_recv().ok()), [Some("first"), Some("second"), Some("read")]);
    }
}
