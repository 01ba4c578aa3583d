//! From the tensors that a folder's files hold to those that the network has: every one found, with the right shape and a
//! dtype that is served, and nothing left over.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use m1_arch::Architecture;

use crate::error::WeightsError;
use crate::header::{Dtype, Stored};
use crate::names::{Place, TensorName, is_buffer};

/// Where a tensor of the network is.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Index of its file.
    pub shard: usize,
    /// Its bytes in that file.
    pub bytes: Range<usize>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// A tensor of some file.
pub(crate) struct Found {
    pub shard: usize,
    pub stored: Stored,
}

/// The tensors of all files, and the files' paths for messages.
pub(crate) struct Files<'a> {
    pub dir: &'a Path,
    pub paths: &'a [PathBuf],
    pub tensors: &'a HashMap<String, Found>,
}

pub(crate) fn resolve(arch: &Architecture, files: &Files<'_>) -> Result<HashMap<TensorName, Entry>, WeightsError> {
    let names = TensorName::all(arch);
    let mut entries = HashMap::with_capacity(names.len());
    let mut used = HashSet::new();
    for name in names {
        let mut places = name.places(arch);
        let present = places.iter().position(|place| files.tensors.contains_key(&place.name));
        let place = places.swap_remove(present.unwrap_or(0));
        entries.insert(name, files.entry(&place, name.shape(arch))?);
        used.insert(place.name);
    }
    files.check_nothing_left(&used)?;
    files.check_one_dtype(arch, &entries)?;
    Ok(entries)
}

impl Files<'_> {
    fn entry(&self, place: &Place, shape: Vec<usize>) -> Result<Entry, WeightsError> {
        let tensor = || place.name.clone();
        let missing = || WeightsError::MissingTensor { dir: self.dir.to_owned(), tensor: tensor() };
        let found = self.tensors.get(&place.name).ok_or_else(missing)?;
        let (path, stored) = (self.paths[found.shard].clone(), &found.stored);
        let Some(dtype) = Dtype::parse(&stored.dtype) else {
            return Err(WeightsError::UnexpectedDtype { path, tensor: tensor(), given: stored.dtype.clone() });
        };
        if stored.shape != place.shape {
            let (given, allowed) = (stored.shape.clone(), place.shape.clone());
            return Err(WeightsError::Shape { path, tensor: tensor(), given, allowed });
        }
        let row = place.shape.last().map_or(1, |last| last * dtype.size());
        let begin = stored.begin + place.first_row * row;
        let length = shape.iter().product::<usize>() * dtype.size();
        Ok(Entry { shard: found.shard, bytes: begin..begin + length, dtype, shape })
    }

    /// All matrices but the routers, which MiniMax-M1 stores in fp32, have one dtype: that of the embedding. One that differs
    /// was written by something else, and its bits would be read as other numbers.
    fn check_one_dtype(&self, arch: &Architecture, entries: &HashMap<TensorName, Entry>) -> Result<(), WeightsError> {
        let Some(allowed) = entries.get(&TensorName::Embedding).map(|entry| entry.dtype) else { return Ok(()) };
        let matrix = |name: &TensorName, entry: &Entry| entry.shape.len() > 1 && !matches!(name, TensorName::Router(_));
        let other =
            entries.iter().filter(|(name, entry)| entry.dtype != allowed && matrix(name, entry)).min_by_key(|(name, _)| **name);
        let Some((name, entry)) = other else { return Ok(()) };
        let tensor = name.places(arch).into_iter().map(|place| place.name).find(|name| self.tensors.contains_key(name));
        Err(WeightsError::MixedDtype {
            path: self.paths[entry.shard].clone(),
            tensor: tensor.unwrap_or_default(),
            given: entry.dtype.as_str(),
            allowed: allowed.as_str(),
        })
    }

    fn check_nothing_left(&self, used: &HashSet<String>) -> Result<(), WeightsError> {
        let left = self.tensors.iter().filter(|(name, _)| !used.contains(*name) && !is_buffer(name));
        match left.min_by_key(|(name, _)| *name) {
            Some((tensor, found)) => {
                let path = self.paths[found.shard].clone();
                Err(WeightsError::UnexpectedTensor { path, tensor: tensor.clone() })
            }
            None => Ok(()),
        }
    }
}
