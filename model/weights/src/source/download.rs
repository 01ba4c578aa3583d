//! One file into the cache: whole and checked, or, of a shard, its header alone.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::Mmap;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::cache::{Cache, unusable};
use super::checksum::{Promise, Sum};
use super::error::SourceError;
use super::http::{Client, Failure, Target};
use super::listing::RemoteFile;
use super::web::{content_range, etag, length};
use crate::header;

/// Bytes that are read, checked and written at once.
const BLOCK: usize = 1 << 20;
/// The first request for a header: those of M1's shards are a few kB long.
const FRONT: u64 = 64 << 10;

/// The fetch of one file.
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub file: &'a RemoteFile,
    /// Bytes of it that are here.
    pub count: &'a AtomicU64,
    /// Set where nobody wants it any more.
    pub halt: &'a AtomicBool,
}

impl Download<'_> {
    /// Fetches the whole file, unless it is here or somebody else fetches it just now.
    pub fn whole(&self) -> Result<(), SourceError> {
        let (blob, partial) = (self.cache.blob(self.file), self.cache.partial(self.file));
        if !blob.exists() {
            let theirs = || self.count.store(self.cache.have(self.file), Ordering::Relaxed);
            let _lock = self.cache.lock(&self.file.blob, self.halt, theirs)?;
            if !blob.exists() {
                self.checked(&partial)?;
                fs::rename(&partial, &blob).map_err(|error| unusable(&blob, error))?;
            }
        }
        self.count.store(self.file.size, Ordering::Relaxed);
        Ok(())
    }

    /// Transfers the file; once more where the first one has another checksum than promised.
    fn checked(&self, partial: &Path) -> Result<(), SourceError> {
        let remove = || fs::remove_file(partial).map_err(|error| unusable(partial, error));
        let RemoteFile { name, url, promise, .. } = self.file;
        let Some((expected, given)) = self.transfer(partial)?.broken(promise) else { return Ok(()) };
        tracing::warn!(file = name, url, expected, given, "the checksum is wrong: fetching the file once more");
        remove()?;
        let Some((expected, given)) = self.transfer(partial)?.broken(promise) else { return Ok(()) };
        remove()?;
        Err(SourceError::Checksum { file: name.clone(), url: url.clone(), expected, given })
    }

    /// Brings the bytes that are missing, in as many requests as it takes, and gives the sum of all.
    fn transfer(&self, partial: &Path) -> Result<Sum, SourceError> {
        let mut growing = Growing::open(self, partial)?;
        let mut tries = self.client.tries(self.halt);
        let mut furthest = growing.have;
        while growing.have < self.file.size {
            match self.append(&mut growing) {
                Ok(()) => {}
                Err(failure) => {
                    if growing.have > furthest {
                        furthest = growing.have;
                        tries.progress();
                    }
                    tries.again(self.file.target(), failure)?;
                }
            }
        }
        Ok(growing.sum)
    }

    /// One request for what is missing, as far as it goes.
    fn append(&self, growing: &mut Growing<'_>) -> Result<(), Failure> {
        let mut headers = Vec::new();
        if growing.have > 0 {
            headers.push(("range", format!("bytes={}-", growing.have)));
            // A weak ETag does not promise the same bytes.
            let strong = self.file.etag.iter().filter(|etag| !etag.starts_with("W/"));
            headers.extend(strong.map(|etag| ("if-range", etag.clone())));
        }
        let response = self.client.get(self.file.target(), &headers)?;
        self.same(&response)?;
        match (response.status(), content_range(response.headers())) {
            (StatusCode::OK, _) => growing.restart()?,
            (StatusCode::PARTIAL_CONTENT, Some((first, _))) if first == growing.have => {}
            (status, range) => {
                let what = format!("status {status} and range {range:?} for a request from byte {}", growing.have);
                return Err(self.file.target().answer(what).into());
            }
        }
        let mut body = response.into_body().into_reader();
        let mut block = vec![0; BLOCK];
        loop {
            if self.halt.load(Ordering::Relaxed) {
                return Err(SourceError::Stopped.into());
            }
            let ended =
                |why: &dyn Display| Failure::passing(format!("it ended after {} of {} bytes: {why}", growing.have, self.file.size));
            match body.read(&mut block).map_err(|error| ended(&error))? {
                0 if growing.have == self.file.size => return Ok(()),
                0 => return Err(ended(&"no more came")),
                length => growing.push(&block[..length])?,
            }
        }
    }

    /// That the answer is about the file that was listed. A checksum decides for itself; without one, ETag and length must agree.
    fn same(&self, response: &Response<Body>) -> Result<(), Failure> {
        let differs = |what: String| {
            let Target { file, url } = self.file.target();
            match self.file.promise {
                Promise::Nothing => SourceError::Changed { file: file.to_owned(), url: url.to_owned(), what },
                _ => self.file.target().answer(what),
            }
        };
        if let Some(given) = length(response).filter(|given| *given != self.file.size) {
            return Err(differs(format!("it has {given} bytes, {} were listed", self.file.size)).into());
        }
        match (&self.file.etag, etag(response.headers())) {
            (Some(listed), Some(given)) if *listed != given => {
                Err(differs(format!("its ETag is {given}, {listed} was listed")).into())
            }
            _ => Ok(()),
        }
    }

    /// Fetches a shard's header into a file of the shard's length, unless the header or the whole shard is here.
    pub fn header(&self) -> Result<(), SourceError> {
        let path = self.cache.header(self.file);
        let is_here = || self.cache.blob(self.file).exists() || path.exists();
        if is_here() {
            return Ok(());
        }
        let _lock = self.cache.lock(&format!("{}.header", self.file.blob), self.halt, || {})?;
        if is_here() {
            return Ok(());
        }
        let front = self.client.tries(self.halt).until(self.file.target(), || {
            let front = self.front(FRONT)?;
            match header::end(&front).filter(|end| *end > FRONT) {
                Some(end) => self.front(end),
                None => Ok(front),
            }
        })?;
        let mut fault = None;
        self.cache
            .write(&path, |sparse| {
                sparse.write_all(&front)?;
                sparse.set_len(self.file.size)?;
                // SAFETY: the file has a name of its own until it is renamed, so nobody else changes it while it is mapped.
                let map = unsafe { Mmap::map(&*sparse)? };
                fault = header::read(Path::new(&self.file.name), &map).err();
                match fault {
                    Some(_) => Err(std::io::ErrorKind::InvalidData.into()),
                    None => Ok(()),
                }
            })
            .map_err(|error| fault.map_or(error, SourceError::Checkpoint))
    }

    /// The first bytes of the file, as many as there are up to `wanted`.
    fn front(&self, wanted: u64) -> Result<Vec<u8>, Failure> {
        let wanted = wanted.min(self.file.size);
        let mut front = Vec::new();
        if wanted == 0 {
            return Ok(front);
        }
        let response = self.client.get(self.file.target(), &[("range", format!("bytes=0-{}", wanted - 1))])?;
        self.same(&response)?;
        // A server that knows no ranges sends everything: the rest is not read.
        response.into_body().into_reader().take(wanted).read_to_end(&mut front).map_err(Failure::passing)?;
        match front.len() as u64 {
            length if length == wanted => Ok(front),
            length => Err(Failure::passing(format!("the answer ended after {length} of {wanted} bytes"))),
        }
    }
}

