//! What a fetch is told: where the cache is, which hub, with which token, how patiently.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use thiserror::Error;

use super::location::Location;

/// The hub, where nothing else is said.
pub const HUB: &str = "https://huggingface.co";
/// Files that are fetched at once: enough to fill a link that one connection does not, few enough for a hub's limits.
const STREAMS: usize = 4;

/// How a source is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Folder of the cache; made where it is missing.
    pub cache: PathBuf,
    /// Address of the hub or its mirror.
    pub hub: String,
    /// Access token of the hub. It is sent to the hub's own host only.
    pub token: Option<Token>,
    /// Files that are fetched at once, at least 1.
    pub streams: usize,
    /// How often is tried again.
    pub retry: Retry,
}

impl Settings {
    /// The usual settings, with a cache.
    pub fn new(cache: &Path) -> Self {
        Self { cache: cache.to_owned(), hub: HUB.to_owned(), token: None, streams: STREAMS, retry: Retry::default() }
    }
}

/// How often something is tried without any progress, and the pauses between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Tries, at least 1.
    pub tries: u32,
    /// The first pause; each is twice the one before.
    pub first_pause: Duration,
    /// The longest.
    pub longest_pause: Duration,
}

impl Default for Retry {
    /// About two minutes: longer than the restart of a proxy, short enough that somebody who waits is told.
    fn default() -> Self {
        Self { tries: 8, first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(60) }
    }
}

/// An access token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token as it stands in a file or variable: blanks around it do not count. None where nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// What a command line and the environment say of fetching. Whoever reads them fills this in.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// `--cache`.
    pub cache: Option<PathBuf>,
    /// `--hub` or `HF_ENDPOINT`.
    pub hub: Option<String>,
    /// `--hub-token-file`.
    pub token_file: Option<PathBuf>,
    /// `HF_TOKEN`, which counts where there is no file.
    pub token: Option<String>,
    /// `XDG_CACHE_HOME`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

/// A flag that cannot be used.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum GivenError {
    /// There is no usual cache.
    #[error("--cache: not given, and neither XDG_CACHE_HOME nor HOME says where caches lie: give a folder")]
    NoCache,
    /// The hub's address is none.
    #[error("--hub: {0:?} given, allowed: an https:// or http:// address")]
    Hub(String),
    /// The file of the token cannot be read.
    #[error("--hub-token-file: cannot read {path} ({what}): give a readable file that holds the token")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        what: String,
    },
    /// The file of the token holds none.
    #[error("--hub-token-file: {0} is empty: give a file that holds the token")]
    NoToken(PathBuf),
}

impl Given {
    /// Checks what was given and reads the token.
    ///
    /// # Errors
    /// The first flag that cannot be used.
    pub fn check(self) -> Result<Settings, GivenError> {
        let usual = usual_cache(self.xdg_cache_home, self.home);
        let mut settings = Settings::new(&self.cache.or(usual).ok_or(GivenError::NoCache)?);
        if let Some(hub) = self.hub.filter(|hub| !hub.is_empty()) {
            match hub.parse() {
                Ok(Location::Web(hub)) => settings.hub = hub,
                _ => return Err(GivenError::Hub(hub)),
            }
        }
        settings.token = match self.token_file {
            None => self.token.as_deref().and_then(Token::new),
            Some(path) => {
                let text = fs::read_to_string(&path)
                    .map_err(|error| GivenError::TokenFile { path: path.clone(), what: error.to_string() })?;
                Some(Token::new(&text).ok_or(GivenError::NoToken(path))?)
            }
        };
        Ok(settings)
    }
}

/// The folder of fetched models, as XDG has it: `$XDG_CACHE_HOME` or `$HOME/.cache`, then `minimax-m1/models`. None where neither
/// is set.
fn usual_cache(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let base = xdg.filter(|path| path.is_absolute()).or_else(|| Some(home?.join(".cache")))?;
    Some(base.join("minimax-m1/models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_never_shown() {
        let token = Token::new(" hf_x\n").unwrap();
        assert_eq!((token.secret(), format!("{token:?}").as_str()), ("hf_x", "Token(..)"));
        assert!(Token::new("\n").is_none());
    }

    #[test]
    fn the_cache_is_where_xdg_says() {
        let home = || Some(PathBuf::from("/home/u"));
        assert_eq!(usual_cache(Some("/c".into()), home()), Some("/c/minimax-m1/models".into()));
        assert_eq!(usual_cache(Some("relative".into()), home()), Some("/home/u/.cache/minimax-m1/models".into()));
        assert_eq!(usual_cache(None, None), None);
    }

    #[test]
    fn what_is_given_is_checked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token_file = || Some(file.path().to_owned());
        let given = || Given { cache: Some("/c".into()), ..Given::default() };
        assert_eq!(given().check().unwrap().hub, HUB);
        let mirror = Given { hub: Some("http://mirror.test:8080/".into()), token: Some("a".into()), ..given() }.check().unwrap();
        assert_eq!((mirror.hub.as_str(), mirror.token.unwrap().secret()), ("http://mirror.test:8080", "a"));
        let error = |given: Given| given.check().unwrap_err().to_string();
        assert!(error(Given { hub: Some("mirror.test".into()), ..given() }).contains("--hub: \"mirror.test\" given"));
        assert!(error(Given { token_file: token_file(), ..given() }).contains("is empty"));
        assert!(error(Given { token_file: Some("/nowhere".into()), ..given() }).contains("cannot read /nowhere"));
        assert!(error(Given::default()).starts_with("--cache: not given"));
        fs::write(file.path(), "b\n").unwrap();
        let both = Given { token_file: token_file(), token: Some("a".into()), ..given() }.check().unwrap();
        assert_eq!(both.token.unwrap().secret(), "b", "the file goes before the variable");
    }
}
