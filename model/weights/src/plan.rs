//! What a worker reads: everything but experts, and the experts that it holds.

use m1_arch::ExpertSet;

use crate::checkpoint::Checkpoint;
use crate::names::TensorName;

/// Tensors to read, in the order of files and offsets, so that a disk is read forward once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPlan {
    /// The tensors.
    pub tensors: Vec<TensorName>,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Names of the files that hold them.
    pub shards: Vec<String>,
}

/// Plans the reading of a worker that holds `experts`; pairs that the model lacks are left out.
pub fn plan_read(checkpoint: &Checkpoint, experts: &ExpertSet) -> ReadPlan {
    let wanted = |name: &TensorName| match name {
        TensorName::Expert { layer, expert, .. } => experts.contains(*layer, *expert),
        _ => true,
    };
    let mut entries: Vec<_> = checkpoint.entries().iter().filter(|(name, _)| wanted(name)).collect();
    entries.sort_by_key(|(name, entry)| (entry.shard, entry.bytes.start, **name));
    let mut shards: Vec<usize> = entries.iter().map(|(_, entry)| entry.shard).collect();
    shards.dedup();
    ReadPlan {
        shards: shards.into_iter().filter_map(|shard| checkpoint.shard_name(shard)).collect(),
        bytes: entries.iter().map(|(_, entry)| entry.bytes.len() as u64).sum(),
        tensors: entries.into_iter().map(|(name, _)| *name).collect(),
    }
}
