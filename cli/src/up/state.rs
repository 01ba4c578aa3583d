//! `group.json` of `--state-dir`: what runs, for scripts that want an address or a process id. It is there while m1ctl runs.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Failure;
use crate::local::Workers;

/// The file. Dropping it removes it.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Ours while it is open.
    _lock: File,
}

impl StateFile {
    /// In `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made, or another m1ctl has it.
    pub fn new(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(format_args!("--state-dir {}", folder.display()), error);
        std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        let lock = File::create(folder.join("lock")).map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: folder.join("group.json"), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(failed(&"another m1ctl up runs with this folder; give each its own")),
            Err(TryLockError::Error(error)) => Err(failed(&error)),
        }
    }

    /// Replaces the file as a whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, workers: &Workers, router: (SocketAddr, u32)) -> Result<(), Failure> {
        let part = self.path.with_extension("json.part");
        let text = format!("{:#}\n", content(workers, router));
        let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &self.path));
        written.map_err(|error| Failure::new(self.path.display(), error))
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        // Absent where nothing was started.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn content(workers: &Workers, (address, pid): (SocketAddr, u32)) -> Value {
    let pods = workers.pods().iter().zip(workers.pids()).enumerate().map(|(seat, (pod, pid))| {
        json!({
            "group": pod.group,
            "pod": pod.pod,
            "address": pod.address,
            "pid": pid,
            "epoch": workers.epoch(seat),
            "holds": pod.holds.to_hex(),
            "bytes": pod.bytes.0,
        })
    });
    json!({
        "m1ctl": {"pid": std::process::id()},
        "router": {"address": address, "pid": pid},
        "pods": pods.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_m1ctls() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFile::new(folder.path()).unwrap();
        let second = StateFile::new(folder.path()).unwrap_err();
        let second = format!("{second:?}");
        assert!(second.contains("another m1ctl up runs with this folder"), "{second}");
        drop(first);
        StateFile::new(folder.path()).unwrap();
    }
}
