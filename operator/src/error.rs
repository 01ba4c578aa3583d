//! Why a reconcile did not go through. Everything here is tried again, with a growing pause; what a user has to mend is no error
//! but a condition.

use m1_operator_plan::Kind;

/// Why a reconcile did not go through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("{verb} {what}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// On which object.
        what: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// An object of that name belongs to somebody else.
    #[error("{kind} {name} exists and belongs to {owner}; it is not taken over: delete or rename it, or rename the deployment", kind = .kind.as_str())]
    Foreign {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// The deployment carries no namespace or uid: it does not come from an API server.
    #[error("the deployment has no {0}")]
    Incomplete(&'static str),
    /// A status that cannot be written as JSON.
    #[error("the object cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// A call that failed.
    pub fn api(verb: &'static str, what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { verb, what, source: Box::new(source) }
    }

    /// The word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => api_reason(source),
            Self::Foreign { .. } => "OwnedByOther",
            Self::Incomplete(_) => "IncompleteObject",
            Self::Json(_) => "NotJson",
        }
    }

    /// Whether somebody changed the object in between: what was read is old, and a new look mends it.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if code(source) == Some(409))
    }
}

/// The HTTP status of an answer, where there was one.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn api_reason(error: &kube::Error) -> &'static str {
    match code(error) {
        Some(403) => "Forbidden",
        Some(404) => "NotFound",
        Some(409) => "Conflict",
        Some(422) => "Invalid",
        Some(429) => "TooManyRequests",
        Some(_) => "ApiRefused",
        None => "ApiUnreachable",
    }
}
