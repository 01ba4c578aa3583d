//! Which ids may be sampled: the ones the tokenizer knows, as a bitmap over the vocabulary.
//!
//! The model's head has rows that no token names; they are never drawn.

use std::ops::Range;

const WORD: usize = u64::BITS as usize;

/// A set of token ids within a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedIds {
    words: Vec<u64>,
    vocab: u32,
}

impl AllowedIds {
    /// Every id of a vocabulary: for a checkpoint without a tokenizer.
    pub fn all(vocab: u32) -> Self {
        let mut words = vec![u64::MAX; (vocab as usize).div_ceil(WORD)];
        let rest = vocab as usize % WORD;
        if let Some(last) = words.last_mut().filter(|_| rest != 0) {
            *last = (1 << rest) - 1;
        }
        Self { words, vocab }
    }

    /// The given ids; those beyond the vocabulary have no logit and are left out.
    pub fn from_ids(vocab: u32, ids: impl IntoIterator<Item = u32>) -> Self {
        let mut words = vec![0; (vocab as usize).div_ceil(WORD)];
        for id in ids.into_iter().filter(|&id| id < vocab) {
            words[id as usize / WORD] |= 1 << (id as usize % WORD);
        }
        Self { words, vocab }
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    /// Number of ids in the set.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no id is allowed.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether this id is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / WORD).is_some_and(|word| word >> (id as usize % WORD) & 1 == 1)
    }

    /// The ids of the set in runs without a gap, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next(from, true)?;
            let end = self.next(start, false).unwrap_or(self.vocab as usize);
            from = end;
            Some(start..end)
        })
    }

    /// The first id from `from` on that is in the set, or that is not.
    fn next(&self, from: usize, within: bool) -> Option<usize> {
        let mut ahead = u64::MAX << (from % WORD);
        for (index, word) in self.words.iter().enumerate().skip(from / WORD) {
            let found = (if within { *word } else { !word }) & ahead;
            if found != 0 {
                return Some(index * WORD + found.trailing_zeros() as usize).filter(|id| *id < self.vocab as usize);
            }
            ahead = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_covers_exactly_the_vocabulary() {
        for vocab in [1, 63, 64, 65, 320] {
            let ids = AllowedIds::all(vocab);
            assert_eq!(ids.len(), vocab as usize);
            assert!(ids.contains(vocab - 1) && !ids.contains(vocab));
            assert_eq!(ids, AllowedIds::from_ids(vocab, 0..vocab));
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_left_out() {
        let ids = AllowedIds::from_ids(10, [3, 10, 200_000]);
        assert_eq!(ids.len(), 1);
        assert!(AllowedIds::from_ids(10, [11]).is_empty());
    }

    proptest! {
        #[test]
        fn runs_have_each_allowed_id_once_in_order(
            vocab in 1u32..300,
            picks in prop::collection::btree_set(0u32..300, 0..100),
            without in prop::collection::btree_set(0u32..300, 0..4),
            all: bool,
        ) {
            let wanted: Vec<u32> = (0..vocab).filter(|id| if all { !without.contains(id) } else { picks.contains(id) }).collect();
            let runs: Vec<Range<usize>> = AllowedIds::from_ids(vocab, wanted.iter().copied()).runs().collect();
            prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start) && runs.iter().all(|run| !run.is_empty()));
            prop_assert_eq!(runs.into_iter().flatten().map(|id| id as u32).collect::<Vec<_>>(), wanted);
        }
    }
}
