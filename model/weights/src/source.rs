//! Checkpoints that lie elsewhere: fetched into a cache on this machine, as far as they are needed.
//!
//! [`Source::headers`] brings what [`Checkpoint::open`](crate::Checkpoint::open) reads: the small files, and of every shard a file of its
//! full length that holds nothing but the header. [`Snapshot::fetch`] then brings whole shards, those that
//! [`plan_read`](crate::plan_read) names and no others; the checkpoint is opened once more after that. What was interrupted goes on
//! where it stopped; processes that share a cache fetch every file once.
//!
//! Everything here blocks. Nothing here reads arguments or the environment, except a proxy's address, which the HTTP client does.

mod cache;
mod checksum;
mod download;
mod error;
mod http;
mod hub;
mod listing;
mod location;
mod settings;
mod streams;
mod web;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

pub use error::{Refusal, SourceError};
pub use location::{Location, LocationError};
pub use settings::{Given, GivenError, HUB, Retry, Settings, Token};

use crate::index::{self, INDEX, SINGLE};
use cache::Cache;
pub(crate) use checksum::hex;
use download::Download;
use http::Client;
use hub::Repository;
use listing::{Listing, RemoteFile};
use web::Folder;

/// What describes the network; nothing is served without it.
const CONFIG: &str = "config.json";
/// What makes text of ids and ids of text. A checkpoint may lack any of them.
const TEXTS: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Files that are here.
    pub files: usize,
    /// Files that are wanted.
    pub files_total: usize,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes that are wanted.
    pub bytes_total: u64,
}

/// Told of progress a few times a second, also while nothing comes. `Break` ends the fetch; what is here stays for the next one.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// How much of a checkpoint is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Config and tokenizer.
    Texts,
    /// These, index and shards.
    All,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Scope::Texts => "texts",
            Scope::All => "all",
        }
    }
}

/// A source and its cache.
#[derive(Debug)]
pub struct Source {
    place: Place,
    client: Client,
    cache: Cache,
    streams: usize,
}

#[derive(Debug)]
enum Place {
    Hub { repository: Repository, revision: String },
    Web { url: String },
}

/// A source that can be asked for files.
enum Remote {
    Hub { commit: String, files: BTreeMap<String, RemoteFile> },
    Web(Folder),
}

impl Source {
    /// A source at `location`; none for a folder, of which nothing has to be fetched.
    ///
    /// # Errors
    /// The cache cannot be made.
    pub fn open(location: &Location, settings: &Settings) -> Result<Option<Arc<Self>>, SourceError> {
        let (place, home, name) = match location {
            Location::Folder(_) => return Ok(None),
            Location::Hub { repo, revision } => {
                let repository = Repository::new(&settings.hub, repo);
                let name = format!("models--{}", repo.replace('/', "--"));
                (Place::Hub { repository, revision: revision.clone() }, settings.hub.as_str(), name)
            }
            Location::Web(url) => {
                let host = url.split('/').nth(2).unwrap_or_default().replace([':', '@', '[', ']'], "_");
                let hash = hex(&Sha256::digest(url)[..8]);
                (Place::Web { url: url.clone() }, url.as_str(), format!("url--{host}--{hash}"))
            }
        };
        // A token is the hub's.
        let token = settings.token.clone().filter(|_| matches!(place, Place::Hub { .. }));
        let client = Client::new(home, token, settings.retry);
        let cache = Cache::open(&settings.cache, &name)?;
        Ok(Some(Arc::new(Self { place, client, cache, streams: settings.streams })))
    }

