//! Why a reconcile did not go through. Everything here is tried again, with a growing pause; what a user has to mend is no error
//! but a condition.

use m1_operator_plan::Kind;

/// Why a reconcile did not go through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("{verb} {what}: {}", words(source))]
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

/// What the answer to a trial says of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it can be tried again.
    None,
    /// Nothing, and another trial would say no more.
    Untried,
    /// It will not be taken as it is.
    Refused,
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

    /// What an answer says of the object that was tried.
    pub fn verdict(&self) -> Verdict {
        let Self::Api { source, .. } = self else { return Verdict::None };
        let kube::Error::Api(status) = source.as_ref() else { return Verdict::None };
        match status.code {
            400 if status.message.contains("does not support dry run") => Verdict::Untried,
            // Says what there is now, not what is wrong.
            403 if status.message.contains("exceeded quota") => Verdict::Untried,
            // A field of no known name or type is an internal error to the API server.
            500 if !status.message.contains("typed patch object") => Verdict::None,
            400 | 403 | 422 | 500 => Verdict::Refused,
            _ => Verdict::None,
        }
    }

    /// Whether somebody changed the object in between: what was read is old, and a new look mends it.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if code(source) == Some(409))
    }
}

/// What the API server answered, or why it did not.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, message: &str) -> Error {
        let status = kube::core::Status { code, message: message.to_owned(), ..kube::core::Status::default() };
        Error::api("try", "StatefulSet chat-0")(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn an_object_is_refused_for_what_it_is_and_not_for_what_there_is() {
        let verdicts = [
            (422, "spec.template.spec.tolerations[0].operator: Unsupported value: \"Wrong\"", Verdict::Refused),
            (403, "admission webhook \"rules.example.test\" denied the request: no team label", Verdict::Refused),
            (
                500,
                "failed to create typed patch object: .spec.template.spec.tolerationz: field not declared in schema",
                Verdict::Refused,
            ),
            (403, "statefulsets.apps \"chat-0\" is forbidden: exceeded quota: team", Verdict::Untried),
            (400, "admission webhook \"rules.example.test\" does not support dry run", Verdict::Untried),
            (500, "etcdserver: leader changed", Verdict::None),
            (429, "too many requests", Verdict::None),
            (409, "the object has been modified", Verdict::None),
        ];
        for (code, message, verdict) in verdicts {
            assert_eq!(answer(code, message).verdict(), verdict, "{code} {message}");
        }
    }
}
