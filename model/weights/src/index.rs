//! Which tensor is in which file: `model.safetensors.index.json`, or a single `model.safetensors` that needs none. The index
//! alone decides; names and numbers of shards mean nothing (M1's own start at 00000).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::error::WeightsError;

/// The index of a checkpoint in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// A checkpoint in one file.
pub(crate) const SINGLE: &str = "model.safetensors";

/// How a checkpoint's folder is laid out.
pub(crate) enum Layout {
    /// One file, whose header lists everything.
    Single(&'static str),
    /// Tensor to file name; every name is checked.
    Sharded(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Finds and reads the index of a folder.
pub(crate) fn read(dir: &Path) -> Result<Layout, WeightsError> {
    let path = dir.join(INDEX);
    if !path.exists() {
        if dir.join(SINGLE).exists() {
            return Ok(Layout::Single(SINGLE));
        }
        return Err(WeightsError::MissingIndex { dir: dir.to_owned() });
    }
    Ok(Layout::Sharded(weight_map(&path)?))
}

/// The names of the shards of an index, whatever the index itself is called.
pub(crate) fn shards(path: &Path) -> Result<BTreeSet<String>, WeightsError> {
    Ok(weight_map(path)?.into_values().collect())
}

fn weight_map(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let path = path.to_owned();
    let text = fs::read(&path).map_err(|source| WeightsError::Read { path: path.clone(), source })?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|source| WeightsError::BadIndex { path: path.clone(), what: source.to_string() })?;
    match index.weight_map.iter().find(|(_, file)| !is_plain(file)) {
        Some((tensor, given)) => Err(WeightsError::FileName { path, tensor: tensor.clone(), given: given.clone() }),
        None => Ok(index.weight_map),
    }
}

/// Whether a name stays in its folder, on any system. The file itself may be a link, as in Hugging Face's cache.
fn is_plain(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let alone = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == file);
    alone && !file.contains(['/', '\\', '\0']) && file.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn only_plain_names_of_shards_pass() {
        for good in ["model-00000-of-00413.safetensors", "x.safetensors", "..a.safetensors"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "/etc/a.safetensors",
            "../a.safetensors",
            "a/b.safetensors",
            "./a.safetensors",
            "a.safetensors/",
            "..\\a.safetensors",
            "a\0.safetensors",
            "pytorch_model.bin",
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
