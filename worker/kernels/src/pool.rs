//! [`Pool`]: the threads of one device. Work is shared statically: every thread is told its number and computes its share; nobody
//! takes work from anybody. Who waits spins a little and then sleeps; with more threads than cores it sleeps at once.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// Looks at the next piece of work before a thread sleeps: some 20 µs, what lies between two products of a step. To wake a
/// thread takes 5 to 50 µs.
const SPINS: u32 = 4000;
/// Sleepers look by themselves as often: a wake that was missed costs a moment, never a standstill.
const NAP: Duration = Duration::from_millis(100);

/// Work: called with the number of each share.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct State {
    /// Numbers pieces of work; the lowest bit says that the pool ends.
    round: AtomicU64,
    /// Of the present round; null between rounds.
    work: AtomicPtr<&'static Work<'static>>,
    /// Threads that have not ended the round.
    left: AtomicUsize,
    /// The first panic of the round.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whoever waits for the end of the round, and whether it sleeps.
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    spins: u32,
}

/// Threads that compute together. One caller at a time: `run` takes `&mut self`.
pub struct Pool {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pool").field("threads", &self.shares()).finish_non_exhaustive()
    }
}

const END: u64 = 1;
const ROUND: u64 = 2;

impl Pool {
    /// `threads` threads, the caller among them; 0 counts as 1.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_spins(threads, if threads <= cores { SPINS } else { 0 })
    }

    fn with_spins(threads: usize, spins: u32) -> std::io::Result<Self> {
        let state = Arc::new(State {
            round: AtomicU64::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            left: AtomicUsize::new(0),
            panic: Mutex::new(None),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            spins,
        });
        let mut pool = Self { state, threads: Vec::new(), sleepers: Vec::new() };
        for share in 1..threads {
            let state = pool.state.clone();
            let thread = std::thread::Builder::new().name(format!("compute-{share}")).spawn(move || help(&state, share))?;
            pool.sleepers.push(thread.thread().clone());
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads, the caller among them.
    pub fn shares(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work` once with every number below [`Self::shares`], each on a thread of its own, and returns when all have ended. A
    /// panic of one is the caller's.
    pub fn run(&mut self, work: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return work(0);
        }
        let state = &*self.state;
        // SAFETY: nobody uses it after `left` is 0, and this call does not return before.
        let mut lasting = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        state.work.store(&raw mut lasting, Ordering::Relaxed);
        state.left.store(self.threads.len(), Ordering::Relaxed);
        state.round.fetch_add(ROUND, Ordering::Release);
        self.sleepers.iter().for_each(Thread::unpark);
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        let mut spins = state.spins;
        while state.left.load(Ordering::Acquire) != 0 {
            if spins > 0 {
                spins -= 1;
                std::hint::spin_loop();
                continue;
            }
            *state.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
            state.caller_sleeps.store(true, Ordering::SeqCst);
            if state.left.load(Ordering::SeqCst) != 0 {
                std::thread::park_timeout(NAP);
            }
            state.caller_sleeps.store(false, Ordering::Relaxed);
        }
        state.work.store(std::ptr::null_mut(), Ordering::Relaxed);
        let theirs = state.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `work` with every number below `items`; threads take them in turn. Threads that have none are not called.
    pub fn each(&mut self, items: usize, work: impl Fn(usize) + Sync) {
        let shares = self.shares().min(items);
        if shares <= 1 {
            return (0..items).for_each(work);
        }
        self.run(&|share| {
            if share < shares {
                (share..items).step_by(shares).for_each(&work);
            }
        });
    }

    /// Calls `work` with every thread's part of `0..items`, in whole multiples of `grain`. Threads whose part is empty are not called.
    pub fn share(&mut self, items: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        let shares = self.shares();
        let grains = items.div_ceil(grain.max(1));
        if shares == 1 || grains <= 1 {
            return if items > 0 {
                work(0..items)
            };
        }
        self.run(&|share| {
            let part = part(grains, shares, share);
            let part = part.start * grain..(part.end * grain).min(items);
            if !part.is_empty() {
                work(part);
            }
        });
    }
}

/// Part `share` of `0..items`, all parts alike but for one.
fn part(items: usize, shares: usize, share: usize) -> Range<usize> {
    items * share / shares..items * (share + 1) / shares
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.round.fetch_or(END, Ordering::Release);
        self.sleepers.iter().for_each(Thread::unpark);
        for thread in self.threads.drain(..) {
            // A panic was told to whoever ran the work.
            let _ = thread.join();
        }
    }
}

/// A helping thread's life.
fn help(state: &State, share: usize) {
    let mut seen = 0;
    loop {
        let mut spins = state.spins;
        let round = loop {
            let round = state.round.load(Ordering::Acquire);
            if round != seen {
                break round;
            }
            if spins > 0 {
                spins -= 1;
                std::hint::spin_loop();
            } else {
                // An unpark that came before this is kept by the thread.
                std::thread::park_timeout(NAP);
            }
        };
        if round & END != 0 {
            return;
        }
        seen = round;
        let work = state.work.load(Ordering::Relaxed);
        // SAFETY: the caller keeps it until `left` is 0, which this thread has its part in.
        let work = unsafe { *work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(share))) {
            state.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        if state.left.fetch_sub(1, Ordering::SeqCst) == 1 && state.caller_sleeps.load(Ordering::SeqCst) {
            state.caller.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Thread::unpark);
        }
    }
}

/// Memory that several threads write, each in places that no other one touches.
#[derive(Debug, Clone, Copy)]
pub struct Shared<'a> {
    start: *mut f32,
    len: usize,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it hands out pieces by `unsafe` only, whose callers promise that no two overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Memory to be shared.
    pub fn new(memory: &'a mut [f32]) -> Self {
        Self { start: memory.as_mut_ptr(), len: memory.len(), _borrowed: PhantomData }
    }

    /// Numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A piece of it. Panics where it does not fit.
    ///
    /// # Safety
    /// While this lives nobody else reads or writes these places.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that pieces do not overlap")]
    pub unsafe fn piece(&self, places: Range<usize>) -> &'a mut [f32] {
        assert!(places.start <= places.end && places.end <= self.len, "{places:?} of {}", self.len);
        // SAFETY: within the memory, and nobody else's as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(places.start), places.len()) }
    }

    /// Where a place lies. Panics where there is none.
    pub(crate) fn place(&self, place: usize) -> *mut f32 {
        assert!(place < self.len, "{place} of {}", self.len);
        // SAFETY: within the memory.
        unsafe { self.start.add(place) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_runs_once_and_each_thread_has_one() {
        for (threads, spins) in [(1, SPINS), (2, SPINS), (3, 0), (7, 0), (7, 50)] {
            let mut pool = Pool::with_spins(threads, spins).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..300 {
                pool.run(&|share| {
                    counts[share].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 300), "{threads} threads: {counts:?}");
        }
    }

    #[test]
    fn shares_are_whole_grains_and_cover_all() {
        let mut pool = Pool::with_spins(3, 0).unwrap();
        for (items, grain) in [(0, 8), (1, 8), (8, 8), (17, 8), (100, 1), (23, 24), (1000, 12)] {
            let mut memory = vec![0.0; items];
            let shared = Shared::new(&mut memory);
            pool.share(items, grain, |part| {
                assert_eq!(part.start % grain, 0);
                // SAFETY: parts do not overlap.
                unsafe { shared.piece(part) }.iter_mut().for_each(|x| *x += 1.0);
            });
            assert!(memory.iter().all(|x| *x == 1.0), "{items} in {grain}: {memory:?}");
        }
    }

    #[test]
    fn a_panic_is_the_callers_and_the_pool_goes_on() {
        for panicking in [0, 2] {
            let mut pool = Pool::with_spins(3, 10).unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|share| assert_ne!(share, panicking))));
            assert!(caught.is_err());
            let ran = AtomicUsize::new(0);
            pool.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed), 3);
        }
    }
}
