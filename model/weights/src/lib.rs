//! Checkpoints on disk: a folder with `config.json`, safetensors shards and their index, memory-mapped and checked.
//!
//! [`Checkpoint::open`] reads headers only (a few MB even for 413 shards) and answers for everything: that every tensor of
//! the architecture is there with its shape, that every byte range lies inside its file, that nothing is there which this
//! network would ignore. After that [`Checkpoint::tensor`] is a view into the map; no weight is read or copied here.
//!
//! A file that changes under its map is found out, and read as zeros where a part of it is gone: see [`MappedFile`].
//!
//! A checkpoint that lies elsewhere is fetched into such a folder first: see [`source`].
//!
//! Original names (`block_sparse_moe`), Hugging Face's (`mlp`) and its fused experts (`gate_up_proj`, `down_proj`) all
//! end in one [`TensorName`].

mod checkpoint;
mod error;
mod guard;
mod header;
mod index;
mod mapped;
mod names;
mod plan;
mod resolve;
mod samples;
pub mod source;

pub use checkpoint::{Checkpoint, MappedTensor, TensorView};
pub use error::WeightsError;
pub use guard::any_changed;
pub use header::Dtype;
pub use mapped::MappedFile;
pub use names::{ExpertPart, TensorName};
pub use plan::{ReadPlan, plan_read};
