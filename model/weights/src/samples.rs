//! What tells two checkpoints of the same shapes apart without reading them: a few blocks of every tensor.

use std::ops::Range;
use std::thread;

use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::error::WeightsError;
use crate::names::TensorName;
use crate::resolve::Entry;
use crate::source::hex;

/// Bytes of a block. Training moves every number of a tensor, so that one block would do; three hold against edits that leave some out.
const BLOCK: usize = 256;
/// Reads on their way at once: each waits for a disk or for a file system of the network.
const STREAMS: usize = 16;

/// Where a tensor of so many bytes is sampled: at its beginning, at its end, and at a place that its name chooses. All of a short one.
fn places(name: &str, bytes: usize) -> [Range<usize>; 3] {
    if bytes <= 3 * BLOCK {
        return [0..bytes, 0..0, 0..0];
    }
    let hash = Sha256::digest(name);
    let number = hash.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let between = BLOCK + (number % (bytes - 3 * BLOCK + 1) as u64) as usize;
    [0..BLOCK, between..between + BLOCK, bytes - BLOCK..bytes]
}

impl Checkpoint {
    /// SHA-256 in hex over 768 bytes of every tensor, and its name: three reads of a page each, sixteen at a time. M1 has 8,243 tensors, so 6.3 MB are
    /// hashed and 25,000 pages read. All of the files must be here.
    ///
    /// # Errors
    /// A file has changed under its map.
    pub fn sample(&self) -> Result<String, WeightsError> {
        // By the names that files give them, which are the same in every version of this program.
        let original = |name: &TensorName| name.places(self.architecture()).swap_remove(0).name;
        let mut tensors: Vec<_> = self.entries().iter().map(|(name, entry)| (original(name), *name, entry)).collect();
        tensors.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        self.shards().iter().for_each(|file| file.expect_jumps(true));
        let share = tensors.len().div_ceil(STREAMS).max(1);
        let sums: Vec<Result<Vec<u8>, WeightsError>> = thread::scope(|scope| {
            let one = |tensors: &[(String, TensorName, &Entry)]| {
                tensors.iter().try_fold(Vec::new(), |mut sums, (original, name, entry)| {
                    sums.extend(self.sum(original, name, entry)?);
                    Ok(sums)
                })
            };
            let started: Vec<_> = tensors.chunks(share).map(|tensors| scope.spawn(move || one(tensors))).collect();
            started.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        self.shards().iter().for_each(|file| file.expect_jumps(false));
        let mut whole = Sha256::new();
        for sums in sums {
            whole.update(sums?);
        }
        Ok(hex(&whole.finalize()))
    }

    /// Of one tensor.
    fn sum(&self, original: &str, name: &TensorName, entry: &Entry) -> Result<[u8; 32], WeightsError> {
        let view = self.tensor(name)?;
        let mut hash = Sha256::new();
        hash.update(format!("{original} {} {:?}\0", entry.dtype.as_str(), entry.shape));
        for place in places(original, view.data.len()) {
            hash.update(view.data.get(place).unwrap_or_default());
        }
        view.file.check()?;
        Ok(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lie_in_their_tensor_and_do_not_overlap() {
        for bytes in (0..3000).chain([1 << 20, 1 << 40]) {
            let [first, between, last] = places("model.norm.weight", bytes);
            let all = first.len() + between.len() + last.len();
            assert_eq!(all, bytes.min(3 * BLOCK), "{bytes}");
            assert!(first.start == 0 && last.end <= bytes, "{bytes}");
            assert!(
                bytes <= 3 * BLOCK || (first.end <= between.start && between.end <= last.start && last.end == bytes),
                "{bytes}"
            );
        }
    }
}
