//! [`Checkpoint`]: an open, checked, memory-mapped checkpoint.
//!
//! The files should not change while they are mapped. Where one does, its map says so: whoever has read asks afterwards.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use m1_arch::Architecture;
use sha2::{Digest, Sha256};

use crate::error::{WeightsError, read_error};
use crate::header::{self, Dtype, Header};
use crate::index::{self, Layout};
use crate::mapped::{self, MappedFile};
use crate::names::TensorName;
use crate::resolve::{Entry, Files, Found, resolve};
use crate::source::hex;

/// An open checkpoint. Cheap to share behind an `Arc`; dropping it ends the maps.
pub struct Checkpoint {
    dir: PathBuf,
    architecture: Architecture,
    shards: Vec<Arc<MappedFile>>,
    paths: Vec<PathBuf>,
    entries: HashMap<TensorName, Entry>,
    digest: String,
    total_bytes: u64,
}

/// A tensor's bytes, in the map. `data.len()` is the product of `shape` times the dtype's size; it may be unaligned.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// How an element is stored.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row-major.
    pub data: &'a [u8],
    /// Where it lies. Ask it after reading: [`MappedFile::check`].
    pub file: &'a MappedFile,
}

/// A tensor in its file's map, which stays as long as this does.
#[derive(Debug, Clone)]
pub struct MappedTensor {
    file: Arc<MappedFile>,
    bytes: Range<usize>,
    /// How an element is stored.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl MappedTensor {
    /// Its elements, little-endian, row-major, unaligned.
    pub fn bytes(&self) -> &[u8] {
        self.file.get(self.bytes.clone()).unwrap_or_default()
    }

    /// Where it lies. Ask it after reading [`bytes`](Self::bytes).
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    /// Brings it into memory: has the file read ahead, then reads a byte of every page. `progress` is told how many bytes were touched,
    /// piece by piece.
    ///
    /// # Errors
    /// The file has changed.
    pub fn touch(&self, progress: &mut dyn FnMut(usize)) -> Result<(), WeightsError> {
        self.file.read_ahead(self.bytes.start, self.bytes.len());
        for piece in self.bytes().chunks(TOUCHED) {
            let sum = piece.iter().step_by(PAGE).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            // Nobody wants the sum; the compiler must not know that.
            std::hint::black_box(sum);
            progress(piece.len());
            self.file.check()?;
        }
        Ok(())
    }
}

/// Bytes between two reads that bring pages in: what every machine has at least.
const PAGE: usize = 4096;
/// Bytes between two words of progress.
const TOUCHED: usize = 4 << 20;

