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
}
