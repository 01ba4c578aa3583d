//! State slots and KV blocks: which are free, which are whose. Where they lie is the executor's.

use crate::executor::SlotId;

/// The slots and blocks of one executor.
#[derive(Debug)]
pub(super) struct Pool {
    slots: Vec<bool>,
    /// Sequences that use each block.
    uses: Vec<u32>,
    free_blocks: usize,
}

impl Pool {
    /// All free.
    pub(super) fn new(slots: u32, blocks: u32) -> Self {
        Self { slots: vec![false; slots as usize], uses: vec![0; blocks as usize], free_blocks: blocks as usize }
    }

    /// The lowest free slot, so that used ones tend to lie side by side.
    pub(super) fn take_slot(&mut self) -> Option<SlotId> {
        let slot = self.slots.iter().position(|used| !used)?;
        self.slots[slot] = true;
        Some(SlotId(slot as u32))
    }

    /// Gives a slot and a sequence's blocks back.
    pub(super) fn give_back(&mut self, slot: SlotId, blocks: &[u32]) {
        if let Some(used) = self.slots.get_mut(slot.0 as usize) {
            *used = false;
        }
        for block in blocks {
            let Some(uses) = self.uses.get_mut(*block as usize).filter(|uses| **uses > 0) else { continue };
            *uses -= 1;
            self.free_blocks += usize::from(*uses == 0);
        }
    }

    /// A free block: the one after `last`, so that a sequence lies in one piece; else the middle of the widest gap, so that it and its
    /// neighbours have room to grow.
    pub(super) fn take_block(&mut self, last: Option<u32>) -> Option<u32> {
        let after = last.map(|block| block as usize + 1).filter(|block| self.uses.get(*block) == Some(&0));
        let block = after.or_else(|| self.middle_of_widest_gap())?;
        self.uses[block] = 1;
        self.free_blocks -= 1;
        Some(block as u32)
    }

    fn middle_of_widest_gap(&self) -> Option<usize> {
        let (mut start, mut widest) = (0, 0..0);
        for gap in self.uses.split(|uses| *uses > 0) {
            if gap.len() > widest.len() {
                widest = start..start + gap.len();
            }
            start += gap.len() + 1;
        }
        let offset = if widest.start == 0 { 0 } else { widest.len() / 2 };
        (!widest.is_empty()).then_some(widest.start + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_lies_in_one_piece_while_it_can() {
        let mut pool = Pool::new(2, 8);
        let (a, b) = (pool.take_slot(), pool.take_slot());
        assert_eq!((a, b, pool.take_slot()), (Some(SlotId(0)), Some(SlotId(1)), None));
        let first = [pool.take_block(None).unwrap()];
        let second = [pool.take_block(None).unwrap()];
        assert_eq!((first, second), ([0], [4]));
        assert_eq!((pool.take_block(Some(0)), pool.take_block(Some(4)), pool.take_block(Some(7))), (Some(1), Some(5), Some(3)));
        assert_eq!(pool.free_blocks, 3);
        pool.give_back(SlotId(0), &[0, 1]);
        pool.give_back(SlotId(0), &[0, 1]);
        assert_eq!((pool.free_blocks, pool.take_slot()), (5, Some(SlotId(0))));
        (0..5).for_each(|_| assert!(pool.take_block(None).is_some()));
        assert_eq!(pool.take_block(None), None);
    }
}
