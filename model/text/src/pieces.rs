//! The bytes behind every id of a byte-level vocabulary, and the assembly of bytes into characters.
//!
//! Byte-level BPE writes each byte as one printable character; a token is a run of bytes, not of characters, so one character may be
//! spread over several tokens. Text is the UTF-8 reading of the concatenated bytes of all tokens that are not control tokens.

use std::collections::HashMap;

/// What one id stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes of text.
    Text(Box<[u8]>),
    /// A control token, by its name; never part of an answer's text.
    Control(Box<str>),
}

/// id -> piece; ids that the tokenizer does not name are gaps.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<Option<Piece>>);

impl Pieces {
    /// Builds the table for ids 0..`size`; `name` gives a token's text, `is_control` tells control tokens, `is_added` tokens that
    /// are written literally instead of in the byte alphabet.
    pub(crate) fn build(
        size: u32,
        name: impl Fn(u32) -> Option<String>,
        is_control: impl Fn(u32) -> bool,
        is_added: impl Fn(u32) -> bool,
    ) -> Self {
        let alphabet = byte_alphabet();
        let piece = |id| {
            let text = name(id)?;
            if is_control(id) {
                return Some(Piece::Control(text.into()));
            }
            let bytes = if is_added(id) { text.into_bytes() } else { bytes_of(&text, &alphabet) };
            Some(Piece::Text(bytes.into()))
        };
        Self((0..size).map(piece).collect())
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Piece> {
        self.0.get(usize::try_from(id).ok()?)?.as_ref()
    }

    /// Bytes of the longest one; 1 for an empty table.
    pub(crate) fn longest(&self) -> usize {
        let length = |piece: &Piece| match piece {
            Piece::Text(bytes) => bytes.len(),
            Piece::Control(name) => name.len(),
        };
        self.0.iter().flatten().map(length).max().unwrap_or(0).max(1)
    }

    /// Ids that have a piece, ascending.
    pub(crate) fn known(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.0).filter_map(|(id, piece)| piece.as_ref().map(|_| id))
    }
}

/// The alphabet of byte-level BPE: bytes that print as Latin-1 stand for themselves, the others follow from U+0100 on.
pub(crate) fn byte_alphabet() -> HashMap<char, u8> {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = (0..=255u8).filter(|&b| !prints(b)).zip('\u{100}'..).map(|(b, c)| (c, b));
    (0..=255u8).filter(|&b| prints(b)).map(|b| (char::from(b), b)).chain(hidden).collect()
}

/// Bytes of a token; one with a character outside the alphabet is literal text.
pub(crate) fn bytes_of(token: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
    token.chars().map(|c| alphabet.get(&c).copied()).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Turns arriving bytes into characters; what could still become a character waits.
#[derive(Debug, Default, Clone)]
pub(crate) struct Utf8Assembler(Vec<u8>);

impl Utf8Assembler {
    /// Appends to `out` every character that is complete; bytes that can never be one become U+FFFD, as in a lossy decode.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.0.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.0.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let bad = chunk.invalid();
            if bad.is_empty() || is_open(bad, done + bad.len() == self.0.len()) {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            done += bad.len();
        }
        self.0.drain(..done);
    }

    /// Bytes that were left over make one U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if !self.0.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.0.clear();
        }
    }
}

/// Whether `bad`, which does not decode, is the start of a character whose rest is still to come.
fn is_open(bad: &[u8], at_end: bool) -> bool {
    at_end && std::str::from_utf8(bad).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assemble(chunks: &[&[u8]]) -> (String, String) {
        let mut assembler = Utf8Assembler::default();
        let (mut text, mut rest) = (String::new(), String::new());
        for chunk in chunks {
            assembler.push(chunk, &mut text);
        }
        assembler.finish(&mut rest);
        (text, rest)
    }

    #[test]
    fn alphabet_covers_every_byte_once() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet[&'\u{120}'], b' ');
        assert_eq!(alphabet[&'\u{10a}'], b'\n');
    }

    #[test]
    fn characters_wait_for_their_last_byte() {
        let euro = "\u{20ac}".as_bytes();
        assert_eq!(assemble(&[&euro[..1], &euro[1..2], &euro[2..]]), ("\u{20ac}".into(), String::new()));
        assert_eq!(assemble(&[b"a", &euro[..2]]), ("a".into(), "\u{fffd}".into()));
    }

    #[test]
    fn impossible_bytes_are_replaced_at_once() {
        assert_eq!(assemble(&[b"a\xffb"]), ("a\u{fffd}b".into(), String::new()));
        assert_eq!(assemble(&[b"\xe2", b"x"]), ("\u{fffd}x".into(), String::new()));
    }
}
