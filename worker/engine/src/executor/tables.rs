//! [`Tables`]: how many tokens each state slot has seen and which KV blocks are its own, in the order of its tokens. Who gets which slot
//! and which block is the scheduler's to decide; where states and blocks lie is the executor's.

use super::{Batch, ExecutorError, Segment, SlotId};

/// Tokens of one KV block. Half a block per sequence is wasted on average; smaller blocks lengthen the lists, larger ones
/// waste more.
pub const KV_BLOCK_TOKENS: usize = 64;

/// What an executor may hold besides weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Sequences that may be open at a time. Each costs one lightning state (293.6 MB for M1) once it is used.
    pub slots: u32,
    /// KV blocks of [`KV_BLOCK_TOKENS`] tokens, over all sequences. Memory is touched only as blocks are used.
    pub kv_blocks: u32,
}

impl CacheSize {
    /// Room for `tokens` tokens of context: whole blocks, and for every slot the block that it may leave half empty.
    pub fn for_tokens(slots: u32, tokens: u64) -> Self {
        let blocks = tokens.div_ceil(KV_BLOCK_TOKENS as u64).saturating_add(u64::from(slots));
        CacheSize { slots, kv_blocks: u32::try_from(blocks).unwrap_or(u32::MAX) }
    }

    /// Refuses a size that no sequence fits into.
    ///
    /// # Errors
    /// One of the numbers is 0.
    pub fn check(self) -> Result<Self, ExecutorError> {
        for (what, given) in [("slots", self.slots), ("kv_blocks", self.kv_blocks)] {
            if given == 0 {
                return Err(ExecutorError::InvalidArgument { what, given: 0, allowed: "numbers from 1".into() });
            }
        }
        Ok(self)
    }
}

/// One slot's sequence.
#[derive(Debug, Default)]
struct Table {
    tokens: u64,
    blocks: Vec<u32>,
}

/// The tables of all slots.
#[derive(Debug)]
pub struct Tables {
    slots: Vec<Table>,
    kv_blocks: u32,
}

impl Tables {
    /// Nothing seen.
    pub fn new(size: CacheSize) -> Self {
        Self { slots: (0..size.slots).map(|_| Table::default()).collect(), kv_blocks: size.kv_blocks }
    }

    /// Takes in a step's tokens and blocks: checks every segment first, so that a refusal changes nothing. A segment at position 0
    /// begins its slot anew.
    ///
    /// # Errors
    /// A slot or a block that there is not, a position that does not follow, blocks that do not cover the tokens.
    pub fn admit(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        for segment in &batch.segments {
            let table = self.table(segment.slot)?;
            let (seen, blocks) = if segment.position == 0 { (0, 0) } else { (table.tokens, table.blocks.len() as u64) };
            if u64::from(segment.position) != seen {
                let allowed = format!("{seen}, the tokens its slot has seen, or 0");
                return Err(ExecutorError::InvalidArgument { what: "position", given: segment.position.into(), allowed });
            }
            check_blocks(seen + u64::from(segment.tokens), blocks + u64::from(segment.fresh))?;
        }
        self.check_ids(&batch.blocks)?;
        let mut fresh = batch.blocks.as_slice();
        for segment in &batch.segments {
            let (own, rest) = fresh.split_at_checked(segment.fresh as usize).unwrap_or((fresh, &[]));
            fresh = rest;
            self.grow(segment, own);
        }
        Ok(())
    }

    /// Gives a slot a sequence that has seen `tokens`.
    ///
    /// # Errors
    /// A slot or a block that there is not, blocks that do not cover the tokens.
    pub fn set(&mut self, slot: SlotId, tokens: u64, blocks: &[u32]) -> Result<(), ExecutorError> {
        self.table(slot)?;
        check_blocks(tokens, blocks.len() as u64)?;
        self.check_ids(blocks)?;
        let table = &mut self.slots[slot.0 as usize];
        table.tokens = tokens;
        table.blocks.clear();
        table.blocks.extend_from_slice(blocks);
        Ok(())
    }

