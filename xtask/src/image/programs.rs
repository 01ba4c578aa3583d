//! The programs of an image: built by cargo, copied without their debug information, and asked which libraries they get on
//! this machine. The symbol table and the build id stay: a backtrace has names, and a debugger finds the full program.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::elf::{self, Elf};
use super::loader::{self, Files, Library};

/// How cargo builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The folder below the target directory.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "dev" => Some(Self::Dev),
            "release" => Some(Self::Release),
            _ => None,
        }
    }
}

/// A program to put into an image.
pub struct Program {
    /// Its name, and that of its package: the workspace names them alike.
    pub name: &'static str,
    /// The file without debug information.
    pub bytes: Vec<u8>,
    /// What it loads on this machine.
    pub libraries: Vec<Library>,
}

/// Builds programs one by one: building two at once would unify the features of their dependencies, and the list of
/// components would no longer be true.
pub fn build(root: &Path, names: &[&str], profile: Profile) -> Result<()> {
    for name in names {
        let mut command = Command::new(cargo());
        command.args(["build", "--package", name, "--bin", name]).current_dir(root);
        if profile == Profile::Release {
            command.arg("--release");
        }
        let status = command.status().context("run cargo build")?;
        if !status.success() {
            bail!("cargo build --package {name} failed: {status}");
        }
    }
    Ok(())
}

/// The cargo that runs this program, or the one of PATH.
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Takes a built program from `folder`.
pub fn take(name: &'static str, folder: &Path) -> Result<Program> {
    let path = folder.join(name);
    ensure!(path.is_file(), "there is no program {}", path.display());
    let text = path.to_str().context("a path that is not UTF-8")?;
    let libraries = loader::libraries(&Host, text, "").context("a library is missing on this machine")?;
    Ok(Program { name, bytes: stripped(&path)?, libraries })
}

fn stripped(path: &Path) -> Result<Vec<u8>> {
    let scratch = tempfile::tempdir().context("create a scratch folder")?;
    let copy: PathBuf = scratch.path().join("program");
    let output = Command::new("strip").args(["--strip-debug", "-o"]).arg(&copy).arg(path).output();
    let output = output.context("run strip: is it missing? (Debian: apt-get install binutils)")?;
    if !output.status.success() {
        bail!("strip {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::read(&copy).context("read what strip wrote")
}

/// This machine's file system.
struct Host;

impl Files for Host {
    fn elf(&self, path: &str) -> Result<Option<Elf>> {
        match fs::read(path) {
            Ok(bytes) => elf::parse(&bytes).with_context(|| format!("read {path}")),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {path}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_loads_libc_and_becomes_smaller() {
        let path = std::env::current_exe().unwrap();
        let text = path.to_str().unwrap();
        let libraries = loader::libraries(&Host, text, "").unwrap();
        assert!(libraries.iter().any(|library| library.name == "libc.so.6"));
        let bytes = stripped(&path).unwrap();
        assert!((bytes.len() as u64) < fs::metadata(&path).unwrap().len());
        assert_eq!(elf::parse(&bytes).unwrap(), Host.elf(text).unwrap());
    }
}
