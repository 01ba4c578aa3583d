//! The threads that serve clients: an event loop each. A connection stays on the loop that took it, with its requests' sessions and a connection of that
//! loop's own to every worker they go to, so that a token passes from worker to client without waking another thread.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

struct Loop {
    handle: Handle,
    connections: Arc<AtomicUsize>,
}

/// All of them. They end when it is dropped.
pub struct Loops {
    all: Vec<Loop>,
    _stop: DropGuard,
}

impl Loops {
    /// Starts so many threads.
    ///
    /// # Errors
    /// The system gives no thread, or nothing to wait with.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let mut all = Vec::with_capacity(threads);
        for number in 0..threads {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(give_way).build()?;
            all.push(Loop { handle: runtime.handle().clone(), connections: Arc::default() });
            let stopped = stop.clone();
            std::thread::Builder::new().name(format!("loop-{number}")).spawn(move || {
                HERE.set(number);
                runtime.block_on(stopped.cancelled());
                // A long request that is read on a thread of its own must not hold the process.
                runtime.shutdown_background();
            })?;
        }
        Ok(Self { all, _stop: stop.drop_guard() })
    }

    /// Makes one of something for each loop, as if on it.
    pub fn each<T>(&self, make: impl Fn() -> T) -> Box<[T]> {
        let made = self.all.iter().map(|one| {
            let _on = one.handle.enter();
            make()
        });
        made.collect()
    }

    /// Gives a connection to the loop that has the fewest.
    pub fn spawn(&self, tracker: &TaskTracker, connection: impl Future<Output = ()> + Send + 'static) {
        let Some(least) = self.all.iter().min_by_key(|one| one.connections.load(Ordering::Relaxed)) else { return };
        let counted = Counted::new(&least.connections);
        tracker.spawn_on(
            async move {
                connection.await;
                drop(counted);
            },
            &least.handle,
        );
    }
}

/// Threads beside the loops read long requests. Where there are few cores they must not keep everybody else from theirs.
fn give_way() {
    /// Of 19.
    const NICENESS: i32 = 10;
    // Of this thread alone, on Linux. Where it is not allowed nothing is lost.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// The number of the loop that runs this.
pub fn here() -> usize {
    HERE.get()
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
