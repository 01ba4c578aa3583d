//! Words to ids. Most words of a text are one token: such a word is looked up instead of merged, once it is known that merging its bytes gives that token.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU8, Ordering};

use super::merges::{Merges, Mix, Scratch};
use super::own::{Model, Room};
use super::{Bounds, EncodeError};
use crate::pieces::{byte_alphabet, bytes_of};

/// A token's own bytes give that token.
const ITSELF: u8 = 1;
/// They give others.
const OTHERS: u8 = 2;

/// The vocabulary by its bytes.
#[derive(Debug)]
pub(super) struct Words {
    merges: Merges,
    tokens: HashMap<Box<[u8]>, u32, BuildHasherDefault<Mix>>,
    /// By id: 0 until it was tried.
    known: Vec<AtomicU8>,
    /// Bytes of the longest token.
    longest: usize,
    /// A word that is a token is that token, whatever its merges give.
    ignore_merges: bool,
}

impl Words {
    pub(super) fn new(merges: Merges, model: &Model) -> Self {
        let alphabet = byte_alphabet();
        let tokens: HashMap<_, _, _> =
            model.vocab.iter().map(|(name, id)| (bytes_of(name, &alphabet).into_boxed_slice(), *id)).collect();
        let size = tokens.values().max().map_or(0, |id| *id as usize + 1);
        let longest = tokens.keys().map(|bytes| bytes.len()).max().unwrap_or(0);
        let known = (0..size).map(|_| AtomicU8::new(0)).collect();
        Self { merges, tokens, known, longest, ignore_merges: model.ignore_merges }
    }

    pub(super) fn scratch(&self) -> Scratch {
        Scratch::default()
    }

    /// Appends the ids of one word.
    pub(super) fn encode(
        &self,
        word: &[u8],
        bounds: &Bounds<'_>,
        scratch: &mut Scratch,
        out: &mut Room<'_, '_>,
    ) -> Result<(), EncodeError> {
        if word.len() <= self.longest
            && let Some(id) = self.tokens.get(word)
            && self.is_itself(*id, word, scratch)
        {
            out.ids.extend([*id].into_iter(), out.more);
            return Ok(());
        }
        let mut left = word.len();
        self.merges.word(word, bounds, scratch, |found| {
            left = left.saturating_sub(found.iter().map(|found| found.length as usize).sum());
            out.ids.extend(found.iter().map(|found| found.id), out.more + left);
            bounds.check_tokens(out.ids.count())
        })
    }

    fn is_itself(&self, id: u32, word: &[u8], scratch: &mut Scratch) -> bool {
        let Some(known) = self.known.get(id as usize).filter(|_| !self.ignore_merges) else { return true };
        match known.load(Ordering::Relaxed) {
            ITSELF => true,
            OTHERS => false,
            _ => {
                self.merges.whole(word, scratch);
                let itself = scratch.found.len() == 1 && scratch.found.iter().all(|found| found.id == id);
                known.store(if itself { ITSELF } else { OTHERS }, Ordering::Relaxed);
                itself
            }
        }
    }
}
