//! [`Slots`]: which sequence slots are open, how many tokens each has seen, and which KV blocks each owns. Accounting for
//! executors; where states and blocks lie is theirs.
//!
//! Invariant: every block is either free or in exactly one open slot's list, and a slot's list covers its length.

use super::{ExecutorError, Segment, SlotId};

/// Tokens of one KV block. Half a block per sequence is wasted on average; smaller blocks lengthen the lists, larger ones
/// waste more.
pub const KV_BLOCK_TOKENS: usize = 64;

/// What an executor may hold besides weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Sequences that may be open at a time. Each costs one lightning state (293.6 MB for M1) once it is opened.
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

/// One open slot.
#[derive(Debug, Default)]
struct Sequence {
    tokens: u64,
    blocks: Vec<u32>,
}

/// All slots and blocks of an executor.
#[derive(Debug)]
pub struct Slots {
    sequences: Vec<Option<Sequence>>,
    used: Vec<bool>,
    free_blocks: usize,
}

impl Slots {
    /// Nothing open.
    pub fn new(size: CacheSize) -> Self {
        Slots {
            sequences: (0..size.slots).map(|_| None).collect(),
            used: vec![false; size.kv_blocks as usize],
            free_blocks: size.kv_blocks as usize,
        }
    }

    /// Opens the lowest free slot, so that open slots tend to lie side by side.
    ///
    /// # Errors
    /// All are open.
    pub fn open(&mut self) -> Result<SlotId, ExecutorError> {
        let free = self.sequences.iter().position(Option::is_none);
        let slot = free.ok_or(ExecutorError::NoFreeSlot { slots: self.sequences.len() as u32 })?;
        self.sequences[slot] = Some(Sequence::default());
        Ok(SlotId(slot as u32))
    }

    /// Closes a slot and frees its blocks.
    pub fn close(&mut self, slot: SlotId) {
        let Some(sequence) = self.sequences.get_mut(slot.0 as usize).and_then(Option::take) else { return };
        self.free_blocks += sequence.blocks.len();
        for block in sequence.blocks {
            self.used[block as usize] = false;
        }
    }

    /// Takes in a step's tokens: checks every segment and the room first, so that a refusal changes nothing.
    ///
    /// # Errors
    /// A slot that is not open, a position that does not follow, too few blocks.
    pub fn admit(&mut self, segments: &[Segment]) -> Result<(), ExecutorError> {
        let mut blocks = 0;
        for segment in segments {
            let sequence = self.sequence(segment.slot)?;
            if u64::from(segment.position) != sequence.tokens {
                let allowed = format!("{}, the tokens its slot has seen", sequence.tokens);
                return Err(ExecutorError::InvalidArgument { what: "position", given: segment.position.into(), allowed });
            }
            let tokens = sequence.tokens + u64::from(segment.tokens);
            blocks += (tokens as usize).div_ceil(KV_BLOCK_TOKENS) - sequence.blocks.len();
        }
        if blocks > self.free_blocks {
            let tokens = |blocks: usize| (blocks * KV_BLOCK_TOKENS) as u64;
            return Err(ExecutorError::NoFreeKv { needed: tokens(blocks), free: tokens(self.free_blocks) });
        }
        for segment in segments {
            self.grow(segment);
        }
        Ok(())
    }

    /// Blocks of an open slot, in the order of its tokens.
    ///
    /// # Errors
    /// The slot is not open.
    pub fn blocks(&self, slot: SlotId) -> Result<&[u32], ExecutorError> {
        self.sequence(slot).map(|sequence| sequence.blocks.as_slice())
    }

    fn sequence(&self, slot: SlotId) -> Result<&Sequence, ExecutorError> {
        self.sequences.get(slot.0 as usize).and_then(Option::as_ref).ok_or(ExecutorError::UnknownSlot(slot))
    }

    fn grow(&mut self, segment: &Segment) {
        let Some(mut sequence) = self.sequences[segment.slot.0 as usize].take() else { return };
        sequence.tokens += u64::from(segment.tokens);
        while sequence.blocks.len() * KV_BLOCK_TOKENS < sequence.tokens as usize {
            let Some(block) = self.next_block(sequence.blocks.last().copied()) else { break };
            self.used[block] = true;
            self.free_blocks -= 1;
            sequence.blocks.push(block as u32);
        }
        self.sequences[segment.slot.0 as usize] = Some(sequence);
    }

    /// The block after `last`, so that a sequence lies in one piece and is read without a copy; else the middle of the
    /// widest gap, so that it and its neighbours have room to grow.
    fn next_block(&self, last: Option<u32>) -> Option<usize> {
        let after = last.map(|block| block as usize + 1);
        if let Some(block) = after.filter(|block| self.used.get(*block) == Some(&false)) {
            return Some(block);
        }
        let (mut start, mut widest) = (0, 0..0);
        for gap in self.used.split(|used| *used) {
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

    fn segment(slot: SlotId, position: u32, tokens: u32) -> Segment {
        Segment { slot, start: 0, tokens, position, prompt: position + tokens }
    }

    #[test]
    fn a_sequence_lies_in_one_piece_while_it_can() -> Result<(), ExecutorError> {
        let mut slots = Slots::new(CacheSize { slots: 2, kv_blocks: 8 });
        let (a, b) = (slots.open()?, slots.open()?);
        slots.admit(&[segment(a, 0, 1), segment(b, 0, 1)])?;
        slots.admit(&[segment(a, 1, 128), segment(b, 1, 64)])?;
        assert_eq!((slots.blocks(a)?, slots.blocks(b)?), ([0, 1, 2].as_slice(), [4, 5].as_slice()));
        slots.close(a);
        slots.close(a);
        assert_eq!(slots.free_blocks, 6);
        Ok(())
    }

    #[test]
    fn a_refusal_changes_nothing() -> Result<(), ExecutorError> {
        let mut slots = Slots::new(CacheSize { slots: 1, kv_blocks: 2 });
        let a = slots.open()?;
        assert!(matches!(slots.open(), Err(ExecutorError::NoFreeSlot { slots: 1 })));
        let full = slots.admit(&[segment(a, 0, 129)]);
        assert!(matches!(full, Err(ExecutorError::NoFreeKv { needed: 192, free: 128 })), "{full:?}");
        assert!(matches!(slots.admit(&[segment(a, 1, 1)]), Err(ExecutorError::InvalidArgument { what: "position", .. })));
        assert!(matches!(slots.admit(&[segment(SlotId(1), 0, 1)]), Err(ExecutorError::UnknownSlot(SlotId(1)))));
        assert_eq!((slots.free_blocks, slots.blocks(a)?.len()), (2, 0));
        slots.admit(&[segment(a, 0, 128)])
    }

    #[test]
    fn sizes_give_every_slot_its_half_empty_block() {
        assert_eq!(CacheSize::for_tokens(4, 1000), CacheSize { slots: 4, kv_blocks: 20 });
        assert!(CacheSize { slots: 0, kv_blocks: 1 }.check().is_err());
    }
}
