//! Which ids may be sampled: the ones the tokenizer knows, as a bitmap over the vocabulary.
//!
//! The model's head has rows that no token names; they are never drawn.

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

    /// Calls `visit(id, logit)` for every id of the set, ascending.
    pub(crate) fn for_each(&self, logits: &[f32], mut visit: impl FnMut(u32, f32)) {
        for (index, (&word, chunk)) in self.words.iter().zip(logits.chunks(WORD)).enumerate() {
            let base = (index * WORD) as u32;
            if word == u64::MAX {
                for (offset, &logit) in chunk.iter().enumerate() {
                    visit(base + offset as u32, logit);
                }
                continue;
            }
            let mut bits = word;
            while bits != 0 {
                let offset = bits.trailing_zeros();
                bits &= bits - 1;
                if let Some(&logit) = chunk.get(offset as usize) {
                    visit(base + offset, logit);
                }
            }
        }
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
        fn visits_each_allowed_id_once_in_order(vocab in 1u32..300, picks in prop::collection::btree_set(0u32..300, 0..100)) {
            let logits: Vec<f32> = (0..vocab).map(|id| id as f32).collect();
            let mut seen = Vec::new();
            AllowedIds::from_ids(vocab, picks.iter().copied()).for_each(&logits, |id, logit| {
                assert_eq!(id as f32, logit);
                seen.push(id);
            });
            prop_assert_eq!(seen, picks.into_iter().filter(|&id| id < vocab).collect::<Vec<_>>());
        }
    }
}
