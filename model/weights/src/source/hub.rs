//! A repository of the Hugging Face hub: `api/models/REPO/revision/REVISION` names the commit, `api/models/REPO/tree/COMMIT` its
//! files with their checksums, `REPO/resolve/COMMIT/FILE` leads to a file, large ones through a redirect to another host.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use ureq::http::{HeaderMap, header};

use super::checksum::Promise;
use super::error::SourceError;
use super::http::{Client, Target, join, segment};
use super::listing::RemoteFile;

/// Digits of a commit.
const COMMIT_DIGITS: usize = 40;
/// Pages of a tree: 1000 files each.
const MOST_PAGES: usize = 100;

/// A repository.
#[derive(Debug)]
pub(super) struct Repository {
    hub: String,
    repo: String,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    size: u64,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

impl Repository {
    pub fn new(hub: &str, repo: &str) -> Self {
        Self { hub: hub.trim_end_matches('/').to_owned(), repo: repo.to_owned() }
    }

    /// The commit that a revision means now. A commit means itself.
    pub fn commit(&self, revision: &str, client: &Client, halt: &AtomicBool) -> Result<String, SourceError> {
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        let url = format!("{}/api/models/{}/revision/{}", self.hub, self.repo, segment(revision));
        let file = format!("{}@{revision}", self.repo);
        let target = Target { file: &file, url: &url };
        let (_, Revision { sha }) = client.json(target, halt)?;
        if is_commit(&sha) { Ok(sha) } else { Err(target.answer(format!("{sha:?} is no commit"))) }
    }

    /// The address that shows the files of a revision.
    pub fn page(&self, revision: &str) -> String {
        format!("{}/{}/tree/{revision}", self.hub, self.repo)
    }

    /// The files at the root of a commit: a checkpoint has no others.
    pub fn tree(&self, commit: &str, client: &Client, halt: &AtomicBool) -> Result<BTreeMap<String, RemoteFile>, SourceError> {
        let mut files = BTreeMap::new();
        let mut url = format!("{}/api/models/{}/tree/{commit}", self.hub, self.repo);
        let name = format!("{}@{commit}", self.repo);
        for _ in 0..MOST_PAGES {
            let target = Target { file: &name, url: &url };
            let (headers, entries): (HeaderMap, Vec<Entry>) = client.json(target, halt)?;
            let entries = entries.into_iter().filter(|entry| entry.kind == "file" && !entry.path.contains('/'));
            for entry in entries {
                let file = self.file(commit, entry).ok_or_else(|| target.answer("a checksum that is none"))?;
                files.insert(file.name.clone(), file);
            }
            match next_page(&headers) {
                Some(next) => url = join(&url, &next),
                None => return Ok(files),
            }
        }
        Err(Target { file: &name, url: &url }.answer(format!("more than {MOST_PAGES} pages")))
    }

    /// None where a checksum is not hex: it becomes the name of a file.
    fn file(&self, commit: &str, entry: Entry) -> Option<RemoteFile> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.hub, self.repo, segment(&entry.path));
        let (oid, size, promise) = match entry.lfs {
            Some(large) => (large.oid.clone(), large.size, Promise::Sha256(large.oid)),
            None => (entry.oid.clone(), entry.size, Promise::GitBlob(entry.oid)),
        };
        let hex = oid.len() >= COMMIT_DIGITS && oid.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then_some(RemoteFile { name: entry.path, url, size, promise, etag: None, blob: oid })
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The address of the next page: `Link: <ADDRESS>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|links| links.split(',')).find(|link| link.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    rest.split_once('>').map(|(address, _)| address.to_owned())
}
