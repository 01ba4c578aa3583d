//! Files in the tree that a command of this crate writes from something else, and holds to it with `--check`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What one command writes.
pub struct Generated {
    /// The command.
    pub command: &'static str,
    /// What the files are made from.
    pub source: &'static str,
    /// Paths below the repository, and contents.
    pub files: Vec<(String, String)>,
}

impl Generated {
    /// Writes the files.
    pub fn write(&self, root: &Path) -> Result<String> {
        for (path, text) in &self.files {
            let path = root.join(path);
            let folder = path.parent().with_context(|| format!("{} has no folder", path.display()))?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(format!("{}: wrote {} files", self.command, self.files.len()))
    }

    /// Fails when a file is not what its source says.
    pub fn check(&self, root: &Path) -> Result<String> {
        let Self { command, source, files } = self;
        for (path, text) in files {
            if fs::read_to_string(root.join(path)).ok().as_ref() != Some(text) {
                bail!("{command}: {path} is not what {source} says: run `cargo xtask {command}`");
            }
        }
        Ok(format!("{command}: {} files are up to date", files.len()))
    }
}
