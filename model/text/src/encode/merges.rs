//! The merges of a byte-level BPE, and their application to the bytes of one word: of all pairs of neighbours the one of lowest rank is merged, of two
//! alike the left one, until none is left that can be.
//!
//! Long words are encoded window by window, so that a text without a blank takes no more memory than one with. That rests on this: tokens t1 .. tn, each
//! a result of merging, are the result for their whole text if and only if each pair of neighbours is the result for its own text. (Within a pair the
//! order of merges is that of the whole, up to the first merge across a border; that would be made in the pair's own run too.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::own::{Merge, Model};
use super::{Bounds, EncodeError};
use crate::pieces::byte_alphabet;

/// Bytes of a word up to which every pair is looked at for every merge: below, that is faster than a heap.
const SHORT: usize = 32;
/// Bytes of a window: long enough that its end rarely matters, and some 100 KB of memory.
const WINDOW: usize = 4096;

/// No token, no merge.
const NONE: u32 = u32::MAX;

/// A token of a word and how many bytes it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: u32,
    pub(super) length: u32,
}

/// Which pairs of tokens become which.
#[derive(Debug)]
pub(super) struct Merges {
    /// (left, right) -> (rank, token).
    pairs: HashMap<u64, (u32, u32), BuildHasherDefault<Mix>>,
    /// The token of each byte.
    bytes: [u32; 256],
}

/// Memory that one word after the other uses.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// (token, its bytes, rank of its merge with the next, what that gives).
    short: Vec<(Found, u32, u32)>,
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
    pub(super) found: Vec<Found>,
    ahead: Vec<Found>,
}

#[derive(Debug, Clone, Copy)]
struct Symbol {
    /// [`NONE`]: it went into its left neighbour.
    id: u32,
    length: u32,
    before: u32,
    after: u32,
}

impl Merges {
    /// None where a byte has no token, or a merge names one that is not there.
    pub(super) fn read(model: &Model) -> Option<Self> {
        let id = |token: &str| model.vocab.get(token).copied();
        let mut bytes = [NONE; 256];
        for (letter, byte) in byte_alphabet() {
            bytes[usize::from(byte)] = id(letter.encode_utf8(&mut [0; 4]))?;
        }
        let mut pairs = HashMap::with_capacity_and_hasher(model.merges.len(), BuildHasherDefault::default());
        for (rank, merge) in (0u32..).zip(&model.merges) {
            let (left, right) = match merge {
                Merge::Pair(left, right) => (left.as_str(), right.as_str()),
                Merge::Line(line) => line.split_once(' ')?,
            };
            pairs.insert(key(id(left)?, id(right)?), (rank, id(&format!("{left}{right}"))?));
        }
        Some(Self { pairs, bytes })
    }

    fn pair(&self, left: u32, right: u32) -> (u32, u32) {
        self.pairs.get(&key(left, right)).copied().unwrap_or((NONE, NONE))
    }

    /// The tokens of a word, into `scratch.found`.
    ///
    /// # Errors
    /// More tokens than `bounds` has left after `before`; nobody waits any more.
    pub(super) fn word(
        &self,
        word: &[u8],
        bounds: &Bounds<'_>,
        scratch: &mut Scratch,
        mut give: impl FnMut(&[Found]) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        if word.len() <= 2 * WINDOW {
            self.whole(word, scratch);
            return give(&scratch.found);
        }
        let (mut at, mut window) = (0, WINDOW);
        self.whole(&word[..window], scratch);
        loop {
            bounds.check()?;
            if at + window >= word.len() {
                return give(&scratch.found);
            }
            match self.settled(word, at, window, scratch) {
                Some((kept, next)) => {
                    give(scratch.found.get(..kept).unwrap_or_default())?;
                    (at, window) = (next, WINDOW);
                    std::mem::swap(&mut scratch.found, &mut scratch.ahead);
                }
                None => {
                    window *= 2;
                    self.whole(&word[at..word.len().min(at + window)], scratch);
                }
            }
        }
    }

    /// How many tokens of the window at `at` stay whatever follows, and where the next window begins; its tokens are then ahead.
    fn settled(&self, word: &[u8], at: usize, window: usize, scratch: &mut Scratch) -> Option<(usize, usize)> {
        let (mut kept, mut end) = (scratch.found.len(), at + window);
        for back in [8, 8, 16, 32, 64] {
            for _ in 0..back {
                kept = kept.checked_sub(1).filter(|kept| *kept > 0)?;
                end -= scratch.found.get(kept)?.length as usize;
            }
            let last = *scratch.found.get(kept - 1)?;
            let mut here = std::mem::take(&mut scratch.found);
            self.whole(&word[end..word.len().min(end + WINDOW)], scratch);
            std::mem::swap(&mut scratch.found, &mut scratch.ahead);
            let first = *scratch.ahead.first()?;
            let pair = &word[end - last.length as usize..end + first.length as usize];
            self.whole(pair, scratch);
            let agrees = scratch.found == [last, first];
            std::mem::swap(&mut scratch.found, &mut here);
            if agrees {
                return Some((kept, end));
            }
        }
        None
    }

    /// The tokens of a word at once, into `scratch.found`.
    pub(super) fn whole(&self, word: &[u8], scratch: &mut Scratch) {
        if word.len() <= SHORT { self.short(word, scratch) } else { self.long(word, scratch) }
    }

