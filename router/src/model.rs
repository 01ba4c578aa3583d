//! The served model as the router knows it: its name, tokenizer, chat template and vocabulary. Opened once, shared by reference.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use m1_arch::{Architecture, ConfigError};
use m1_text::{ChatTemplate, EncodeError, TemplateError, Tokenizer, TokenizerError};

use crate::error::ApiError;

/// What closes the reasoning when its budget is spent: several ordinary tokens, as the model writes them.
const CLOSE_REASONING: &str = "</think>\n";

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// config.json is not there.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// config.json is not a model's.
    #[error("config.json: {0}")]
    Config(#[from] ConfigError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text that closes the reasoning.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl ModelError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "ConfigUnreadable",
            Self::Config(_) => "ConfigInvalid",
            Self::Tokenizer(error) => error.reason(),
            Self::Template(error) => error.reason(),
            Self::Encode(error) => error.reason(),
        }
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    /// As requests and answers name it.
    pub name: String,
    /// Seconds since 1970 when it was opened.
    pub created: u64,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Conversations to text.
    pub template: ChatTemplate,
    /// Ids are below this.
    pub vocab: u32,
    /// Ids that close the reasoning.
    pub close_ids: Vec<u32>,
}

impl Model {
    /// Reads config.json and the tokenizer's files.
    ///
    /// # Errors
    /// The file that is missing or wrong.
    pub fn open(dir: &Path, name: String) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path, source })?;
        let vocab = u32::try_from(Architecture::from_json(&config)?.vocab).unwrap_or(u32::MAX);
        let tokenizer = Tokenizer::open(dir)?;
        let template = ChatTemplate::open(dir, &tokenizer)?;
        let close_ids = tokenizer.encode(CLOSE_REASONING)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Ok(Self { name, created, tokenizer, template, vocab, close_ids })
    }

    /// Refuses another model's name.
    ///
    /// # Errors
    /// It is not this one's.
    pub fn check_name(&self, given: &str) -> Result<(), ApiError> {
        if given == self.name {
            return Ok(());
        }
        Err(ApiError::UnknownModel { given: crate::error::cut(given), known: self.name.clone() })
    }

    /// Ids of raw text.
    ///
    /// # Errors
    /// A damaged vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        self.tokenizer.encode(text).map_err(|error| ApiError::Internal(error.to_string()))
    }
}