impl Checkpoint {
    /// Opens a folder: reads config, index and headers, maps every shard and checks that the network is there in full.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let config_path = dir.join("config.json");
        let config = fs::read_to_string(&config_path).map_err(|source| read_error(&config_path, source))?;
        let architecture = Architecture::from_json(&config).map_err(|source| WeightsError::Config { path: config_path, source })?;
        let mut shards = Shards::default();
        match index::read(dir)? {
            Layout::Single(file) => shards.add_whole(dir.join(file))?,
            Layout::Sharded(weight_map) => shards.add_indexed(dir, &weight_map)?,
        }
        let entries = resolve(&architecture, &Files { dir, paths: &shards.paths, tensors: &shards.tensors })?;
        let total_bytes = entries.values().map(|entry| entry.bytes.len() as u64).sum();
        let digest = shards.digest(&config);
        let Shards { paths, maps: shards, .. } = shards;
        mapped::watch(&shards);
        Ok(Checkpoint { dir: dir.to_owned(), architecture, shards, paths, entries, digest, total_bytes })
    }

    /// The network that `config.json` describes.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The folder, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// SHA-256 in hex over the config's text, the name, dtype and shape of every tensor, and the size of every shard. Costs
    /// nothing, and knows nothing of the values: see [`Checkpoint::sample`].
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Bytes of all tensors of the network as stored, buffers that nobody reads left out.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// A tensor of the network. Shape and dtype were checked at opening, so the only error is a name that the network does
    /// not have.
    pub fn tensor(&self, name: &TensorName) -> Result<TensorView<'_>, WeightsError> {
        let absent = || WeightsError::NoSuchTensor { name: *name };
        let entry = self.entries.get(name).ok_or_else(absent)?;
        let file = &*self.shards[entry.shard];
        let data = file.get(entry.bytes.clone()).ok_or_else(absent)?;
        Ok(TensorView { dtype: entry.dtype, shape: entry.shape.clone(), data, file })
    }

    /// The same tensor, for whoever uses it where it lies.
    ///
    /// # Errors
    /// The network has no such tensor.
    pub fn mapped(&self, name: &TensorName) -> Result<MappedTensor, WeightsError> {
        let entry = self.entries.get(name).ok_or(WeightsError::NoSuchTensor { name: *name })?;
        let file = self.shards[entry.shard].clone();
        Ok(MappedTensor { file, bytes: entry.bytes.clone(), dtype: entry.dtype, shape: entry.shape.clone() })
    }

    /// Name of a file in the checkpoint's folder.
    pub(crate) fn shard_name(&self, shard: usize) -> Option<String> {
        Some(self.paths.get(shard)?.file_name()?.to_string_lossy().into_owned())
    }

    pub(crate) fn shards(&self) -> &[Arc<MappedFile>] {
        &self.shards
    }

    pub(crate) fn entries(&self) -> &HashMap<TensorName, Entry> {
        &self.entries
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} bytes, {})", self.dir.display(), self.total_bytes, self.digest)
    }
}

/// Files mapped so far and the tensors that count.
#[derive(Default)]
struct Shards {
    paths: Vec<PathBuf>,
    maps: Vec<Arc<MappedFile>>,
    tensors: HashMap<String, Found>,
}

impl Shards {
    /// A file whose own header is the index.
    fn add_whole(&mut self, path: PathBuf) -> Result<(), WeightsError> {
        let (shard, header) = self.map(path)?;
        self.tensors.extend(header.into_iter().map(|(name, stored)| (name, Found { shard, stored })));
        Ok(())
    }

    /// The files of an index. Of what a file holds, only what the index puts there counts.
    fn add_indexed(&mut self, dir: &Path, weight_map: &BTreeMap<String, String>) -> Result<(), WeightsError> {
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in weight_map {
            by_file.entry(file).or_default().push(tensor);
        }
        for (file, tensors) in by_file {
            let path = dir.join(file);
            if !path.exists() {
                let tensor = tensors.first().copied().unwrap_or_default().to_owned();
                return Err(WeightsError::MissingShard { path, tensor });
            }
            let (shard, mut header) = self.map(path)?;
            for tensor in tensors {
                let Some(stored) = header.remove(tensor) else {
                    let path = self.paths[shard].clone();
                    return Err(WeightsError::NotInShard { path, tensor: tensor.to_owned() });
                };
                self.tensors.insert(tensor.to_owned(), Found { shard, stored });
            }
        }
        Ok(())
    }

    fn map(&mut self, path: PathBuf) -> Result<(usize, Header), WeightsError> {
        let map = MappedFile::open(path.clone())?;
        // A header is a few kilobytes; what lies behind it may never be read here.
        map.expect_jumps(true);
        let header = header::read(&path, &map);
        map.expect_jumps(false);
        map.check()?;
        let header = header?;
        self.paths.push(path);
        self.maps.push(Arc::new(map));
        Ok((self.maps.len() - 1, header))
    }

    fn digest(&self, config: &str) -> String {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(config.as_bytes());
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(name, _)| *name);
        for (name, found) in tensors {
            field(name.as_bytes());
            field(found.stored.dtype.as_bytes());
            field(format!("{:?}", found.stored.shape).as_bytes());
        }
        for (path, map) in self.paths.iter().zip(&self.maps) {
            field(path.file_name().unwrap_or_default().as_encoded_bytes());
            field(&(map.len() as u64).to_le_bytes());
        }
        hex(&hash.finalize())
    }
}
