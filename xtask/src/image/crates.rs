//! The crates inside a program. `cargo tree` says which ones: it resolves features for one package, as `cargo build
//! --package` does, and leaves out what only runs while building. `cargo metadata` says what each is and needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::programs::cargo;

/// Name and version: no two crates of this workspace's lock share both.
pub type Id = (String, String);

/// A crate inside a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crate {
    pub licence: Option<String>,
    /// Whether it came from crates.io; false for the workspace's own.
    pub published: bool,
    /// What it uses.
    pub uses: BTreeSet<Id>,
}

/// The answer of `cargo metadata`.
pub struct Metadata(Value);

impl Metadata {
    /// Asks cargo.
    pub fn ask(root: &Path) -> Result<Self> {
        let answer = ask(root, &["metadata", "--format-version", "1"])?;
        Ok(Self(serde_json::from_str(&answer).context("cargo metadata does not answer in JSON")?))
    }

    /// Where cargo builds.
    pub fn target_directory(&self) -> Result<PathBuf> {
        Ok(self.0["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
    }

    /// The crates inside the programs of `packages`.
    pub fn crates(&self, root: &Path, packages: &[&str]) -> Result<BTreeMap<Id, Crate>> {
        let mut reached = BTreeSet::new();
        for package in packages {
            let edges = ["tree", "--package", package, "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
            reached.extend(listed(&ask(root, &edges)?));
        }
        crates(&self.0, &reached)
    }
}

fn ask(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(cargo()).args(arguments).current_dir(root).output().context("run cargo")?;
    if !output.status.success() {
        bail!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("cargo does not answer in UTF-8")
}

/// Lines `NAME vVERSION`, with more words behind some.
fn listed(tree: &str) -> impl Iterator<Item = Id> + '_ {
    tree.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    })
}

fn crates(metadata: &Value, reached: &BTreeSet<Id>) -> Result<BTreeMap<Id, Crate>> {
    let array = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let mut ids = BTreeMap::new();
    let mut crates = BTreeMap::new();
    for package in array(&metadata["packages"]) {
        let id = (text(&package["name"]), text(&package["version"]));
        ids.insert(text(&package["id"]), id.clone());
        if reached.contains(&id) {
            // Old crates put a slash where SPDX has OR.
            let licence = package["license"].as_str().map(|licence| licence.replace('/', " OR ").replace("  ", " "));
            crates.insert(id, Crate { licence, published: package["source"].is_string(), uses: BTreeSet::new() });
        }
    }
    for node in array(&metadata["resolve"]["nodes"]) {
        let Some(user) = ids.get(&text(&node["id"])).and_then(|id| crates.get_mut(id)) else { continue };
        for used in array(&node["deps"]) {
            let normal = array(&used["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            let id = ids.get(&text(&used["pkg"])).filter(|id| normal && reached.contains(id));
            user.uses.extend(id.cloned());
        }
    }
    match reached.iter().find(|id| !crates.contains_key(id)) {
        Some((name, version)) => bail!("cargo metadata does not know {name} {version}, which cargo tree lists"),
        None => Ok(crates),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(name: &str) -> Id {
        (name.to_owned(), "1.0.0".to_owned())
    }

    #[test]
    fn only_what_is_reached_is_listed() {
        let package = |name: &str, license: &str, source: Option<&str>| {
            let id = format!("id-{name}");
            json!({"id": id, "name": name, "version": "1.0.0", "license": license, "source": source})
        };
        let dep = |name: &str, kind: Option<&str>| json!({"pkg": format!("id-{name}"), "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("m1-a", "Apache-2.0", None), package("b", "MIT/Apache-2.0", Some("registry")),
                package("c", "MIT", Some("registry")), package("derive", "MIT", Some("registry")),
            ],
            "resolve": {"nodes": [
                {"id": "id-m1-a", "deps": [dep("b", None), dep("c", Some("dev")), dep("derive", None)]},
                {"id": "id-derive", "deps": [dep("c", None)]},
            ]},
        });
        let reached: BTreeSet<Id> = listed("m1-a v1.0.0 (/x/a)\nb v1.0.0\nc v1.0.0\nb v1.0.0 (*)\n\n").collect();
        let crates = crates(&metadata, &reached).unwrap();
        assert_eq!(crates.keys().cloned().collect::<Vec<_>>(), [id("b"), id("c"), id("m1-a")]);
        assert_eq!(crates[&id("m1-a")].uses, BTreeSet::from([id("b")]));
        assert_eq!(crates[&id("b")].licence.as_deref(), Some("MIT OR Apache-2.0"));
        assert!(crates[&id("b")].published && !crates[&id("m1-a")].published);
    }

    #[test]
    fn an_unknown_crate_is_an_error() {
        assert!(crates(&json!({}), &BTreeSet::from([id("b")])).unwrap_err().to_string().contains("does not know b 1.0.0"));
    }
}
