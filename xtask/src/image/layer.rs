//! One layer of an image: files and folders, written as a tar that depends on nothing but them: sorted, owned by 0:0, all
//! of the same age. It holds no links, so that a path means the same to every reader.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tar::{Builder, EntryType, Header};

/// Mode of programs and folders.
pub const EXECUTABLE: u32 = 0o755;
/// Mode of everything else.
pub const READABLE: u32 = 0o644;

/// Where a file's bytes come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// From memory.
    Bytes(Vec<u8>),
    /// From this machine's file.
    Path(PathBuf),
}

#[derive(Clone, Debug)]
enum Entry {
    Folder { mode: u32 },
    File { mode: u32, content: Content },
}

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it holds; shown in the image's history.
    pub title: String,
    entries: BTreeMap<String, Entry>,
}

impl Layer {
    /// An empty layer.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), entries: BTreeMap::new() }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a folder with a mode of its own.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.parents(path);
        self.entries.insert(relative(path), Entry::Folder { mode });
    }

    /// Adds a file of this machine, or replaces it.
    pub fn copy(&mut self, path: &str, mode: u32, from: impl Into<PathBuf>) {
        self.insert(path, mode, Content::Path(from.into()));
    }

    /// Adds a file, or replaces it.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.insert(path, mode, Content::Bytes(bytes.into()));
    }

    fn insert(&mut self, path: &str, mode: u32, content: Content) {
        self.parents(path);
        self.entries.insert(relative(path), Entry::File { mode, content });
    }

    /// Adds the folders above `path` that are not there yet.
    fn parents(&mut self, path: &str) {
        let path = relative(path);
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder { mode: EXECUTABLE });
        }
    }

    /// Writes the tar. A folder comes before what it holds: `a` sorts before `a/b`.
    pub fn write<W: Write>(&self, mtime: u64, out: W) -> Result<W> {
        let mut builder = Builder::new(out);
        for (path, entry) in &self.entries {
            append(&mut builder, path, entry, mtime).with_context(|| format!("add {path} to the layer of {}", self.title))?;
        }
        builder.into_inner().context("end a layer")
    }
}

fn append<W: Write>(builder: &mut Builder<W>, path: &str, entry: &Entry, mtime: u64) -> Result<()> {
    match entry {
        Entry::Folder { mode } => {
            let mut header = header(EntryType::Directory, *mode, 0, mtime);
            builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Entry::File { mode, content: Content::Bytes(bytes) } => {
            let mut header = header(EntryType::Regular, *mode, bytes.len() as u64, mtime);
            builder.append_data(&mut header, path, bytes.as_slice())?;
        }
        Entry::File { mode, content: Content::Path(from) } => {
            let file = File::open(from).with_context(|| format!("open {}", from.display()))?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                bail!("{} is not a file", from.display());
            }
            let mut header = header(EntryType::Regular, *mode, metadata.len(), mtime);
            builder.append_data(&mut header, path, file)?;
        }
    }
    Ok(())
}

/// A header that says nothing of the machine that wrote it.
pub fn header(kind: EntryType, mode: u32, size: u64, mtime: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn relative(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(layer: &Layer) -> Vec<u8> {
        layer.write(0, Vec::new()).unwrap()
    }

    #[test]
    fn order_of_adding_and_age_of_files_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        std::fs::write(&from, "b").unwrap();
        let mut one = Layer::new("x");
        one.file("/a/b", READABLE, "b");
        one.file("/a/a", READABLE, "a");
        let mut two = Layer::new("y");
        two.file("a/a", READABLE, "a");
        two.copy("a/b", READABLE, &from);
        assert_eq!(written(&one), written(&two));
        two.file("a/b", READABLE, "c");
        assert_ne!(written(&one), written(&two));
    }

    #[test]
    fn parents_come_first_and_all_belongs_to_root() {
        let mut layer = Layer::new("x");
        layer.file("/usr/local/bin/a", EXECUTABLE, "a");
        layer.file("/usr-b", READABLE, "b");
        layer.folder("/tmp", 0o1777);
        let bytes = written(&layer);
        let mut seen = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            seen.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let expected = [
            ("tmp/", 0o1777),
            ("usr/", 0o755),
            ("usr-b", 0o644),
            ("usr/local/", 0o755),
            ("usr/local/bin/", 0o755),
            ("usr/local/bin/a", 0o755),
        ];
        assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }
}