    /// Blocks of a slot's sequence, in the order of its tokens.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn blocks(&self, slot: SlotId) -> Result<&[u32], ExecutorError> {
        Ok(&self.table(slot)?.blocks)
    }

    /// Tokens that a slot's sequence has seen.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn tokens(&self, slot: SlotId) -> Result<u64, ExecutorError> {
        Ok(self.table(slot)?.tokens)
    }

    fn table(&self, slot: SlotId) -> Result<&Table, ExecutorError> {
        self.slots.get(slot.0 as usize).ok_or(ExecutorError::UnknownSlot { slot, slots: self.slots.len() as u32 })
    }

    fn check_ids(&self, blocks: &[u32]) -> Result<(), ExecutorError> {
        match blocks.iter().find(|block| **block >= self.kv_blocks) {
            Some(block) => {
                let allowed = format!("less than {}", self.kv_blocks);
                Err(ExecutorError::InvalidArgument { what: "block", given: u64::from(*block), allowed })
            }
            None => Ok(()),
        }
    }

    fn grow(&mut self, segment: &Segment, fresh: &[u32]) {
        let table = &mut self.slots[segment.slot.0 as usize];
        if segment.position == 0 {
            table.tokens = 0;
            table.blocks.clear();
        }
        table.tokens += u64::from(segment.tokens);
        table.blocks.extend_from_slice(fresh);
    }
}

/// Refuses blocks that are not as many as the tokens need.
fn check_blocks(tokens: u64, blocks: u64) -> Result<(), ExecutorError> {
    let needed = tokens.div_ceil(KV_BLOCK_TOKENS as u64);
    if blocks == needed {
        return Ok(());
    }
    Err(ExecutorError::InvalidArgument { what: "blocks", given: blocks, allowed: format!("{needed}, for {tokens} tokens") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(parts: &[(u32, u32, u32)], blocks: &[u32], fresh: &[u32]) -> Batch {
        let segment = |(&(slot, position, tokens), &fresh): (&(u32, u32, u32), &u32)| Segment {
            slot: SlotId(slot),
            start: 0,
            tokens,
            position,
            prompt: position + tokens,
            fresh,
            threshold: 1.0,
        };
        Batch { segments: parts.iter().zip(fresh).map(segment).collect(), blocks: blocks.to_vec(), ..Batch::default() }
    }

    #[test]
    fn segments_take_their_blocks_in_order_and_position_0_begins_anew() -> Result<(), ExecutorError> {
        let mut tables = Tables::new(CacheSize { slots: 2, kv_blocks: 8 });
        tables.admit(&batch(&[(0, 0, 65), (1, 0, 1)], &[3, 4, 7], &[2, 1]))?;
        tables.admit(&batch(&[(1, 1, 63), (0, 65, 64)], &[0], &[0, 1]))?;
        assert_eq!((tables.blocks(SlotId(0))?, tables.blocks(SlotId(1))?), ([3, 4, 0].as_slice(), [7].as_slice()));
        tables.admit(&batch(&[(0, 0, 1)], &[5], &[1]))?;
        assert_eq!((tables.blocks(SlotId(0))?, tables.tokens(SlotId(0))?), ([5].as_slice(), 1));
        Ok(())
    }

    #[test]
    fn a_refusal_changes_nothing() -> Result<(), ExecutorError> {
        let mut tables = Tables::new(CacheSize { slots: 2, kv_blocks: 2 });
        tables.admit(&batch(&[(0, 0, 64)], &[1], &[1]))?;
        let mut refused =
            |parts: &[(u32, u32, u32)], blocks: &[u32], fresh: &[u32]| match tables.admit(&batch(parts, blocks, fresh)) {
                Err(ExecutorError::InvalidArgument { what, .. }) => what,
                Err(error) => error.reason(),
                Ok(()) => "taken",
            };
        assert_eq!(refused(&[(1, 0, 1), (0, 63, 1)], &[0], &[1, 0]), "position");
        assert_eq!(refused(&[(1, 0, 1), (2, 0, 1)], &[0, 0], &[1, 1]), "UnknownSlot");
        assert_eq!(refused(&[(1, 0, 1), (0, 64, 1)], &[0], &[1, 0]), "blocks");
        assert_eq!(refused(&[(0, 64, 1)], &[2], &[1]), "block");
        assert_eq!((tables.tokens(SlotId(0))?, tables.tokens(SlotId(1))?), (64, 0));
        assert!(tables.set(SlotId(1), 65, &[0]).is_err());
        tables.set(SlotId(1), 64, &[0])
    }

    #[test]
    fn sizes_give_every_slot_its_half_empty_block() {
        assert_eq!(CacheSize::for_tokens(4, 1000), CacheSize { slots: 4, kv_blocks: 20 });
        assert!(CacheSize { slots: 0, kv_blocks: 1 }.check().is_err());
    }
}
