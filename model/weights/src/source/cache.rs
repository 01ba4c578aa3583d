//! The cache on disk, in the layout of the Hugging Face hub's own, so that both can use one folder:
//!
//! ```text
//! models--OWNER--NAME/blobs/CONTENT             a whole file; CONTENT is its checksum
//! models--OWNER--NAME/blobs/CONTENT.incomplete  its first bytes
//! models--OWNER--NAME/blobs/CONTENT.header      of a shard: its length with nothing but the header in it (sparse)
//! models--OWNER--NAME/snapshots/COMMIT/FILE     a link to a whole file or to a header
//! models--OWNER--NAME/refs/REVISION             the commit that a revision meant last
//! models--OWNER--NAME/listings/SCOPE-COMMIT     what the hub said of the files
//! .locks/models--OWNER--NAME/CONTENT.lock       held (flock) by whoever writes
//! ```
//!
//! A file gets its name once it is whole and checked; nothing under that name ever changes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::error::SourceError;
use super::listing::{Listing, RemoteFile};

/// How often is looked whether somebody else's lock is free.
const LOOK: Duration = Duration::from_millis(100);

/// The part of a cache that belongs to one source.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// Makes the folders of a source in the cache at `root`.
    pub fn open(root: &Path, name: &str) -> Result<Self, SourceError> {
        let cache = Self { folder: root.join(name), locks: root.join(".locks").join(name) };
        for folder in [cache.folder.join("blobs"), cache.folder.join("listings"), cache.folder.join("refs"), cache.locks.clone()] {
            fs::create_dir_all(&folder).map_err(|error| unusable(&folder, error))?;
        }
        Ok(cache)
    }

    /// Where a whole file lies.
    pub fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(&file.blob)
    }

    /// Where its first bytes lie.
    pub fn partial(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", file.blob))
    }

    /// Where its header lies.
    pub fn header(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.header", file.blob))
    }

    /// Bytes of a file that are here.
    pub fn have(&self, file: &RemoteFile) -> u64 {
        let length = |path: PathBuf| fs::metadata(path).map(|meta| meta.len());
        length(self.blob(file)).or_else(|_| length(self.partial(file))).unwrap_or(0)
    }

    /// Takes a lock, also against other processes. `waiting` is called again and again while somebody else has it.
    pub fn lock(&self, name: &str, halt: &AtomicBool, mut waiting: impl FnMut()) -> Result<File, SourceError> {
        let path = self.locks.join(format!("{name}.lock"));
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(|error| unusable(&path, error))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if halt.load(Ordering::Relaxed) => return Err(SourceError::Stopped),
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    std::thread::sleep(LOOK);
                }
                Err(TryLockError::Error(error)) => return Err(unusable(&path, error)),
            }
        }
    }

    /// Replaces a file as a whole.
    pub fn write(&self, path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), SourceError> {
        let folder = path.parent().unwrap_or(&self.folder);
        let part = folder.join(part_name());
        let written = fs::create_dir_all(folder)
            .and_then(|()| File::options().read(true).write(true).create_new(true).open(&part))
            .and_then(|mut file| content(&mut file))
            .and_then(|()| fs::rename(&part, path));
        written.map_err(|error| {
            // Whatever is left of it is of no use to anybody.
            let _ = fs::remove_file(&part);
            unusable(path, error)
        })
    }

    /// Remembers a listing as what `revision` means now.
    pub fn remember(&self, revision: &str, scope: &str, listing: &Listing) -> Result<(), SourceError> {
        let path = self.listing_path(scope, &listing.id);
        if !path.exists() {
            let text = serde_json::to_vec(listing).map_err(|error| unusable(&path, error.into()))?;
            self.write(&path, |file| file.write_all(&text))?;
        }
        self.write(&self.folder.join("refs").join(revision), |file| file.write_all(listing.id.as_bytes()))
    }

    /// The listing of an id, if it was remembered.
    pub fn listing(&self, scope: &str, id: &str) -> Option<Listing> {
        serde_json::from_slice(&fs::read(self.listing_path(scope, id)).ok()?).ok()
    }

    /// The id that a revision had last.
    pub fn last(&self, revision: &str) -> Option<String> {
        Some(fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_owned())
    }

    fn listing_path(&self, scope: &str, id: &str) -> PathBuf {
        self.folder.join("listings").join(format!("{scope}-{id}.json"))
    }

    /// The folder of a checkpoint.
    pub fn snapshot(&self, id: &str) -> PathBuf {
        self.folder.join("snapshots").join(id)
    }

    /// Links files into a snapshot: each to the whole file where it is here, else to its header. Under a lock, so that no link
    /// to a whole file is ever replaced by one to a header.
    pub fn link<'a>(&self, id: &str, files: impl Iterator<Item = &'a RemoteFile>, halt: &AtomicBool) -> Result<(), SourceError> {
        let folder = self.snapshot(id);
        let _lock = self.lock(&format!("snapshot-{id}"), halt, || {})?;
        fs::create_dir_all(&folder).map_err(|error| unusable(&folder, error))?;
        for file in files {
            let target = if self.blob(file).exists() { file.blob.clone() } else { format!("{}.header", file.blob) };
            let target = Path::new("../../blobs").join(target);
            let path = folder.join(&file.name);
            if fs::read_link(&path).is_ok_and(|present| present == target) {
                continue;
            }
            let part = folder.join(part_name());
            symlink(&target, &part).and_then(|()| fs::rename(&part, &path)).map_err(|error| unusable(&path, error))?;
        }
        Ok(())
    }

    /// An error where fewer bytes are free than needed.
    pub fn room(&self, needed: u64) -> Result<(), SourceError> {
        // A file system that does not say how much is free may have enough.
        let Ok(stat) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed <= free { Ok(()) } else { Err(SourceError::DiskFull { path: self.folder.clone(), needed, free }) }
    }

    /// The error of a write that `needed` bytes were left of.
    pub fn unwritten(&self, path: &Path, needed: u64, error: io::Error) -> SourceError {
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return unusable(path, error);
        }
        let free = rustix::fs::statvfs(&self.folder).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        SourceError::DiskFull { path: self.folder.clone(), needed, free }
    }
}

/// A file or folder of a cache that cannot be used.
pub(super) fn unusable(path: &Path, source: io::Error) -> SourceError {
    SourceError::Cache { path: path.to_owned(), source }
}

/// A name that no other writer has, here or on another node that shares the folder.
fn part_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let host = rustix::system::uname();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".part-{}-{}-{count}", host.nodename().to_string_lossy().replace('/', "_"), std::process::id())
}
