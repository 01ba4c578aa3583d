//! Checks an archive without a runtime: every digest and size, that both descriptions (OCI and `docker save`) mean the same
//! blobs, that the programs would start as an ordinary user, and that every library they need is inside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;
use tar::EntryType;

use super::digest::{Digest, Hashed};
use super::elf::{self, Elf};
use super::loader::{self, Files};
use super::oci::{CONFIG_TYPE, CONTAINERD_NAME, LAYER_TYPE, MANIFEST_TYPE, OCI_NAME};

const BLOBS: &str = "blobs/sha256/";
/// Descriptions are a few kilobytes; a larger one is not read into memory.
const MAX_JSON: u64 = 1 << 20;

/// What a checked archive holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    pub reference: String,
    pub digest: String,
    pub files: usize,
    /// Programs and libraries.
    pub elf_files: usize,
}

/// Checks the archive at `path`.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(path: &Path) -> Result<Checked> {
    checked(path).with_context(|| format!("{} is not sound", path.display()))
}

fn checked(path: &Path) -> Result<Checked> {
    let archive = Archive::open(path)?;
    archive.verify_blobs()?;
    ensure!(archive.json("oci-layout")?["imageLayoutVersion"] == "1.0.0", "oci-layout names another version than 1.0.0");
    let index = archive.json("index.json")?;
    ensure!(index["manifests"].as_array().map(Vec::len) == Some(1), "index.json does not list one manifest");
    let entry = &index["manifests"][0];
    let reference = text(&entry["annotations"][CONTAINERD_NAME], "the name for containerd")?;
    ensure!(entry["annotations"][OCI_NAME] == reference.as_str(), "index.json gives two names");
    let manifest_path = archive.blob(entry, MANIFEST_TYPE)?;
    let manifest = archive.json(&manifest_path)?;
    let config_path = archive.blob(&manifest["config"], CONFIG_TYPE)?;
    let config = archive.json(&config_path)?;
    let layers: Vec<String> = array(&manifest["layers"]).map(|layer| archive.blob(layer, LAYER_TYPE)).collect::<Result<_>>()?;

    let docker = serde_json::json!([{"Config": config_path, "RepoTags": [reference], "Layers": layers}]);
    ensure!(archive.json("manifest.json")? == docker, "manifest.json does not say what index.json says");
    let used: BTreeSet<&String> = layers.iter().chain([&manifest_path, &config_path]).collect();
    if let Some(idle) = archive.members.keys().find(|name| name.starts_with(BLOBS) && !used.contains(name)) {
        bail!("nothing refers to {idle}");
    }
    let tree = archive.tree(&layers, &config["rootfs"]["diff_ids"])?;
    tree.check_start(&config["config"])?;
    let elf_files = tree.check_libraries(&config["config"])?;
    Ok(Checked { reference, digest: text(&entry["digest"], "the digest")?, files: tree.0.len(), elf_files })
}

fn text(value: &Value, what: &str) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("{what} is missing"))?.to_owned())
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// An open archive: where each member lies, and how long it is.
struct Archive {
    file: File,
    members: BTreeMap<String, (u64, u64)>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context("open the archive")?;
        let mut members = BTreeMap::new();
        for entry in tar::Archive::new(BufReader::new(&file)).entries_with_seek()? {
            let entry = entry.context("read the archive")?;
            if entry.header().entry_type() == EntryType::Regular {
                let name = entry.path()?.to_str().context("a name that is not UTF-8")?.to_owned();
                members.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(Self { file, members })
    }

    /// Reads one member; another call moves the file's one position, so one reader lives at a time.
    fn reader(&self, name: &str) -> Result<impl Read + '_> {
        let (at, size) = *self.members.get(name).with_context(|| format!("{name} is missing"))?;
        (&self.file).seek(SeekFrom::Start(at)).context("seek in the archive")?;
        Ok(BufReader::new((&self.file).take(size)))
    }

    fn json(&self, name: &str) -> Result<Value> {
        let mut bytes = Vec::new();
        self.reader(name)?.take(MAX_JSON).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{name} is not JSON"))
    }

    fn verify_blobs(&self) -> Result<()> {
        for (name, (_, size)) in self.members.iter().filter(|(name, _)| name.starts_with(BLOBS)) {
            let mut reader = Hashed::new(self.reader(name)?);
            std::io::copy(&mut reader, &mut std::io::sink()).with_context(|| format!("read {name}"))?;
            let expected = Digest { hex: name[BLOBS.len()..].to_owned(), size: *size };
            ensure!(reader.finish().1 == expected, "{name} holds other bytes than its name says");
        }
        Ok(())
    }

