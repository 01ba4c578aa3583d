//! The weights that every worker holds (all but experts), layer by layer, with each layer's caches.

use m1_arch::{Architecture, AttentionKind, LayerId, rotary_frequencies};
use m1_weights::TensorName;
use tch::Tensor;

use crate::error::TorchError;
use crate::load::Reader;
use crate::mixer::{Lightning, Mixer, Softmax};
use m1_engine::CacheSize;

/// The network without its experts. A matrix used in `x @ W^T` is kept as the transposed view of the stored one.
pub(crate) struct Model {
    /// `[vocabulary, hidden]`.
    pub embedding: Tensor,
    /// In order.
    pub layers: Vec<Layer>,
    /// `[hidden]`.
    pub final_norm: Tensor,
    /// `[hidden, vocabulary]`.
    pub head: Tensor,
    /// `[rotary / 2]`.
    pub inverse_frequencies: Tensor,
}

/// One layer without its experts.
pub(crate) struct Layer {
    /// `[hidden]`.
    pub input_norm: Tensor,
    /// Its attention.
    pub mixer: Mixer,
    /// `[hidden]`.
    pub post_norm: Tensor,
    /// `[hidden, experts]`.
    pub router: Tensor,
}

impl Model {
    /// Reads everything but the experts and reserves the caches.
    pub fn load(arch: &Architecture, reader: &mut Reader<'_>, size: CacheSize) -> Result<Self, TorchError> {
        let embedding = reader.tensor(TensorName::Embedding)?;
        let layers = arch.layer_ids().zip(&arch.layers).map(|(layer, kind)| Layer::load(arch, reader, size, layer, *kind));
        Ok(Model {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: reader.tensor(TensorName::FinalNorm)?,
            head: reader.tensor(TensorName::LmHead)?.f_tr()?,
            inverse_frequencies: reader.given(&rotary_frequencies(arch))?,
        })
    }
}

impl Layer {
    fn load(
        arch: &Architecture,
        reader: &mut Reader<'_>,
        size: CacheSize,
        layer: LayerId,
        kind: AttentionKind,
    ) -> Result<Self, TorchError> {
        Ok(Layer {
            input_norm: reader.tensor(TensorName::InputNorm(layer))?,
            mixer: match kind {
                AttentionKind::Lightning => Mixer::Lightning(Lightning::load(arch, reader, size, layer)?),
                AttentionKind::Softmax => Mixer::Softmax(Softmax::load(arch, reader, size, layer)?),
            },
            post_norm: reader.tensor(TensorName::PostAttentionNorm(layer))?,
            router: reader.tensor(TensorName::Router(layer))?.f_tr()?,
        })
    }
}
