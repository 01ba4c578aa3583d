//! What can be wrong with a checkpoint. Every message names the file or tensor, says what is wrong and how to mend it.

use std::io;
use std::path::{Path, PathBuf};

use m1_arch::ConfigError;
use thiserror::Error;

use crate::names::TensorName;

/// A checkpoint that cannot be served.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: check that it is there and readable")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `config.json` is not a MiniMax-M1's.
    #[error("{path} does not describe a network that can be served")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field at fault.
        source: ConfigError,
    },
    /// There is neither an index nor a single-file checkpoint.
    #[error("{dir} has neither model.safetensors.index.json nor model.safetensors: add the index that belongs to its shards")]
    MissingIndex {
        /// The checkpoint's folder.
        dir: PathBuf,
    },
    /// The index is no index.
    #[error("{path} is not a safetensors index ({what}): fetch it again")]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The index names a file that is not a plain file name ending in `.safetensors`.
    #[error("{path} puts {tensor} into {given:?}: allowed are plain names of .safetensors files beside the index")]
    FileName {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name.
        given: String,
    },
    /// The index names a shard that is not there.
    #[error("shard {path} is not there, but the index puts {tensor} into it: fetch the shard")]
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// One of its tensors.
        tensor: String,
    },
    /// A file was changed while it was mapped, or cannot be read any more. What was computed with it is worth nothing.
    #[error(
        "{path} has changed while it was in use: it had {opened} bytes when it was opened, {now}; put the whole file there, and exchange files by renaming only"
    )]
    Changed {
        /// The shard.
        path: PathBuf,
        /// Its length when it was opened.
        opened: u64,
        /// What is there now, in words.
        now: String,
    },
    /// The index names a tensor that its shard lacks.
    #[error(
        "{path} does not hold {tensor}, though the index says so: index and shards are of different checkpoints, fetch both again"
    )]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A shard's header is wrong.
    #[error("{path} is not a safetensors file ({what}): fetch it again")]
    Header {
        /// The shard.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A shard ends before its data does.
    #[error("{path} is cut off: its header promises {wanted} bytes, the file has {given}: fetch it again")]
    Truncated {
        /// The shard.
        path: PathBuf,
        /// Length of the file by its header.
        wanted: u64,
        /// Length of the file.
        given: u64,
    },
    /// A tensor's byte range is wrong.
    #[error("{path} gives {tensor} the bytes {begin}..{end} of its data, which {what}: fetch it again")]
    Range {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte.
        begin: u64,
        /// Byte after the last.
        end: u64,
        /// What is wrong with them.
        what: String,
    },
    /// A tensor's shape is not the one that `config.json` asks for.
    #[error(
        "{tensor} in {path} has shape {given:?}: allowed by config.json is {allowed:?}; config and weights are of different models"
    )]
    Shape {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        given: Vec<usize>,
        /// The shape wanted.
        allowed: Vec<usize>,
    },
    /// A tensor is stored in a way that is not served.
    #[error("{tensor} in {path} has dtype {given}: allowed are BF16, F16, F32; use the unquantised checkpoint")]
    UnexpectedDtype {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        given: String,
    },
    /// A matrix is stored otherwise than the others.
    #[error("{tensor} in {path} has dtype {given}: allowed is {allowed}, that of the embedding; fetch the file again")]
    MixedDtype {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        given: &'static str,
        /// That of the other matrices.
        allowed: &'static str,
    },
    /// The network needs a tensor that is not there.
    #[error("{dir} lacks {tensor}: config.json asks for it; fetch the checkpoint again or correct config.json")]
    MissingTensor {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Its original name.
        tensor: String,
    },
    /// There is a tensor that this network has no place for; leaving it out would give another model.
    #[error("{path} holds {tensor}, which the network of config.json does not have: correct config.json or use its own weights")]
    UnexpectedTensor {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor was asked for that the network does not have.
    #[error("the network of this checkpoint has no {name:?}")]
    NoSuchTensor {
        /// The name.
        name: TensorName,
    },
}

impl WeightsError {
    /// The reason of [`WeightsError::Changed`]: what is mapped stays as it is until somebody opens the checkpoint anew.
    pub const CHANGED: &str = "WeightsChanged";

    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            WeightsError::Read { .. } => "CheckpointUnreadable",
            WeightsError::Config { source, .. } => source.reason(),
            WeightsError::MissingIndex { .. } => "IndexMissing",
            WeightsError::BadIndex { .. } => "IndexInvalid",
            WeightsError::FileName { .. } => "ShardNameInvalid",
            WeightsError::MissingShard { .. } => "ShardMissing",
            WeightsError::Changed { .. } => Self::CHANGED,
            WeightsError::NotInShard { .. } => "IndexMismatch",
            WeightsError::Header { .. } => "ShardHeaderInvalid",
            WeightsError::Truncated { .. } => "ShardTruncated",
            WeightsError::Range { .. } => "TensorRangeInvalid",
            WeightsError::Shape { .. } => "TensorShapeMismatch",
            WeightsError::UnexpectedDtype { .. } => "TensorDtypeUnsupported",
            WeightsError::MixedDtype { .. } => "TensorDtypeMixed",
            WeightsError::MissingTensor { .. } => "TensorMissing",
            WeightsError::UnexpectedTensor { .. } => "TensorUnexpected",
            WeightsError::NoSuchTensor { .. } => "TensorUnknown",
        }
    }

    /// Whether trying again may help with nothing changed: a file system that hiccups, not a file that is wrong.
    pub fn is_transient(&self) -> bool {
        use io::ErrorKind::{Interrupted, ResourceBusy, StaleNetworkFileHandle, TimedOut};
        match self {
            WeightsError::Read { source, .. } => {
                matches!(source.kind(), Interrupted | TimedOut | ResourceBusy | StaleNetworkFileHandle)
            }
            _ => false,
        }
    }
}

pub(crate) fn read_error(path: &Path, source: io::Error) -> WeightsError {
    WeightsError::Read { path: path.to_owned(), source }
}
