//! Several files at once: a few threads take one after the other, the caller watches them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::error::SourceError;

/// How often the caller is told.
const LOOK: Duration = Duration::from_millis(200);

/// Does `work` for every item, `streams` at a time. The first error ends all, and so does `watch` with a `Break`; it gets the number of
/// items that are done.
pub(super) fn each<T: Sync>(
    items: &[T],
    streams: usize,
    halt: &AtomicBool,
    work: impl Fn(&T) -> Result<(), SourceError> + Sync,
    mut watch: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<(), SourceError> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..streams.clamp(1, items.len().max(1)) {
            let sender = sender.clone();
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                while !halt.load(Ordering::Relaxed) {
                    let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    // The receiver is there until all threads have ended.
                    let _ = sender.send(work(item));
                }
            });
        }
        drop(sender);
        let (mut done, mut first) = (0, Ok(()));
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(Ok(())) => done += 1,
                Ok(Err(error)) => {
                    halt.store(true, Ordering::Relaxed);
                    if first.is_ok() {
                        first = Err(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if watch(done).is_break() && first.is_ok() {
                halt.store(true, Ordering::Relaxed);
                first = Err(SourceError::Stopped);
            }
        }
        first
    })
}