    /// Fetches config and tokenizer: what turns text into ids and back, without any weights.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn texts(self: &Arc<Self>, watch: Watch<'_>) -> Result<Snapshot, SourceError> {
        self.front(Scope::Texts, watch)
    }

    /// Fetches what a checkpoint is opened with: the small files and the headers of all shards.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn headers(self: &Arc<Self>, watch: Watch<'_>) -> Result<Snapshot, SourceError> {
        self.front(Scope::All, watch)
    }

    fn front(self: &Arc<Self>, scope: Scope, watch: Watch<'_>) -> Result<Snapshot, SourceError> {
        let halt = AtomicBool::new(false);
        let listing = self.list(scope, &halt)?;
        let files: Vec<&RemoteFile> = listing.files.values().collect();
        let count = AtomicU64::new(0);
        let fetch = |file: &&RemoteFile| {
            let download = self.download(file, &count, &halt);
            if is_shard(file) { download.header() } else { download.whole() }
        };
        let total = files.len();
        let told = |done| watch(Progress { files: done, files_total: total, bytes: 0, bytes_total: 0 });
        streams::each(&files, self.streams, &halt, fetch, told)?;
        self.cache.link(&listing.id, listing.files.values(), &halt)?;
        Ok(Snapshot { source: Arc::clone(self), listing: Arc::new(listing) })
    }

    /// What the source holds. Where it cannot be reached, what it held the last time.
    fn list(&self, scope: Scope, halt: &AtomicBool) -> Result<Listing, SourceError> {
        let reference = match &self.place {
            Place::Hub { revision, .. } => revision.as_str(),
            Place::Web { .. } => scope.as_str(),
        };
        match self.ask(scope, halt) {
            Ok(listing) => {
                self.cache.remember(reference, scope.as_str(), &listing)?;
                Ok(listing)
            }
            Err(error) if error.is_transient() => {
                let known = self.cache.last(reference).and_then(|id| self.cache.listing(scope.as_str(), &id));
                let Some(listing) = known else { return Err(error) };
                tracing::warn!(%error, id = listing.id, "going on with what the source held the last time");
                Ok(listing)
            }
            Err(error) => Err(error),
        }
    }

    fn ask(&self, scope: Scope, halt: &AtomicBool) -> Result<Listing, SourceError> {
        let remote = match &self.place {
            Place::Hub { repository, revision } => {
                let commit = repository.commit(revision, &self.client, halt)?;
                // A commit never changes, so one look at it is enough.
                if let Some(listing) = self.cache.listing(scope.as_str(), &commit) {
                    return Ok(listing);
                }
                let files = repository.tree(&commit, &self.client, halt)?;
                Remote::Hub { commit, files }
            }
            Place::Web { url } => Remote::Web(Folder::open(url, &self.client, halt)?),
        };
        let mut files = self.look_up(&remote, &TEXTS, halt)?;
        files.extend(self.needed(&remote, &[CONFIG], halt)?);
        if scope == Scope::All {
            match self.look_up(&remote, &[INDEX], halt)?.pop_first() {
                Some((name, file)) => {
                    self.download(&file, &AtomicU64::new(0), halt).whole()?;
                    let shards = index::shards(&self.cache.blob(&file))?;
                    let names: Vec<&str> = shards.iter().map(String::as_str).collect();
                    files.insert(name, file);
                    files.extend(self.needed(&remote, &names, halt)?);
                }
                None => files.extend(self.needed(&remote, &[SINGLE], halt)?),
            }
        }
        let id = match remote {
            Remote::Hub { commit, .. } => commit,
            Remote::Web(_) => Listing::id_of(&files),
        };
        Ok(Listing { id, files })
    }

    /// Those of the named files that the source has.
    fn look_up(&self, remote: &Remote, names: &[&str], halt: &AtomicBool) -> Result<BTreeMap<String, RemoteFile>, SourceError> {
        let folder = match remote {
            Remote::Hub { files, .. } => {
                let found = names.iter().filter_map(|name| files.get_key_value(*name));
                return Ok(found.map(|(name, file)| (name.clone(), file.clone())).collect());
            }
            Remote::Web(folder) => folder,
        };
        let found = Mutex::new(BTreeMap::new());
        let ask = |name: &&str| {
            if let Some(file) = folder.look_up(name, &self.client, halt)? {
                found.lock().unwrap_or_else(PoisonError::into_inner).insert((*name).to_owned(), file);
            }
            Ok(())
        };
        streams::each(names, self.streams, halt, ask, |_| ControlFlow::Continue(()))?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The named files, all of which must be there.
    fn needed(&self, remote: &Remote, names: &[&str], halt: &AtomicBool) -> Result<BTreeMap<String, RemoteFile>, SourceError> {
        let found = self.look_up(remote, names, halt)?;
        match names.iter().find(|name| !found.contains_key(**name)) {
            None => Ok(found),
            Some(missing) => {
                let url = match &self.place {
                    Place::Hub { repository, revision } => repository.page(revision),
                    Place::Web { url } => url.clone(),
                };
                Err(SourceError::Refused { file: (*missing).to_owned(), url, status: 404, why: Refusal::NoFile })
            }
        }
    }

    fn download<'a>(&'a self, file: &'a RemoteFile, count: &'a AtomicU64, halt: &'a AtomicBool) -> Download<'a> {
        Download { client: &self.client, cache: &self.cache, file, count, halt }
    }
}

fn is_shard(file: &RemoteFile) -> bool {
    file.name.ends_with(".safetensors")
}

/// One state of a source, in the cache: a commit of a repository, or what a web address held.
#[derive(Clone)]
pub struct Snapshot {
    source: Arc<Source>,
    listing: Arc<Listing>,
}

impl Snapshot {
    /// The folder to open.
    pub fn dir(&self) -> PathBuf {
        self.source.cache.snapshot(&self.listing.id)
    }

    /// The commit, or what stands for one.
    pub fn id(&self) -> &str {
        &self.listing.id
    }

    /// Whether whole files of these names are here.
    pub fn has(&self, shards: &[String]) -> bool {
        self.files(shards).iter().all(|file| self.source.cache.blob(file).exists())
    }

    /// Fetches whole shards. After that the folder holds them, and a checkpoint that is opened in it can read them.
    ///
    /// # Errors
    /// See [`SourceError`]. What was fetched stays.
    pub fn fetch(&self, shards: &[String], watch: Watch<'_>) -> Result<(), SourceError> {
        let files = self.files(shards);
        let counts: Vec<AtomicU64> = files.iter().map(|file| AtomicU64::new(self.source.cache.have(file))).collect();
        let bytes_total: u64 = files.iter().map(|file| file.size).sum();
        let here = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
        self.source.cache.room(bytes_total.saturating_sub(here()))?;
        let halt = AtomicBool::new(false);
        let tasks: Vec<_> = files.iter().zip(&counts).collect();
        let fetch = |(file, count): &(&&RemoteFile, &AtomicU64)| self.source.download(file, count, &halt).whole();
        let files_total = files.len();
        let told = |files| watch(Progress { files, files_total, bytes: here(), bytes_total });
        streams::each(&tasks, self.source.streams, &halt, fetch, told)?;
        self.source.cache.link(&self.listing.id, files.into_iter(), &halt)
    }

    fn files(&self, shards: &[String]) -> Vec<&RemoteFile> {
        shards.iter().filter_map(|name| self.listing.files.get(name)).collect()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Snapshot({})", self.dir().display())
    }
}
