//! Why a checkpoint could not be fetched. Every message names the file and the address, and says what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::error::WeightsError;

/// A fetch that did not succeed.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The server cannot be reached, or fails, however often it is asked.
    #[error("{file}: no whole answer from {url} in {tries} tries without progress; the last one: {what}")]
    Unreachable {
        /// The file, or what was asked for.
        file: String,
        /// Its address.
        url: String,
        /// How often it was tried since the last byte came.
        tries: u32,
        /// What went wrong the last time.
        what: String,
    },
    /// The server answers, and the answer is no.
    #[error("{file}: {url} answers {status}: {}", .why.advice())]
    Refused {
        /// The file, or what was asked for.
        file: String,
        /// Its address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it means.
        why: Refusal,
    },
    /// An answer that is not what the protocol promises.
    #[error("{file}: {url} answers with something else than was asked for ({what})")]
    Answer {
        /// The file, or what was asked for.
        file: String,
        /// Its address.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The bytes are not those that the source promises, twice in a row.
    #[error("{file}: what {url} sends has the checksum {given}, twice; the source promises {expected}: the copy there is damaged")]
    Checksum {
        /// The file.
        file: String,
        /// Its address.
        url: String,
        /// The checksum promised.
        expected: String,
        /// That of the bytes which came.
        given: String,
    },
    /// The file is another one than when the source was listed.
    #[error("{file}: {url} has changed while it was fetched ({what}): it is listed anew at the next start")]
    Changed {
        /// The file.
        file: String,
        /// Its address.
        url: String,
        /// What differs.
        what: String,
    },
    /// There is no room for the files.
    #[error("{path} has {free} bytes free, {needed} are needed for what is still to fetch: make room or use a larger cache")]
    DiskFull {
        /// The cache.
        path: PathBuf,
        /// Bytes still to fetch.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {path} of the model cache: it must be a folder that user {} may write", rustix::process::getuid().as_raw())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something of what was fetched is not part of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] WeightsError),
    /// Whoever wanted it wants it no more.
    #[error("the fetch was stopped")]
    Stopped,
}

/// What a refusal of the server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It wants a token, and none was given.
    TokenNeeded,
    /// It does not take the token.
    TokenRefused,
    /// The account of the token has not accepted the licence.
    GatedRepository,
    /// The account of the token may not read it.
    AccessDenied,
    /// No such repository.
    NoRepository,
    /// No such branch, tag or commit.
    NoRevision,
    /// No such file.
    NoFile,
    /// Any other refusal.
    Other,
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Refusal::TokenNeeded => "TokenNeeded",
            Refusal::TokenRefused => "TokenRefused",
            Refusal::GatedRepository => "GatedRepository",
            Refusal::AccessDenied => "AccessDenied",
            Refusal::NoRepository => "RepositoryNotFound",
            Refusal::NoRevision => "RevisionNotFound",
            Refusal::NoFile => "FileNotFound",
            Refusal::Other => "SourceRefused",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Refusal::TokenNeeded => {
                "it is private, gated or not there: give a token that may read it (tokenSecret), or correct the name"
            }
            Refusal::TokenRefused => "the token is wrong or has expired: put a valid one into tokenSecret and restart",
            Refusal::GatedRepository => {
                "the repository is gated: accept its licence on its page, then give a token of the same account (tokenSecret)"
            }
            Refusal::AccessDenied => "whoever asks may not read it: give a token that may (tokenSecret), or correct the address",
            Refusal::NoRepository => "there is no such repository, or the token may not see it: correct the name or give a token",
            Refusal::NoRevision => "the repository has no such branch, tag or commit: correct the revision",
            Refusal::NoFile => "there is no such file: correct the address, or use a source that holds a whole checkpoint",
            Refusal::Other => "the server does not serve this request",
        }
    }
}

impl SourceError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            SourceError::Unreachable { .. } => "SourceUnreachable",
            SourceError::Refused { why, .. } => why.reason(),
            SourceError::Answer { .. } => "SourceAnswerInvalid",
            SourceError::Checksum { .. } => "ChecksumMismatch",
            SourceError::Changed { .. } => "SourceChanged",
            SourceError::DiskFull { .. } => "CacheFull",
            SourceError::Cache { .. } => "CacheUnusable",
            SourceError::Checkpoint(error) => error.reason(),
            SourceError::Stopped => "Stopped",
        }
    }

    /// Whether trying again later may help with nothing changed here: the network and a source that is being written, not a refusal.
    pub fn is_transient(&self) -> bool {
        match self {
            SourceError::Unreachable { .. } | SourceError::Changed { .. } => true,
            SourceError::Checkpoint(error) => error.is_transient(),
            _ => false,
        }
    }
}
