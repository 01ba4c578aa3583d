//! What a fetch is told: where the cache is, which hub, with which token, how patiently.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub, where nothing else is said.
pub const HUB: &str = "https://huggingface.co";
/// Files that are fetched at once: enough to fill a link that one connection does not, few enough for a hub's limits.
const STREAMS: usize = 4;

/// How a source is fetched.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone, Copy)]
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
#[derive(Clone)]
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

/// The folder of fetched models, as XDG has it: `$XDG_CACHE_HOME` or `$HOME/.cache`, then `minimax-m1/models`. Both variables are
/// given by the caller. None where neither is set.
pub fn usual_cache(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
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
}
