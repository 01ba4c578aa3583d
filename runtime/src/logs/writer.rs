//! Lines on their way to a file that may stand still. They gather in memory and a thread writes them in one go, a few milliseconds after the first: whoever
//! says a line never waits, and a thousand lines a second do not wake that thread a thousand times. Lines that find no room are counted and dropped.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait: a second of a process that says a line for everything it does.
const ROOM: usize = 4 << 20;
/// Lines gather for so long.
const GATHER: Duration = Duration::from_millis(5);
/// What waits at the end of the process is written within this, or lost.
const LAST: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    over: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Condvar,
    dropped: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes lines. Every write is one.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("dropped", &self.dropped()).finish()
    }
}

/// Its end writes what waits.
pub struct Guard {
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// Starts the thread that writes to `out`.
///
/// # Errors
/// The system gives no thread.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(Writer, Guard)> {
    let shared = Arc::<Shared>::default();
    let (end, ended) = channel();
    let of_thread = Arc::clone(&shared);
    std::thread::Builder::new().name("logs".to_owned()).spawn(move || write(&of_thread, out, end))?;
    Ok((Writer(Arc::clone(&shared)), Guard { shared, ended }))
}

fn write(shared: &Shared, mut out: impl Write, end: Sender<()>) {
    let mut bytes = Vec::new();
    loop {
        {
            let waiting = shared.lock();
            let idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.over;
            let waiting = shared.came.wait_while(waiting, idle).unwrap_or_else(PoisonError::into_inner);
            if waiting.bytes.is_empty() {
                break;
            }
            let over = |waiting: &mut Waiting| !waiting.over;
            let (mut waiting, _) = shared.came.wait_timeout_while(waiting, GATHER, over).unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut bytes, &mut waiting.bytes);
        }
        // Nobody is left to tell of an error here.
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
        bytes.clear();
        bytes.shrink_to(ROOM / 64);
    }
    let _ = end.send(());
}

impl Writer {
    /// Lines that found no room.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.bytes.len().saturating_add(line.len()) > ROOM {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        if first {
            self.0.came.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.came.notify_one();
        let _ = self.ended.recv_timeout(LAST);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Hands on what is written, once it may.
    struct Slow {
        gate: Receiver<()>,
        out: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.gate.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.out.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (mpsc::Sender<()>, Receiver<Vec<u8>>, Writer, Guard) {
        let ((open, gate), (out, written)) = (channel(), channel());
        let (writer, guard) = start(Slow { gate, out }).unwrap();
        (open, written, writer, guard)
    }

    #[test]
    fn lines_come_out_in_order_and_the_end_writes_the_rest() {
        let (open, written, mut writer, guard) = slow();
        for _ in 0..2 {
            open.send(()).unwrap();
        }
        writer.write_all(b"one\n").unwrap();
        writer.write_all(b"two\n").unwrap();
        drop(guard);
        let all: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(all, b"one\ntwo\n");
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_stands_still() {
        let (open, written, mut writer, guard) = slow();
        let line = vec![b'x'; 1 << 20];
        let started = Instant::now();
        // As many as there is room for may be with the reader already, and as many behind them.
        for _ in 0..12 {
            writer.write_all(&line).unwrap();
            std::thread::sleep(GATHER);
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        let dropped = writer.dropped();
        assert!((4..=8).contains(&dropped), "{dropped}");
        drop(open);
        drop(guard);
        drop(written);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let (_open, _written, mut writer, guard) = slow();
        writer.write_all(b"x").unwrap();
        let started = Instant::now();
        drop(guard);
        assert!((LAST..LAST * 5).contains(&started.elapsed()));
    }
}
