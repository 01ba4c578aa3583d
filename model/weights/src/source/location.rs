//! Where a checkpoint lies, as `--model` names it: a folder, a repository of the hub, or a web address.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Where a checkpoint lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine.
    Folder(PathBuf),
    /// `hf://OWNER/NAME[@REVISION]`: a repository of the Hugging Face hub or of a mirror of it.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// `http://` or `https://` address of a folder, without a slash at its end.
    Web(String),
}

impl Location {
    /// The name of the folder or repository.
    pub fn name(&self) -> Option<String> {
        match self {
            Location::Folder(folder) => Some(folder.file_name()?.to_string_lossy().into_owned()),
            Location::Hub { repo: path, .. } | Location::Web(path) => path.rsplit('/').next().map(str::to_owned),
        }
    }
}

/// An address that is none.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{given:?} is no place of a checkpoint: {why}; allowed: a folder, hf://OWNER/NAME[@REVISION], https://... or http://...")]
pub struct LocationError {
    given: String,
    why: &'static str,
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let wrong = |why| LocationError { given: text.to_owned(), why };
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.is_empty() { Err(wrong("it is empty")) } else { Ok(Location::Folder(text.into())) };
        };
        match scheme {
            "hf" => {
                let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
                let parts: Vec<&str> = repo.split('/').collect();
                if parts.len() != 2 || !parts.iter().all(|part| is_name(part)) {
                    return Err(wrong("a repository is OWNER/NAME of letters, digits and . _ -"));
                }
                if revision.is_empty() || revision.split('/').any(|part| matches!(part, "" | "." | "..")) {
                    return Err(wrong("the revision after @ is a branch, a tag or a commit"));
                }
                Ok(Location::Hub { repo: repo.to_owned(), revision: revision.to_owned() })
            }
            "http" | "https" => {
                let address = text.trim_end_matches('/');
                let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
                if host.is_empty() || address.contains(['?', '#']) || address.chars().any(|c| c.is_whitespace() || c.is_control()) {
                    return Err(wrong("a web address names a host and a folder, without ? and #"));
                }
                Ok(Location::Web(address.to_owned()))
            }
            _ => Err(wrong("its scheme is not served")),
        }
    }
}

fn is_name(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let hub = |repo: &str, revision: &str| Location::Hub { repo: repo.into(), revision: revision.into() };
        for (text, place) in [
            ("demo/m1-demo", Location::Folder("demo/m1-demo".into())),
            ("hf://MiniMaxAI/MiniMax-M1-80k", hub("MiniMaxAI/MiniMax-M1-80k", "main")),
            ("hf://a/b@refs/pr/3", hub("a/b", "refs/pr/3")),
            ("https://h.test:8443/m/", Location::Web("https://h.test:8443/m".into())),
            ("http://h", Location::Web("http://h".into())),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
    }

    #[test]
    fn what_is_no_place() {
        for text in
            ["", "hf://a", "hf://a/b/c", "hf://a/..", "hf://a/b@", "hf://a/b@x/../y", "http://", "https:///m", "http://h/?a=b"]
        {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
        let error = "s3://bucket/m".parse::<Location>().unwrap_err().to_string();
        assert!(
            error.contains("\"s3://bucket/m\"") && error.contains("its scheme is not served") && error.contains("https://"),
            "{error}"
        );
    }
}
