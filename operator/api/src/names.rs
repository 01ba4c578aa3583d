//! Checked names: a value of these types can be written into an object without another look.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// Longest `metadata.name` of a deployment. Pods are `NAME-GROUP-POD` and objects append words such as `-router-metrics`;
/// label values and Service names end at 63 characters.
pub const MAX_NAME_LENGTH: usize = 40;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// It is too long.
    #[error("at most {MAX_NAME_LENGTH} characters, so that the names of its pods and services fit; this has {0}")]
    TooLong(usize),
    /// A character that does not belong.
    #[error("lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit")]
    Characters,
}

impl NameError {
    /// The word used in logs and conditions.
    pub fn reason(&self) -> &'static str {
        "InvalidName"
    }
}

/// The name of a deployment: an RFC 1035 label of at most 40 characters, so that every child's name derives from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ResourceName(String);

impl ResourceName {
    /// Checks a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.chars().count() > MAX_NAME_LENGTH {
            return Err(NameError::TooLong(text.chars().count()));
        }
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) || !text.chars().all(inner) || text.ends_with('-') {
            return Err(NameError::Characters);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the StatefulSet of a replica group, and of its ExpertPlacement.
    pub fn group(&self, group: u32) -> String {
        format!("{}-{group}", self.0)
    }

    /// Name of a worker pod, as the group's StatefulSet gives it.
    pub fn pod(&self, group: u32, pod: u32) -> String {
        format!("{}-{group}-{pod}", self.0)
    }

    /// Name of the StatefulSet, headless Service and ExpertPlacement of a group in one revision. At most 51 characters:
    /// the StatefulSet controller appends 11 to make a label value, which ends at 63.
    pub fn revised_group(&self, group: u32, revision: &str) -> String {
        format!("{}-{group}-{revision}", self.0)
    }

    /// Name of the workers' ServiceAccount and NetworkPolicy.
    pub fn worker(&self) -> String {
        format!("{}-worker", self.0)
    }

    /// Name of the Secret with the certificate that routers, workers and the operator show each other.
    pub fn members_certificate(&self) -> String {
        format!("{}-members-tls", self.0)
    }

    /// Name of the Secret with the authority that signs it.
    pub fn members_authority(&self) -> String {
        format!("{}-members-ca", self.0)
    }

    /// Name of the router's Deployment and Service.
    pub fn router(&self) -> String {
        format!("{}-router", self.0)
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_children_can_be_derived_from() {
        let name = ResourceName::new("m1-demo").unwrap();
        assert_eq!(
            (name.group(0), name.pod(0, 1), name.router()),
            ("m1-demo-0".into(), "m1-demo-0-1".into(), "m1-demo-router".into())
        );
        assert!(ResourceName::new(&"a".repeat(40)).is_ok());
    }

    #[test]
    fn names_that_are_refused() {
        assert_eq!(ResourceName::new(""), Err(NameError::Empty));
        assert_eq!(ResourceName::new(&"a".repeat(41)), Err(NameError::TooLong(41)));
        for text in ["M1", "1m", "-m", "m-", "m.1", "m_1", "mä"] {
            assert_eq!(ResourceName::new(text), Err(NameError::Characters), "{text}");
        }
    }
}
