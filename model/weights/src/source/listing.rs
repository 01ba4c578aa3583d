//! What a source holds: its files, each with address, length, promise and name in the cache. A listing has an id: the commit of
//! a repository, or a hash of what a web address holds; files of two ids never mix.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::checksum::{Promise, hex};
use super::http::Target;

/// One file of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemoteFile {
    /// Its name in the checkpoint's folder.
    pub name: String,
    /// Where it is fetched from.
    pub url: String,
    /// Its length in bytes.
    pub size: u64,
    /// What its content must be.
    pub promise: Promise,
    /// Its ETag, where there is one and nothing better.
    pub etag: Option<String>,
    /// Its name in the cache. It stands for the content: another content has another name.
    pub blob: String,
}

impl RemoteFile {
    pub fn target(&self) -> Target<'_> {
        Target { file: &self.name, url: &self.url }
    }
}

/// Files by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub id: String,
    pub files: BTreeMap<String, RemoteFile>,
}

impl Listing {
    /// The id of files that no commit names: it changes with the content of any of them, as far as the server shows that.
    pub fn id_of(files: &BTreeMap<String, RemoteFile>) -> String {
        let mut hash = Sha256::new();
        for file in files.values() {
            hash.update(format!("{}\0{}\0", file.name, file.blob));
        }
        let mut id = hex(&hash.finalize());
        // As long as a commit.
        id.truncate(40);
        id
    }
}