/// A file that grows, and its sum so far.
struct Growing<'a> {
    download: &'a Download<'a>,
    path: &'a Path,
    file: File,
    have: u64,
    sum: Sum,
}

impl<'a> Growing<'a> {
    /// Takes up what an earlier fetch has left.
    fn open(download: &'a Download<'a>, path: &'a Path) -> Result<Self, SourceError> {
        let failed = |error| unusable(path, error);
        let file = File::options().read(true).append(true).create(true).open(path).map_err(failed)?;
        let have = file.metadata().map_err(failed)?.len();
        let sum = Sum::new(&download.file.promise, download.file.size);
        let mut growing = Self { download, path, file, have, sum };
        if have > download.file.size {
            growing.restart()?;
        }
        growing.sum.read(&growing.file).map_err(failed)?;
        download.count.store(growing.have, Ordering::Relaxed);
        Ok(growing)
    }

    fn restart(&mut self) -> Result<(), SourceError> {
        self.file.set_len(0).map_err(|error| unusable(self.path, error))?;
        self.have = 0;
        self.sum = Sum::new(&self.download.file.promise, self.download.file.size);
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        let left = self.download.file.size - self.have;
        if bytes.len() as u64 > left {
            return Err(self
                .download
                .file
                .target()
                .answer(format!("more than the {} bytes that were listed", self.download.file.size)));
        }
        self.file.write_all(bytes).map_err(|error| self.download.cache.unwritten(self.path, left, error))?;
        self.sum.update(bytes);
        self.have += bytes.len() as u64;
        self.download.count.store(self.have, Ordering::Relaxed);
        Ok(())
    }
}
