//! What can be wrong with a `config.json`. Every message says which field, what was given and what is allowed.

use thiserror::Error;

/// A `config.json` that this system cannot serve.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("config.json is not JSON")]
    NotJson {
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// A field that must be there is not, or is null.
    #[error("config.json lacks {field}: allowed: {allowed}")]
    Missing {
        /// Its name.
        field: String,
        /// What may stand there.
        allowed: String,
    },
    /// A field has a value that is wrong by itself or beside another field.
    #[error("config.json has {field} = {given}: allowed: {allowed}")]
    Invalid {
        /// Its name.
        field: String,
        /// What stands there.
        given: String,
        /// What may stand there.
        allowed: String,
    },
    /// A field asks for something that the architecture knows and this system does not run.
    #[error("config.json has {field} = {given}, which is not supported: allowed: {allowed}")]
    NotSupported {
        /// Its name.
        field: String,
        /// What stands there.
        given: String,
        /// What may stand there.
        allowed: String,
    },
}

impl ConfigError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ConfigError::NotJson { .. } => "ConfigNotJson",
            ConfigError::Missing { .. } => "ConfigFieldMissing",
            ConfigError::Invalid { .. } => "ConfigFieldInvalid",
            ConfigError::NotSupported { .. } => "ConfigNotSupported",
        }
    }

    /// The field at fault; `None` where the text is no JSON.
    pub fn field(&self) -> Option<&str> {
        match self {
            ConfigError::NotJson { .. } => None,
            ConfigError::Missing { field, .. } | ConfigError::Invalid { field, .. } | ConfigError::NotSupported { field, .. } => {
                Some(field)
            }
        }
    }
}
