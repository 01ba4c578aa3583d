//! [`MappedFile`]: a shard in memory, and whether it is still what was opened.
//!
//! A file that shrinks under its map is found by whoever reads the part that is gone (see `guard.rs`), one that is written to by a look
//! at it: a thread looks at all that are mapped, because a file system that hangs must not hold one that computes. A file that is
//! exchanged by renaming another one over it stays mapped as it was, and is no change.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use memmap2::{Advice, Mmap};

use crate::error::{WeightsError, read_error};
use crate::guard::Guarded;

/// How often files are looked at: what is computed with weights that were written over goes out until then. A look costs one `stat`.
const EVERY: Duration = Duration::from_secs(1);

/// A file that is mapped, read-only.
pub struct MappedFile {
    // Before the map, because it ends first.
    guarded: Guarded,
    map: Mmap,
    path: PathBuf,
    opened: Facts,
}

/// What tells a file from another one, and from itself after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    /// Device and number on it. Nobody else gets the number while the file is mapped.
    identity: (u64, u64),
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Facts {
    fn of(meta: &Metadata) -> Self {
        Self { identity: (meta.dev(), meta.ino()), bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) }
    }
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// It cannot be read or mapped.
    pub(crate) fn open(path: PathBuf) -> Result<Self, WeightsError> {
        let mapped = || {
            let file = File::open(&path)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            // SAFETY: the map is read-only. That others change the file is found out (see this module's head), and numbers have no value
            // that they must not have; a part that is gone reads as zeros.
            let map = unsafe { Mmap::map(&file)? };
            Ok((Guarded::new(&map)?, map, Facts::of(&meta)))
        };
        match mapped() {
            Ok((guarded, map, opened)) => Ok(Self { guarded, map, path, opened }),
            Err(source) => Err(read_error(&path, source)),
        }
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what was read in it before this call is what was opened, as far as anybody has seen. Costs nothing while it is.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> Result<(), WeightsError> {
        if self.guarded.is_marked() { Err(self.changed()) } else { Ok(()) }
    }

    /// The same after a look at the file, which waits for the file system.
    ///
    /// # Errors
    /// It has another size or was written to, now or earlier.
    pub fn look(&self) -> Result<(), WeightsError> {
        if self.now().is_some_and(|now| now != self.opened) {
            self.guarded.mark();
        }
        self.check()
    }

    /// Has a part of it read ahead.
    pub(crate) fn read_ahead(&self, start: usize, length: usize) {
        // Advice only: where it is not taken, the pages come one by one.
        let _ = self.map.advise_range(Advice::WillNeed, start, length);
    }

    /// Says that it will be read here and there: without that every page brings its neighbours.
    pub(crate) fn expect_jumps(&self, jumps: bool) {
        let _ = self.map.advise(if jumps { Advice::Random } else { Advice::Normal });
    }

    /// The file as it is now; none where it has no name any more, or another one has.
    fn now(&self) -> Option<Facts> {
        let now = Facts::of(&fs::metadata(&self.path).ok()?);
        (now.identity == self.opened.identity).then_some(now)
    }

    fn changed(&self) -> WeightsError {
        let now = match self.now() {
            Some(now) if now.bytes != self.opened.bytes => format!("it has {} now", now.bytes),
            Some(now) if now != self.opened => "it was written to since".into(),
            Some(_) => "a part of it could not be read".into(),
            None => "it was cut short or written to, and another one or none is there now".into(),
        };
        WeightsError::Changed { path: self.path.clone(), opened: self.opened.bytes, now }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "MappedFile({}, {} bytes)", self.path.display(), self.opened.bytes)
    }
}

/// Files that are looked at.
struct Watched {
    files: Vec<Weak<MappedFile>>,
    /// Whether there is a thread that does it. It ends when no file is left.
    by_thread: bool,
}

static WATCHED: Mutex<Watched> = Mutex::new(Watched { files: Vec::new(), by_thread: false });

/// Has files looked at from now on, as long as they are mapped.
pub(crate) fn watch(files: &[Arc<MappedFile>]) {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    watched.files.extend(files.iter().map(Arc::downgrade));
    if !watched.by_thread {
        let spawned = thread::Builder::new().name("weights".into()).spawn(look_at_all);
        watched.by_thread = spawned.inspect_err(|error| tracing::warn!(%error, "nobody sees when weights are written to")).is_ok();
    }
}

fn look_at_all() {
    loop {
        thread::sleep(EVERY);
        let files = {
            let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
            watched.files.retain(|file| file.strong_count() > 0);
            watched.by_thread = !watched.files.is_empty();
            if !watched.by_thread {
                return;
            }
            watched.files.clone()
        };
        for file in files.iter().filter_map(Weak::upgrade).filter(|file| file.check().is_ok()) {
            if let Err(error) = file.look() {
                tracing::error!(reason = error.reason(), %error, "a file of a checkpoint has changed");
            }
        }
    }
}
