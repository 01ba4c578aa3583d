//! Who may ask: API keys from a folder, one file each, as a mounted Secret has them. Only digests are kept, and no key is ever logged.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::ApiError;

/// How often the folder is looked at. A kubelet takes up to a minute to change a mounted Secret, so this adds little.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// Why keys cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--api-keys: cannot read {}", path.display())]
pub struct KeysError {
    path: PathBuf,
    source: std::io::Error,
}

impl KeysError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        "KeysUnreadable"
    }
}

type Digests = Vec<[u8; 32]>;

/// The keys of those who may ask.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    digests: Mutex<Digests>,
}

impl Keys {
    /// Reads the folder.
    ///
    /// # Errors
    /// The folder, or a file in it, cannot be read.
    pub fn open(dir: PathBuf) -> Result<Arc<Self>, KeysError> {
        let digests = read(&dir)?;
        report(&dir, &digests);
        Ok(Arc::new(Self { dir, digests: Mutex::new(digests) }))
    }

    /// Looks at the folder again and again. What cannot be read changes nothing.
    pub async fn follow(self: Arc<Self>, interval: Duration) {
        let mut looks = tokio::time::interval(interval);
        loop {
            looks.tick().await;
            let keys = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || keys.look()).await {
                tracing::warn!(%error, "nobody could look at the API keys");
            }
        }
    }

    fn look(&self) {
        match read(&self.dir) {
            Ok(digests) => {
                let mut known = self.lock();
                if *known != digests {
                    report(&self.dir, &digests);
                    *known = digests;
                }
            }
            Err(error) => {
                let cause = &error.source;
                tracing::warn!(reason = error.reason(), %error, %cause, "the API keys stay as they were");
            }
        }
    }

    /// Lets a request in that carries a key.
    ///
    /// # Errors
    /// It carries none, or an unknown one.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Err(ApiError::Unauthorized { given: "nothing" }) };
        let (scheme, key) = value.as_bytes().split_at_checked(7).ok_or(ApiError::Unauthorized { given: "no bearer token" })?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(ApiError::Unauthorized { given: "no bearer token" });
        }
        if self.knows(key.trim_ascii()) { Ok(()) } else { Err(ApiError::Unauthorized { given: "an unknown key" }) }
    }

    /// Compares with every key, whichever it is: the time says nothing about how near a guess was.
    fn knows(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.lock().iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&digest)).into()
    }

    fn lock(&self) -> MutexGuard<'_, Digests> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(dir: &Path, digests: &Digests) {
    match digests.len() {
        0 => tracing::warn!(dir = %dir.display(), "no API key: nobody may ask"),
        keys => tracing::info!(dir = %dir.display(), keys, "API keys"),
    }
}

/// Digests of all keys, in order. Names that begin with a dot are a mount's own; space around a key is none of it; an empty file is no key.
fn read(dir: &Path) -> Result<Digests, KeysError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError { path, source }
    };
    let mut digests = Digests::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // Files of a mounted Secret are links.
        if hidden || !std::fs::metadata(&path).map_err(failed(&path))?.is_file() {
            continue;
        }
        let content = std::fs::read(&path).map_err(failed(&path))?;
        match content.trim_ascii() {
            b"" => tracing::warn!(file = %path.display(), "an empty file is no API key"),
            key => digests.push(Sha256::digest(key).into()),
        }
    }
    digests.sort_unstable();
    digests.dedup();
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn given(keys: &Keys, authorization: Option<&str>) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        keys.admit(&headers).map_err(|error| match error {
            ApiError::Unauthorized { given } => given,
            other => panic!("{other}"),
        })
    }

    /// A folder as a kubelet mounts a Secret.
    fn mount(dir: &Path, version: &str, keys: &[(&str, &str)]) {
        let data = dir.join(version);
        std::fs::create_dir(&data).unwrap();
        for (name, key) in keys {
            std::fs::write(data.join(name), key).unwrap();
            let _ = std::os::unix::fs::symlink(format!("..data/{name}"), dir.join(name));
        }
        std::os::unix::fs::symlink(version, dir.join("..new")).unwrap();
        std::fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
    }

    #[test]
    fn keys_open_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        mount(dir.path(), "..1", &[("alice", "key-a\n"), ("bob", "key-b"), ("empty", " \n")]);
        let keys = Keys::open(dir.path().to_owned()).unwrap();
        assert_eq!(given(&keys, Some("Bearer key-a")), Ok(()));
        assert_eq!(given(&keys, Some("bearer  key-b ")), Ok(()));
        assert_eq!(given(&keys, None), Err("nothing"));
        for none in ["key-a", "Basic key-a", "Bearer", ""] {
            assert_eq!(given(&keys, Some(none)), Err("no bearer token"), "{none}");
        }
        for unknown in ["Bearer key-c", "Bearer key-a key-b", "Bearer ", "Bearer alice", "Bearer key-"] {
            assert_eq!(given(&keys, Some(unknown)), Err("an unknown key"), "{unknown}");
        }
    }

    #[test]
    fn a_folder_that_changes_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        mount(dir.path(), "..1", &[("alice", "old")]);
        let keys = Keys::open(dir.path().to_owned()).unwrap();
        mount(dir.path(), "..2", &[("alice", "new")]);
        keys.look();
        assert_eq!(given(&keys, Some("Bearer new")), Ok(()));
        assert_eq!(given(&keys, Some("Bearer old")), Err("an unknown key"));
        // A link that leads nowhere: the kubelet is not done, or somebody broke it. Nobody is locked out.
        std::os::unix::fs::symlink("..data/nothing", dir.path().join("bob")).unwrap();
        keys.look();
        assert_eq!(given(&keys, Some("Bearer new")), Ok(()));
    }

    #[test]
    fn an_empty_folder_admits_nobody_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path().to_owned()).unwrap();
        assert_eq!(given(&keys, Some("Bearer ")), Err("an unknown key"));
        let error = Keys::open(dir.path().join("x")).unwrap_err();
        assert!(error.to_string().starts_with("--api-keys: cannot read "), "{error}");
    }

    #[tokio::test]
    async fn the_folder_is_looked_at_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        mount(dir.path(), "..1", &[("alice", "old")]);
        let keys = Keys::open(dir.path().to_owned()).unwrap();
        let follower = tokio::spawn(Arc::clone(&keys).follow(Duration::from_millis(5)));
        for (version, key) in [("..2", "new"), ("..3", "newer")] {
            mount(dir.path(), version, &[("alice", key)]);
            let bearer = format!("Bearer {key}");
            let seen = async {
                while given(&keys, Some(&bearer)).is_err() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), seen).await.expect("it was seen");
        }
        follower.abort();
    }
}