    /// The member that a descriptor means.
    fn blob(&self, descriptor: &Value, media_type: &str) -> Result<String> {
        ensure!(descriptor["mediaType"] == media_type, "expected {media_type}, found {}", descriptor["mediaType"]);
        let digest = text(&descriptor["digest"], "a digest")?;
        let name = format!("{BLOBS}{}", digest.strip_prefix("sha256:").context("a digest that is not SHA-256")?);
        let (_, size) = self.members.get(&name).with_context(|| format!("{name} is missing"))?;
        ensure!(descriptor["size"] == *size, "the size of {name} is not {}", descriptor["size"]);
        Ok(name)
    }

    /// The files of all layers, upper ones over lower ones.
    fn tree(&self, layers: &[String], diffs: &Value) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut expected = array(diffs);
        for name in layers {
            let mut reader = Hashed::new(GzDecoder::new(self.reader(name)?));
            tree.add(&mut reader).with_context(|| format!("read {name}"))?;
            std::io::copy(&mut reader, &mut std::io::sink()).with_context(|| format!("read {name}"))?;
            let diff = reader.finish().1.reference();
            ensure!(expected.next() == Some(&Value::String(diff)), "the configuration does not name the contents of {name}");
        }
        ensure!(expected.next().is_none(), "the configuration names more layers than there are");
        Ok(tree)
    }
}

/// A file of an image.
struct Node {
    mode: u32,
    elf: Option<Elf>,
}

/// The files of an image by absolute path.
#[derive(Default)]
struct Tree(BTreeMap<String, Node>);

impl Tree {
    fn add(&mut self, layer: impl Read) -> Result<()> {
        for entry in tar::Archive::new(layer).entries()? {
            let mut entry = entry?;
            let path = format!("/{}", entry.path()?.to_str().context("a path that is not UTF-8")?);
            ensure!(normal(&path) == path.trim_end_matches('/'), "{path} is not a plain path");
            match entry.header().entry_type() {
                EntryType::Directory => continue,
                EntryType::Regular => {}
                kind => bail!("{path} is neither file nor folder: {kind:?}"),
            }
            let mode = entry.header().mode()?;
            ensure!(mode & 0o6000 == 0, "{path} would run as another user");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            let elf = elf::parse(&bytes).with_context(|| format!("read {path}"))?;
            self.0.insert(path, Node { mode, elf });
        }
        Ok(())
    }

    /// The program is there and does not run as root.
    fn check_start(&self, config: &Value) -> Result<()> {
        let Some(program) = config["Entrypoint"][0].as_str() else { return Ok(()) };
        let mode = self.0.get(program).with_context(|| format!("the entry point {program} is missing"))?.mode;
        ensure!(mode & 0o001 != 0, "the entry point {program} may not be executed by everybody");
        let user = text(&config["User"], "the user")?;
        let id = user.split(':').next().unwrap_or("");
        // A name would do for docker; Kubernetes' runAsNonRoot wants a number.
        ensure!(id.parse::<u32>().is_ok_and(|id| id != 0), "the user `{user}` is not a number other than 0");
        Ok(())
    }

    /// Every program finds its libraries, and no library is there for nobody. Returns how many ELF files there are.
    fn check_libraries(&self, config: &Value) -> Result<usize> {
        let mut env = array(&config["Env"]).filter_map(Value::as_str);
        let library_path = env.find_map(|line| line.strip_prefix("LD_LIBRARY_PATH=")).unwrap_or("");
        let mut reached = BTreeSet::new();
        let elf_files = || self.0.iter().filter_map(|(path, node)| Some((path, node.elf.as_ref()?)));
        for (path, _) in elf_files().filter(|(_, elf)| elf.interpreter.is_some()) {
            reached.insert(path.clone());
            reached.extend(loader::libraries(self, path, library_path)?.into_iter().map(|library| normal(&library.path)));
        }
        for (path, _) in elf_files() {
            ensure!(reached.contains(path), "no program loads {path}");
        }
        Ok(elf_files().count())
    }
}

impl Files for Tree {
    fn elf(&self, path: &str) -> Result<Option<Elf>> {
        Ok(self.0.get(&normal(path)).and_then(|node| node.elf.clone()))
    }
}

/// A path without `.`, `..` and doubled slashes.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests;
