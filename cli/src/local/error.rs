//! Why a local group does not run, in words that name the process.

use super::process::Exit;
use super::{ports, process};
use crate::error::Failure;

/// Why a local group does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A process cannot be started.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    /// No ports.
    #[error(transparent)]
    Ports(#[from] ports::PortError),
    /// A process ended and is needed.
    #[error("{name} {how}: {last}")]
    Died {
        /// Which one.
        name: String,
        /// How.
        how: String,
        /// Its last line.
        last: String,
    },
    /// A worker says that it cannot go on.
    #[error("{name}: {reason}: {message}")]
    Failed {
        /// Which one.
        name: String,
        /// One CamelCase word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// A worker refused the placement.
    #[error("{name} refused the placement: {message}")]
    Refused {
        /// Which one.
        name: String,
        /// Its words.
        message: String,
    },
    /// A worker does not answer.
    #[error("{name}: {message}")]
    Unreachable {
        /// Which one.
        name: String,
        /// The transport's words.
        message: String,
    },
    /// Nothing has moved for so long that nothing will.
    #[error("{name} does not come up: {why}; nothing has moved for {seconds} s")]
    Stuck {
        /// The worker that has come least far.
        name: String,
        /// What is known of it.
        why: String,
        /// How long was waited.
        seconds: u64,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl LocalError {
    /// The word for conditions and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Process(_) => "ProcessNotStarted",
            Self::Ports(_) => "NoPort",
            Self::Died { .. } => "ProcessDied",
            Self::Failed { .. } => "WorkerFailed",
            Self::Refused { .. } => "PlacementRefused",
            Self::Unreachable { .. } => "WorkerUnreachable",
            Self::Stuck { .. } => "WorkerStuck",
            Self::Interrupted => "Interrupted",
        }
    }

    /// The process `name` ended and nothing goes on without it.
    pub fn died(name: &str, exit: &Exit) -> Self {
        Self::Died { name: name.to_owned(), how: exit.how.clone(), last: exit.last_words().to_owned() }
    }
}

impl From<LocalError> for Failure {
    fn from(error: LocalError) -> Self {
        match error {
            LocalError::Failed { name, reason, message } => Self::new(format_args!("{name}: {reason}"), message),
            LocalError::Interrupted => Self::new("interrupted", "everything it started is stopped"),
            other => Self::new("local group", other),
        }
    }
}
