//! One thing that is wrong with a manifest: where, what was given, what is allowed.

use std::fmt;

use serde::Serialize;

/// What kind of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum FieldReason {
    /// The text is no YAML, or no object of this kind.
    Malformed,
    /// A field nobody knows.
    UnknownField,
    /// A required field is missing.
    Required,
    /// A value of the wrong type, or outside what is allowed.
    Invalid,
    /// A value this build does not run yet.
    NotImplemented,
}

impl FieldReason {
    /// The word used in logs and conditions.
    pub fn as_str(self) -> &'static str {
        match self {
            FieldReason::Malformed => "Malformed",
            FieldReason::UnknownField => "UnknownField",
            FieldReason::Required => "Required",
            FieldReason::Invalid => "Invalid",
            FieldReason::NotImplemented => "NotImplemented",
        }
    }
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// The field, from the root: `spec.parallelism.expert`, `spec.worker.tolerations[0].key`. Empty for the whole text.
    pub path: String,
    /// What was given, as it would be written; none where nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given: Option<String>,
    /// What is allowed, or what to do.
    pub message: String,
    /// What kind of fault it is.
    pub reason: FieldReason,
}

impl FieldError {
    /// A value outside what is allowed.
    pub fn invalid(path: impl Into<String>, given: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { path: path.into(), given: Some(given.to_string()), message: message.into(), reason: FieldReason::Invalid }
    }

    /// A required field that is missing.
    pub fn required(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), given: None, message: message.into(), reason: FieldReason::Required }
    }

    /// A field nobody knows.
    pub fn unknown(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), given: None, message: message.into(), reason: FieldReason::UnknownField }
    }

    /// A text that is no object of this kind.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self { path: String::new(), given: None, message: message.into(), reason: FieldReason::Malformed }
    }

    /// A value this build does not run yet.
    pub fn not_implemented(path: impl Into<String>, given: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { path: path.into(), given: Some(given.to_string()), message: message.into(), reason: FieldReason::NotImplemented }
    }

    /// The word used in logs and conditions.
    pub fn reason(&self) -> &'static str {
        self.reason.as_str()
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path.is_empty(), &self.given) {
            (true, _) => write!(out, "{}", self.message),
            (false, None) => write!(out, "{}: {}", self.path, self.message),
            (false, Some(given)) => write!(out, "{}: {given}: {}", self.path, self.message),
        }
    }
}

impl std::error::Error for FieldError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_field_then_what_was_given_then_what_is_allowed() {
        let error = FieldError::invalid("spec.parallelism.expert", 0, "must be 1 to 256");
        assert_eq!(error.to_string(), "spec.parallelism.expert: 0: must be 1 to 256");
        assert_eq!(FieldError::malformed("no YAML").to_string(), "no YAML");
        assert_eq!(error.reason(), "Invalid");
    }
}