    fn short(&self, word: &[u8], scratch: &mut Scratch) {
        let list = &mut scratch.short;
        list.clear();
        list.extend(word.iter().map(|byte| (Found { id: self.bytes[usize::from(*byte)], length: 1 }, NONE, NONE)));
        for at in 1..list.len() {
            let (rank, token) = self.pair(list[at - 1].0.id, list[at].0.id);
            (list[at - 1].1, list[at - 1].2) = (rank, token);
        }
        // The first of the lowest.
        while let Some((at, &(_, rank, token))) = list.iter().enumerate().min_by_key(|(_, (_, rank, _))| *rank) {
            if rank == NONE {
                break;
            }
            let right = list.remove(at + 1);
            list[at].0 = Found { id: token, length: list[at].0.length + right.0.length };
            (list[at].1, list[at].2) = list.get(at + 1).map_or((NONE, NONE), |next| self.pair(token, next.0.id));
            if at > 0 {
                (list[at - 1].1, list[at - 1].2) = self.pair(list[at - 1].0.id, token);
            }
        }
        scratch.found.clear();
        scratch.found.extend(list.iter().map(|(found, _, _)| *found));
    }

    fn long(&self, word: &[u8], scratch: &mut Scratch) {
        let Scratch { symbols, heap, found, .. } = scratch;
        symbols.clear();
        heap.clear();
        let symbol = |(at, byte): (u32, &u8)| Symbol {
            id: self.bytes[usize::from(*byte)],
            length: 1,
            before: at.checked_sub(1).unwrap_or(NONE),
            after: at + 1,
        };
        symbols.extend((0u32..).zip(word).map(symbol));
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }
        for at in 1..symbols.len() {
            self.offer(symbols, heap, at - 1, at);
        }
        while let Some(Reverse((_, at, token))) = heap.pop() {
            let left = symbols[at as usize];
            if left.id == NONE || left.after == NONE {
                continue;
            }
            let right = symbols[left.after as usize];
            // What was offered may have changed since.
            if self.pair(left.id, right.id).1 != token {
                continue;
            }
            symbols[left.after as usize].id = NONE;
            symbols[at as usize] = Symbol { id: token, length: left.length + right.length, after: right.after, ..left };
            if right.after != NONE {
                symbols[right.after as usize].before = at;
                self.offer(symbols, heap, at as usize, right.after as usize);
            }
            if left.before != NONE {
                self.offer(symbols, heap, left.before as usize, at as usize);
            }
        }
        found.clear();
        found
            .extend(symbols.iter().filter(|symbol| symbol.id != NONE).map(|symbol| Found { id: symbol.id, length: symbol.length }));
    }

    fn offer(&self, symbols: &[Symbol], heap: &mut BinaryHeap<Reverse<(u32, u32, u32)>>, left: usize, right: usize) {
        let (rank, token) = self.pair(symbols[left].id, symbols[right].id);
        if let (false, Ok(left)) = (rank == NONE, u32::try_from(left)) {
            heap.push(Reverse((rank, left, token)));
        }
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Mixes the bits of a pair. No caller chooses what the table holds, so it needs no secret.
#[derive(Debug, Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        // Odd constants of splitmix64.
        let mixed = (self.0.rotate_left(26) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.0 ^= self.0 >> 32;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    /// Merges of neighbours in a row of letters, the last first: where the row ends decides how all of it is paired.
    fn row(length: u8) -> (Merges, Vec<u8>) {
        let letters: Vec<char> = (0..length).map(|at| char::from(b'!' + at)).collect();
        let mut vocab = Map::new();
        let mut names: Vec<String> = byte_alphabet().into_keys().map(String::from).collect();
        let pairs: Vec<(char, char)> = letters.windows(2).rev().map(|pair| (pair[0], pair[1])).collect();
        names.extend(pairs.iter().map(|(left, right)| format!("{left}{right}")));
        for (id, name) in names.into_iter().enumerate() {
            vocab.insert(name, Value::from(id));
        }
        let merges: Vec<Value> = pairs.iter().map(|(left, right)| json!([left, right])).collect();
        let model: Model = serde_json::from_value(json!({"type": "BPE", "vocab": vocab, "merges": merges})).unwrap();
        (Merges::read(&model).unwrap(), letters.iter().map(|letter| *letter as u8).collect())
    }

    #[test]
    fn windows_agree_with_the_whole_when_the_end_decides_far_back() {
        for length in [2, 7, 23, 55, 61, 90] {
            let (merges, letters) = row(length);
            for total in [2 * WINDOW + 1, 3 * WINDOW + 17, 20_000] {
                let word: Vec<u8> = letters.iter().copied().cycle().take(total).collect();
                let (mut scratch, mut found) = (Scratch::default(), Vec::new());
                let given = merges.word(&word, &Bounds::NONE, &mut scratch, |some| {
                    found.extend_from_slice(some);
                    Ok(())
                });
                assert_eq!(given, Ok(()));
                merges.long(&word, &mut scratch);
                assert_eq!(found, scratch.found, "{length} {total}");
                for end in 0..=SHORT {
                    merges.short(&word[..end], &mut scratch);
                    let short = scratch.found.clone();
                    merges.long(&word[..end], &mut scratch);
                    assert_eq!(short, scratch.found);
                }
            }
        }
    }
}
