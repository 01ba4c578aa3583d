//! [`Guarded`]: mapped files whose pages may cease to be there. Reading such a page raises SIGBUS, which ends the process; here the
//! map becomes zeros and is marked instead, so that computing goes on with numbers that nobody may use: whoever reads a map asks its
//! mark afterwards.
//!
//! The handler is the process's, because signals are. It knows the guarded ranges and nothing else: a fault elsewhere goes to whoever
//! was asked before, and ends the process where nobody was.

use std::io;
use std::ptr::without_provenance_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};

/// Files that are mapped at once at most. M1 has 413, and a worker has it open twice for a moment.
const PLACES: usize = 4096;

/// All guarded ranges. The handler reads it without a lock.
static TABLE: [Place; PLACES] = [const { Place::free() }; PLACES];
/// Held by who writes the table; never by the handler.
static WRITER: Mutex<()> = Mutex::new(());
/// Whether any range was ever marked.
static ANY: AtomicBool = AtomicBool::new(false);
/// Who was asked before this handler, or what the system said about that.
static PREVIOUS: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

/// A range of memory in which a file is mapped. Not guarded any more when it is dropped, which has to be before the map is.
#[derive(Debug)]
pub(crate) struct Guarded(usize);

impl Guarded {
    /// Guards a map of a file that begins at `map`.
    ///
    /// # Errors
    /// Too many files are mapped, or the system takes no handler.
    pub fn new(map: &memmap2::Mmap) -> io::Result<Self> {
        if let Err(code) = PREVIOUS.get_or_init(install) {
            return Err(io::Error::from_raw_os_error(*code));
        }
        // What is mapped is whole pages, one of them for a file without a byte.
        let (start, length) = (map.as_ptr().addr(), map.len().max(1).next_multiple_of(rustix::param::page_size()));
        let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
        let place = TABLE.iter().position(|place| place.range().is_none());
        let place = place.ok_or_else(|| io::Error::other(format!("{PLACES} files are mapped already")))?;
        TABLE[place].marked.store(false, Ordering::Relaxed);
        TABLE[place].write(start, length);
        Ok(Self(place))
    }

    /// Whether it is zeros by now, or somebody has marked it.
    pub fn is_marked(&self) -> bool {
        TABLE[self.0].marked.load(Ordering::Acquire)
    }

    /// Says that what is read in it is worth nothing.
    pub fn mark(&self) {
        TABLE[self.0].mark();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.0].write(0, 0);
    }
}

/// Whether some map of this process was ever marked; while none was, there is none to be asked. To be called after reading: what was read
/// before the mark counts as good.
pub fn any_changed() -> bool {
    // What was read before is not read after it.
    fence(Ordering::Acquire);
    ANY.load(Ordering::Acquire)
}

/// A range, or nothing.
struct Place {
    /// Grows with every change of what follows, and is odd while it is made.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0 where the place is free.
    length: AtomicUsize,
    marked: AtomicBool,
}

impl Place {
    const fn free() -> Self {
        let [version, start, length] = [const { AtomicUsize::new(0) }; 3];
        Self { version, start, length, marked: AtomicBool::new(false) }
    }

    /// By one writer at a time.
    fn write(&self, start: usize, length: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    /// Start and length. None while it is written too: who reads in a range keeps it from changing.
    fn range(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let (start, length) = (self.start.load(Ordering::Relaxed), self.length.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (is_whole && length > 0).then_some((start, length))
    }

    fn mark(&self) {
        self.marked.store(true, Ordering::SeqCst);
        ANY.store(true, Ordering::SeqCst);
    }
}

/// Takes SIGBUS over; what was done about it before.
fn install() -> Result<libc::sigaction, i32> {
    let failed = || Err(io::Error::last_os_error().raw_os_error().unwrap_or_default());
    // SAFETY: all zeros is an action: the default one, no flags, no signals blocked.
    let (mut previous, mut action): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    // Threads have a stack of their own for signals, where their library made one.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both point to actions, and the handler calls nothing that a signal handler may not call.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, &mut previous) } {
        0 => Ok(previous),
        _ => failed(),
    }
}

/// Called in the thread that faults, in the middle of whatever it does: takes no lock, allocates nothing.
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel gives what it knows of the signal; of a fault there is an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Otherwise a process sent it, and there is no address.
    let is_fault = code > 0;
    if is_fault && zeroed(address) {
        return;
    }
    match PREVIOUS.get() {
        Some(Ok(previous)) if is_fault && ![libc::SIG_DFL, libc::SIG_IGN].contains(&previous.sa_sigaction) => {
            // SAFETY: the system had this number for a handler of this signature, and calls it with these arguments.
            unsafe {
                if previous.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = std::mem::transmute(previous.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(c_int) = std::mem::transmute(previous.sa_sigaction);
                    handler(signal);
                }
            }
        }
        // SAFETY: both may be called here. A fault comes again when this returns; what was sent comes again because it is raised.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if !is_fault {
                libc::raise(signal);
            }
        },
    }
}

/// Marks the range with this address and makes zeros of all of it: it is worth nothing any more, and must not fault page by page. False:
/// there is none, or the system refuses.
fn zeroed(address: usize) -> bool {
    let of = |place: &'static Place| {
        let (start, length) = place.range()?;
        (start..start + length).contains(&address).then_some((place, start, length))
    };
    let Some((place, start, length)) = TABLE.iter().find_map(of) else { return false };
    // Before there is a zero to be read.
    place.mark();
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the whole range is a map of a file that this process may only read, and that stays while the thread which faulted reads in
    // it. Readers find zeros in it from now on, and it is unmapped as before.
    let zeros = unsafe { libc::mmap(without_provenance_mut(start), length, libc::PROT_READ, flags, -1, 0) };
    zeros != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let map = memmap2::MmapOptions::new().len(1).map_anon().unwrap().make_read_only().unwrap();
        for _ in 0..2 {
            let mut all = Vec::new();
            let error = loop {
                match Guarded::new(&map) {
                    Ok(guarded) => all.push(guarded),
                    Err(error) => break error,
                }
            };
            assert!(all.len() > PLACES - 100 && error.to_string().contains("4096 files"), "{} places, {error}", all.len());
            all[0].mark();
            assert!(all[0].is_marked() && !all[1].is_marked() && any_changed());
        }
        assert!(!Guarded::new(&map).unwrap().is_marked(), "a place that is used again is not marked any more");
    }
}
