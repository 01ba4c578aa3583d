//! When a worker that could not use its checkpoint ends, so that whoever supervises it starts it anew. Until then it stays `Failed`
//! and says why. A folder is read again once somebody has changed its files, or a while after they could not be read any more while
//! they were in use; a fetch is tried again a while after the network was in its way, and never for a refusal or a wrong checksum.
//! Nothing is opened or read here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::interval;

/// How often is looked: somebody who has mended a checkpoint waits for it, and a look costs one `stat` a file.
pub const EVERY: Duration = Duration::from_secs(5);

/// How long what failed for now is left alone. A fetch had tried for minutes, and whoever starts this process anew waits longer
/// from time to time.
pub const PAUSE: Duration = Duration::from_secs(60);

/// What makes another start worth while.
#[derive(Debug)]
pub enum Again {
    /// Changed files in a folder, or time, after one that failed for now.
    Files(Watch),
    /// Time, after a fetch that failed for now.
    Time,
}

/// Completes when `failed_for_now` has been true for `pause`.
pub async fn passed(every: Duration, pause: Duration, failed_for_now: impl Fn() -> bool) {
    let mut looks = interval(every);
    let mut since = None;
    loop {
        let now = looks.tick().await;
        match (failed_for_now(), since) {
            (false, _) => since = None,
            (true, None) => since = Some(now),
            (true, Some(began)) if now.duration_since(began) >= pause => return,
            (true, Some(_)) => {}
        }
    }
}

/// What can be seen of a checkpoint from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// The folder cannot be read.
    Missing,
    /// Size and time of change by name.
    Here(BTreeMap<String, (u64, Option<SystemTime>)>),
}

impl Files {
    /// Looks at a folder. Links are followed: mounted volumes and download caches are made of them.
    pub fn of(folder: &Path) -> Self {
        let Ok(entries) = std::fs::read_dir(folder) else { return Self::Missing };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| belongs(name));
        // One that goes while this looks is as good as gone.
        let seen = names.filter_map(|name| {
            let meta = std::fs::metadata(folder.join(&name)).ok()?;
            Some((name, (meta.len(), meta.modified().ok())))
        });
        Self::Here(seen.collect())
    }
}

/// Whether a checkpoint is read from this file.
fn belongs(name: &str) -> bool {
    name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

/// Tells a change that is complete from one that goes on.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    /// As they were before they were read.
    first: Files,
    last: Option<Files>,
}

impl Watch {
    /// Remembers the files as they are. Called before they are read: what changes while they are read counts as a change.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), first: Files::of(folder), last: None }
    }

    /// Takes one look. True: the files differ from the first ones, and have stayed so since the look before.
    fn settled(&mut self, now: Files) -> bool {
        let settled = now != self.first && self.last.as_ref() == Some(&now);
        self.last = Some(now);
        settled
    }

    /// Completes when the files have changed and have stayed unchanged for one more look, as long as `failed` says so.
    pub async fn changed(mut self, every: Duration, failed: impl Fn() -> bool) {
        let mut looks = interval(every);
        loop {
            looks.tick().await;
            if !failed() {
                continue;
            }
            let folder = self.folder.clone();
            // A file system that hangs must not hold a thread that connections need.
            let Ok(now) = tokio::task::spawn_blocking(move || Files::of(&folder)).await else { continue };
            if self.settled(now) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn look(watch: &mut Watch) -> bool {
        let now = Files::of(&watch.folder);
        watch.settled(now)
    }

    #[test]
    fn a_change_counts_once_it_has_stood_for_a_look() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("config.json"), "{").unwrap();
        let mut watch = Watch::new(folder.path());
        assert!(!look(&mut watch) && !look(&mut watch), "nothing has changed");
        fs::write(file("README.md"), "read me").unwrap();
        assert!(!look(&mut watch) && !look(&mut watch), "this is not read");
        fs::write(file("model.safetensors"), "a").unwrap();
        assert!(!look(&mut watch), "it may still be written");
        fs::write(file("model.safetensors"), "ab").unwrap();
        assert!(!look(&mut watch), "it was");
        assert!(look(&mut watch));
        fs::remove_file(file("model.safetensors")).unwrap();
        assert!(!look(&mut watch) && !look(&mut watch), "as it was at first");
    }

    #[test]
    fn the_same_size_at_another_time_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors.index.json");
        fs::write(&path, "{}").unwrap();
        let mut watch = Watch::new(folder.path());
        let later = SystemTime::now() + Duration::from_secs(10);
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(!look(&mut watch) && look(&mut watch));
    }

    #[test]
    fn a_folder_may_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        let mut watch = Watch::new(&model);
        assert_eq!(watch.first, Files::Missing);
        assert!(!look(&mut watch) && !look(&mut watch));
        fs::create_dir(&model).unwrap();
        assert!(!look(&mut watch) && look(&mut watch), "an empty one is another state, with another message");
        fs::remove_dir(&model).unwrap();
        assert!(!look(&mut watch) && !look(&mut watch));
    }

    #[tokio::test]
    async fn only_a_failed_worker_looks() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::new(folder.path());
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let (every, long) = (Duration::from_millis(1), Duration::from_millis(50));
        assert!(tokio::time::timeout(long, watch.changed(every, || false)).await.is_err());
        let watch = Watch::new(Path::new("/nowhere"));
        let watch = Watch { folder: folder.path().to_owned(), ..watch };
        tokio::time::timeout(Duration::from_secs(60), watch.changed(every, || true)).await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_that_may_pass_ends_the_process_after_a_pause() {
        let (every, pause) = (Duration::from_millis(1), Duration::from_millis(50));
        assert!(tokio::time::timeout(pause * 2, passed(every, pause, || false)).await.is_err());
        let began = tokio::time::Instant::now();
        passed(every, pause, || true).await;
        assert!(began.elapsed() >= pause);
    }
}
