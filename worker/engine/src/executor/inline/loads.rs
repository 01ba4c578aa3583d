//! Experts on their way in. A thread for each load brings them, because reading may take minutes; the executor holds what has come when it
//! is looked after.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::super::command::Completion;
use super::super::error::ExecutorError;
use super::super::network::{Network, Progress};

type Bring<N> = Box<
    dyn FnOnce(&<N as Network>::Weights, Progress<'_>, &mut dyn FnMut(<N as Network>::Brought)) -> Result<(), ExecutorError> + Send,
>;

enum News<N: Network> {
    Brought(N::Brought),
    Ended(Result<(), ExecutorError>),
}

struct Load<N: Network> {
    news: Receiver<News<N>>,
    read: Arc<AtomicU64>,
    told: u64,
}

impl<N: Network> Load<N> {
    /// Says how much is read, where that has grown.
    fn tell(&mut self, done: &mut VecDeque<Completion>) {
        let read = self.read.load(Ordering::Relaxed);
        if read != self.told {
            self.told = read;
            done.push_back(Completion::Loading { read });
        }
    }
}

/// All of an executor.
pub(super) struct Loads<N: Network>(VecDeque<Load<N>>);

impl<N: Network> Loads<N> {
    pub fn none() -> Self {
        Self(VecDeque::new())
    }

    /// Begins one.
    pub fn start(&mut self, bring: Bring<N>, weights: N::Weights) {
        let (tell, news) = channel();
        let read = Arc::new(AtomicU64::new(0));
        let (so_far, failed) = (read.clone(), tell.clone());
        let spawned = std::thread::Builder::new().name("load".into()).spawn(move || {
            let mut progress = |bytes| so_far.store(bytes, Ordering::Relaxed);
            // Whoever asked may be gone; then nobody hears of it.
            let mut take = |brought| drop(tell.send(News::Brought(brought)));
            let result = bring(&weights, &mut progress, &mut take);
            drop(tell.send(News::Ended(result)));
        });
        if let Err(error) = spawned {
            drop(failed.send(News::Ended(Err(no_thread(&format!("cannot be started: {error}"))))));
        }
        self.0.push_back(Load { news, read, told: 0 });
    }

    /// Holds what has come, and says so. True: something has.
    pub fn take(&mut self, network: &mut N, done: &mut VecDeque<Completion>) -> bool {
        let mut brought = false;
        self.0.retain_mut(|load| {
            load.tell(done);
            loop {
                let result = match load.news.try_recv() {
                    Ok(News::Brought(what)) => {
                        network.hold(what);
                        brought = true;
                        continue;
                    }
                    Ok(News::Ended(result)) => result,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => Err(no_thread("has panicked")),
                };
                // What was read last may have come since.
                load.tell(done);
                done.push_back(Completion::Loaded { result });
                return false;
            }
        });
        brought
    }
}

fn no_thread(what: &str) -> ExecutorError {
    ExecutorError::Weights { reason: "LoadThread", message: format!("the thread that loads experts {what}") }
}
