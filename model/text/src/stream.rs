//! Ids to text while they arrive: whole characters only, control tokens left out, and an end at the first stop string.
//!
//! Invariant: the pieces that [`TextStream`] gives out, joined, do not depend on how the caller interleaves its calls, and are the
//! decoded text up to the stop string that is complete first (of two that end together, the one that began first).

use std::sync::Arc;

use crate::hold::partial_end;
use crate::pieces::{Piece, Pieces, Utf8Assembler};
use crate::tokenizer::Tokenizer;

/// A stop string that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty text would stop every answer before it began.
    #[error("stop[{index}] is empty; it must hold at least one character")]
    Empty {
        /// Its place in the list.
        index: usize,
    },
    /// Every token is compared with it.
    #[error("stop[{index}] has {bytes} bytes; at most {} are allowed", StopStrings::LONGEST)]
    Long {
        /// Its place in the list.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// Every token is compared with all of them.
    #[error("stop: {given} texts are given; at most {} are allowed", StopStrings::MOST)]
    Many {
        /// How many.
        given: usize,
    },
}

impl StopError {
    /// One word for logs and answers.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "StopStringEmpty",
            Self::Long { .. } => "StopStringTooLong",
            Self::Many { .. } => "TooManyStopStrings",
        }
    }
}

/// Texts that end an answer; they are not part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStrings(Vec<String>);

impl StopStrings {
    /// Bytes of one; people stop at words and lines.
    pub const LONGEST: usize = 4096;
    /// How many there may be. OpenAI takes four.
    pub const MOST: usize = 16;

    /// Checks the list.
    ///
    /// # Errors
    /// A text that is empty or too long, with its place, or too many.
    pub fn new(texts: Vec<String>) -> Result<Self, StopError> {
        if texts.len() > Self::MOST {
            return Err(StopError::Many { given: texts.len() });
        }
        match texts.iter().enumerate().find(|(_, text)| text.is_empty() || text.len() > Self::LONGEST) {
            Some((index, text)) if text.is_empty() => Err(StopError::Empty { index }),
            Some((index, text)) => Err(StopError::Long { index, bytes: text.len() }),
            None => Ok(Self(texts)),
        }
    }

    /// The texts.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.0
    }

    /// The first match to be complete: (start, which).
    fn find(&self, text: &str) -> Option<(usize, usize)> {
        let matches =
            self.0.iter().enumerate().filter_map(|(which, stop)| text.find(stop).map(|start| (start + stop.len(), start, which)));
        matches.min().map(|(_, start, which)| (start, which))
    }

    /// Bytes at the end of `text` that a stop string may begin with.
    fn held(&self, text: &str) -> usize {
        self.0.iter().map(|stop| partial_end(text, stop)).max().unwrap_or(0)
    }
}

/// The incremental detokeniser of one answer.
#[derive(Debug)]
pub struct TextStream {
    pieces: Arc<Pieces>,
    characters: Utf8Assembler,
    stops: StopStrings,
    held: String,
    stopped: Option<usize>,
}

impl TextStream {
    /// An empty answer.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, stops: StopStrings) -> Self {
        Self { pieces: tokenizer.pieces(), characters: Utf8Assembler::default(), stops, held: String::new(), stopped: None }
    }

    /// Takes the next id; gives the text that is now certain, perhaps none. After a stop string it gives nothing more.
    pub fn push(&mut self, id: u32) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        if let Some(Piece::Text(bytes)) = self.pieces.get(id) {
            self.characters.push(bytes, &mut self.held);
        }
        self.release()
    }

    /// Ends the answer: what was held back, with U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.characters.finish(&mut self.held);
        let mut text = self.release();
        if self.stopped.is_none() {
            text.push_str(&std::mem::take(&mut self.held));
        }
        text
    }

    /// The stop string that ended the answer, once one has.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.and_then(|which| self.stops.0.get(which)).map(String::as_str)
    }

    fn release(&mut self) -> String {
        if let Some((start, which)) = self.stops.find(&self.held) {
            self.stopped = Some(which);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let rest = self.held.split_off(self.held.len() - self.stops.held(&self.held));
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_few_and_short() {
        let new = |texts: &[&str]| StopStrings::new(texts.iter().map(|text| (*text).to_owned()).collect());
        assert!(new(&["x"; StopStrings::MOST]).is_ok() && new(&[&"x".repeat(StopStrings::LONGEST)]).is_ok());
        assert_eq!(new(&["x", ""]), Err(StopError::Empty { index: 1 }));
        assert_eq!(new(&["x"; 17]), Err(StopError::Many { given: 17 }));
        let error = new(&["x", &"y".repeat(4097)]).unwrap_err();
        assert_eq!(error.to_string(), "stop[1] has 4097 bytes; at most 4096 are allowed");
        assert_eq!(error.reason(), "StopStringTooLong");
    }
}
