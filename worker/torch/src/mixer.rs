//! [`Mixer`]: the attention of one layer, of either kind, with its cache.

mod lightning;
mod softmax;

use tch::{TchError, Tensor};

use crate::layout::Layout;

pub(crate) use lightning::Lightning;
pub(crate) use softmax::Softmax;

/// The attention of one layer.
pub(crate) enum Mixer {
    /// Decaying state.
    Lightning(Lightning),
    /// KV cache.
    Softmax(Softmax),
}

impl Mixer {
    /// What the heads give for `h`, `[rows, heads * head_dim]`, before the output projection; moves the caches on.
    pub fn heads(&mut self, h: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
        match self {
            Mixer::Lightning(lightning) => lightning.heads(h, layout),
            Mixer::Softmax(softmax) => softmax.heads(h, layout),
        }
    }

    /// The output projection, `[heads * head_dim, hidden]`.
    pub fn out(&self) -> &Tensor {
        match self {
            Mixer::Lightning(lightning) => &lightning.out,
            Mixer::Softmax(softmax) => &softmax.out,
        }
    }

    /// Forgets what an earlier sequence left in a slot. KV needs none of it: only rows that were written are read.
    pub fn clear(&mut self, slot: i64) -> Result<(), TchError> {
        match self {
            Mixer::Lightning(lightning) => lightning.clear(slot),
            Mixer::Softmax(_) => Ok(()),
        }
    }

    /// What a sequence with this slot and these blocks has here, piece by piece: views, to be read or written.
    pub fn each_part(
        &self,
        slot: i64,
        blocks: &[u32],
        each: &mut dyn FnMut(Tensor) -> Result<(), TchError>,
    ) -> Result<(), TchError> {
        match self {
            Mixer::Lightning(lightning) => each(lightning.state(slot)?),
            Mixer::Softmax(softmax) => blocks.iter().try_for_each(|block| each(softmax.block(*block)?)),
        }
    }

    /// Copies a slot's states to another, and the content of block `blocks.0` to block `blocks.1`.
    pub fn copy(&mut self, from: i64, to: i64, blocks: Option<(u32, u32)>) -> Result<(), TchError> {
        match (self, blocks) {
            (Mixer::Lightning(lightning), _) => lightning.copy(from, to),
            (Mixer::Softmax(softmax), Some((from, to))) => softmax.copy(from, to),
            (Mixer::Softmax(_), None) => Ok(()),
        }
    }
}
