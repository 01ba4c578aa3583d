//! The weights that every worker holds (all but experts), layer by layer, with each layer's caches.

use std::sync::Arc;

use m1_arch::{Architecture, AttentionKind, LayerId, rotary_frequencies};
use m1_engine::CacheSize;
use m1_weights::{MappedFile, TensorName, any_changed};

use crate::error::CpuError;
use crate::lightning::{self, Lightning};
use crate::softmax::{self, Softmax};
use crate::weights::{Loader, Weight};

/// The network without its experts.
#[derive(Debug)]
pub(crate) struct Model {
    /// `[vocabulary, hidden]`.
    pub embedding: Weight,
    /// In order.
    pub layers: Vec<Layer>,
    /// `[hidden]`.
    pub final_norm: Vec<f32>,
    /// `[vocabulary, hidden]`.
    pub head: Weight,
    /// `[rotary / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// Where its matrices lie.
    files: Vec<Arc<MappedFile>>,
}

/// One layer without its experts.
#[derive(Debug)]
pub(crate) struct Layer {
    /// `[hidden]`.
    pub input_norm: Vec<f32>,
    /// Its attention.
    pub mixer: Mixer,
    /// `[hidden]`.
    pub post_norm: Vec<f32>,
    /// `[experts, hidden]`.
    pub router: Weight,
}

/// The attention of one layer.
#[derive(Debug)]
pub(crate) enum Mixer {
    /// Decaying state.
    Lightning(Lightning),
    /// KV cache.
    Softmax(Softmax),
}

/// Memory of a call, kept for its allocation.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    pub lightning: lightning::Buffers,
    pub softmax: softmax::Buffers,
}

impl Model {
    /// Takes everything but the experts and reserves the caches.
    pub fn load(arch: &Architecture, loader: &mut Loader<'_>, size: CacheSize) -> Result<Self, CpuError> {
        let embedding = loader.matrix(TensorName::Embedding)?;
        let layers = arch.layer_ids().zip(&arch.layers).map(|(layer, kind)| Layer::load(arch, loader, size, layer, *kind));
        Ok(Self {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: loader.vector(TensorName::FinalNorm)?,
            head: loader.matrix(TensorName::LmHead)?,
            inverse_frequencies: rotary_frequencies(arch),
            files: loader.files().to_vec(),
        })
    }

    /// Whether what was computed with it before this call counts.
    ///
    /// # Errors
    /// One of its files has changed.
    pub fn check(&self) -> Result<(), CpuError> {
        if any_changed() {
            self.files.iter().try_for_each(|file| file.check())?;
        }
        Ok(())
    }
}

impl Layer {
    fn load(
        arch: &Architecture,
        loader: &mut Loader<'_>,
        size: CacheSize,
        layer: LayerId,
        kind: AttentionKind,
    ) -> Result<Self, CpuError> {
        Ok(Self {
            input_norm: loader.vector(TensorName::InputNorm(layer))?,
            mixer: match kind {
                AttentionKind::Lightning => Mixer::Lightning(Lightning::load(arch, loader, size.slots as usize, layer)?),
                AttentionKind::Softmax => Mixer::Softmax(Softmax::load(arch, loader, size.kv_blocks as usize, layer)?),
            },
            post_norm: loader.vector(TensorName::PostAttentionNorm(layer))?,
            router: loader.matrix(TensorName::Router(layer))?,
        })
    }
}

impl Mixer {
    /// The output projection, `[hidden, heads * head_dim]`.
    pub fn out(&self) -> &Weight {
        match self {
            Self::Lightning(lightning) => &lightning.out,
            Self::Softmax(softmax) => &softmax.out,
        }
    }

    /// Forgets what a slot's sequence left.
    pub fn clear(&mut self, slot: usize) {
        match self {
            Self::Lightning(lightning) => lightning.state_mut(slot).fill(0.0),
            // A new sequence never looks behind its own tokens.
            Self::Softmax(_) => {}
        }
    }

    /// What a sequence with this slot and these blocks has here, piece by piece.
    pub fn parts<'a>(&'a self, slot: usize, blocks: &'a [u32]) -> Box<dyn Iterator<Item = &'a [f32]> + 'a> {
        match self {
            Self::Lightning(lightning) => Box::new(std::iter::once(lightning.state(slot))),
            Self::Softmax(softmax) => Box::new(blocks.iter().map(|block| softmax.block(*block as usize))),
        }
    }

    /// The same pieces in the same order, to be written.
    pub fn each_part_mut(&mut self, slot: usize, blocks: &[u32], write: &mut dyn FnMut(&mut [f32])) {
        match self {
            Self::Lightning(lightning) => write(lightning.state_mut(slot)),
            Self::Softmax(softmax) => blocks.iter().for_each(|block| write(softmax.block_mut(*block as usize))),
        }
    }

    /// Copies a slot's states to another, and the content of block `blocks.0` to block `blocks.1`.
    pub fn copy(&mut self, from: usize, to: usize, blocks: Option<(u32, u32)>) {
        match (self, blocks) {
            (Self::Lightning(lightning), _) => lightning.copy(from, to),
            (Self::Softmax(softmax), Some((from, to))) => softmax.copy(from as usize, to as usize),
            (Self::Softmax(_), None) => {}
        }
    }
}
