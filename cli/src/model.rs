//! Opening a checkpoint for the commands that take `--model`.

use std::error::Error;
use std::path::Path;

use m1_weights::Checkpoint;

use crate::error::Failure;

/// Opens the checkpoint in `folder`, which `field` (a flag, or a field of a CR) names: reads names and shapes, no weights.
///
/// # Errors
/// The folder holds no usable checkpoint; the error says what is wrong with it.
pub fn open(field: &str, folder: &Path) -> Result<Checkpoint, Failure> {
    let failed = |error: &dyn Error| Failure::new(format_args!("{field} {}", folder.display()), crate::local::chain(error));
    let absolute = std::path::absolute(folder).map_err(|error| failed(&error))?;
    Checkpoint::open(&absolute).map_err(|error| failed(&error))
}

/// Layers, experts per layer, rows of the head.
pub fn dimensions(checkpoint: &Checkpoint) -> (usize, usize, usize) {
    let arch = checkpoint.architecture();
    (arch.layers.len(), arch.experts, arch.vocab)
}
