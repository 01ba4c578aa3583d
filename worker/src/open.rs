//! Opens the checkpoint as far as it goes without weights, fetching what that needs. A checkpoint that cannot be used does not end the
//! process: `Status` says what is wrong.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use m1_proto::worker::Phase;
use m1_text::Tokenizer;
use m1_weights::source::{Location, Progress, Snapshot, Source, SourceError};
use m1_weights::{Checkpoint, WeightsError};

use crate::config::Config;
use crate::status::SharedStatus;
use crate::transport::Identity;
use crate::watch::{Again, Watch};

/// What was opened.
#[derive(Debug)]
pub struct Opened {
    /// The model; none where it cannot be used.
    pub model: Option<Model>,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// What makes another start worth while.
    pub again: Again,
}

/// A model without its weights.
#[derive(Debug)]
pub struct Model {
    /// Its files, of which headers were read.
    pub checkpoint: Checkpoint,
    /// How it greets peers.
    pub identity: Arc<Identity>,
    /// Where the rest of its files comes from; none where all are here.
    pub snapshot: Option<Snapshot>,
}

impl Opened {
    /// Opens what the configuration names.
    pub fn open(config: &Config, status: &SharedStatus) -> Self {
        if let Location::Folder(folder) = &config.model {
            let again = Again::Files(Watch::new(folder));
            return Self::folder(config, status, folder, None, again);
        }
        match fetched(config, status) {
            Ok(snapshot) => Self::folder(config, status, &snapshot.dir(), Some(snapshot), Again::Time),
            Err(error) => {
                tracing::error!(reason = error.reason(), %error, again = error.is_transient(), "the checkpoint cannot be fetched");
                status.fail(error.reason(), &sentence(&error), error.is_transient());
                Self { model: None, tokenizer: None, again: Again::Time }
            }
        }
    }

    fn folder(config: &Config, status: &SharedStatus, folder: &Path, snapshot: Option<Snapshot>, again: Again) -> Self {
        let opened = Checkpoint::open(folder).and_then(|checkpoint| Ok((digests(&checkpoint, snapshot.as_ref())?, checkpoint)));
        match opened {
            Ok(((digest, values), checkpoint)) => {
                let identity = Arc::new(Identity { pod: config.pod, digest, values, arch: checkpoint.architecture().clone() });
                status.update(|s| {
                    s.set_phase(Phase::Waiting);
                    s.weights_digest = match identity.values.as_str() {
                        "" => identity.digest.clone(),
                        values => format!("{}+{values}", identity.digest),
                    };
                    s.bytes_checkpoint = checkpoint.total_bytes();
                    s.message = "no placement yet".into();
                });
                let tokenizer = crate::text::open_tokenizer(folder);
                Self { model: Some(Model { checkpoint, identity, snapshot }), tokenizer, again }
            }
            Err(error) => {
                tracing::error!(reason = error.reason(), error = %error, "the checkpoint cannot be used until its files change");
                status.fail(error.reason(), &error.to_string(), false);
                Self { model: None, tokenizer: None, again }
            }
        }
    }
}

/// What pods of one group must have in common: tensors of the same shapes, and the same values. A fetched checkpoint has the source's commit, or the
/// checksums that the source has, which say more of it than samples would, and of which most files are not here: it has no digest of values.
pub fn digests(checkpoint: &Checkpoint, snapshot: Option<&Snapshot>) -> Result<(String, String), WeightsError> {
    let shapes = checkpoint.digest();
    match snapshot {
        Some(snapshot) => Ok((format!("{shapes}@{}", snapshot.id()), String::new())),
        None => Ok((shapes.to_owned(), checkpoint.sample()?)),
    }
}

/// The small files and the headers.
fn fetched(config: &Config, status: &SharedStatus) -> Result<Snapshot, SourceError> {
    let settings = config.fetch.as_ref();
    let source = settings.map(|settings| Source::open(&config.model, settings)).transpose()?.flatten();
    // A configuration has settings for every place that is no folder.
    let source = source.ok_or(SourceError::Stopped)?;
    let say = |message: String| {
        status.update(|s| {
            s.set_phase(Phase::Loading);
            s.message = message;
        });
    };
    say("fetching: the list of files".into());
    source.headers(&mut |Progress { files, files_total, .. }| {
        say(format!("fetching: config, tokenizer and headers, {files} of {files_total} files"));
        ControlFlow::Continue(())
    })
}

/// An error with what caused it.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
