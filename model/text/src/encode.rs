//! Text to ids, no further than anybody wants them.
//!
//! A byte-level BPE that splits its text by a pattern is encoded here, word by word, straight into ids: the `tokenizers` crate keeps strings, offsets and
//! alignments of every token, some hundred bytes for each. Which tokenizers that are, [`own`] decides; all others go to the crate. Both give the same ids.

mod merges;
mod own;
mod split;
mod words;

use std::sync::atomic::{AtomicBool, Ordering};

use own::Own;

/// How far an encoding goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// It is refused when it takes more tokens than this.
    pub tokens: usize,
    /// Whoever sets it wants nothing any more.
    pub cancelled: &'a AtomicBool,
}

/// Nobody sets it.
static NEVER: AtomicBool = AtomicBool::new(false);

impl Bounds<'static> {
    /// To the end.
    pub const NONE: Self = Self { tokens: usize::MAX, cancelled: &NEVER };
}

impl Bounds<'_> {
    pub(crate) fn check(&self) -> Result<(), EncodeError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(EncodeError::Cancelled) } else { Ok(()) }
    }

    /// Refuses so many bytes where even the longest token, over and over, would be too many tokens.
    pub(crate) fn check_bytes(&self, bytes: usize, longest: usize) -> Result<(), EncodeError> {
        let tokens = bytes.div_ceil(longest.max(1));
        if tokens > self.tokens { Err(EncodeError::Bytes { bytes, tokens }) } else { Ok(()) }
    }

    pub(crate) fn check_tokens(&self, count: usize) -> Result<(), EncodeError> {
        if count > self.tokens { Err(EncodeError::Tokens { tokens: self.tokens }) } else { Ok(()) }
    }
}

/// Text that was not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It is too long, whatever stands in it.
    #[error("the text has {bytes} bytes or more, at least {tokens} tokens")]
    Bytes {
        /// Bytes of the text, as far as it was looked at.
        bytes: usize,
        /// The least number of tokens that these can be.
        tokens: usize,
    },
    /// It is too long.
    #[error("the text has more than {tokens} tokens")]
    Tokens {
        /// The bound.
        tokens: usize,
    },
    /// Nobody waits for it any more.
    #[error("nobody waits for the text any more")]
    Cancelled,
    /// Byte-level BPE has an id for every byte, so this speaks of a damaged vocabulary.
    #[error("cannot encode the text: {message}")]
    Vocabulary {
        /// The `tokenizers` crate's words.
        message: String,
    },
}

impl EncodeError {
    /// One word for logs and conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bytes { .. } | Self::Tokens { .. } => "TextTooLong",
            Self::Cancelled => "Cancelled",
            Self::Vocabulary { .. } => "EncodeFailed",
        }
    }
}

/// Who encodes text between control tokens.
#[derive(Debug)]
pub(crate) enum Encoder {
    Own(Box<Own>),
    Library(Box<tokenizers::Tokenizer>),
}

impl Encoder {
    /// The encoder of the tokenizer that `json` describes and the crate has read from it.
    pub(crate) fn new(json: &[u8], library: tokenizers::Tokenizer) -> Self {
        match Own::read(json) {
            Some(own) => Self::Own(Box::new(own)),
            None => Self::Library(Box::new(library)),
        }
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, text: &str, bounds: &Bounds<'_>, ids: &mut Ids<'_>) -> Result<(), EncodeError> {
        bounds.check()?;
        match self {
            Self::Own(own) => own.encode(text, bounds, ids),
            Self::Library(library) => {
                let encoding =
                    library.encode_fast(text, false).map_err(|error| EncodeError::Vocabulary { message: error.to_string() })?;
                ids.extend(encoding.get_ids().iter().copied(), 0);
                bounds.check_tokens(ids.count())
            }
        }
    }
}

/// Takes ids as they come.
type Taker<'a> = &'a mut dyn FnMut(&[u32]);

/// Where ids go: into a list, or on to somebody as they come.
pub(crate) struct Ids<'a> {
    list: Vec<u32>,
    given: usize,
    to: Option<Taker<'a>>,
}

/// Ids that are passed on at a time.
const CHUNK: usize = 1024;

impl<'a> Ids<'a> {
    /// All of them, at the end.
    pub(crate) fn kept() -> Self {
        Self { list: Vec::new(), given: 0, to: None }
    }

    /// Some at a time, to `to`.
    pub(crate) fn passed(to: Taker<'a>) -> Self {
        Self { list: Vec::with_capacity(CHUNK), given: 0, to: Some(to) }
    }

    pub(crate) fn count(&self) -> usize {
        self.given + self.list.len()
    }

    /// Takes some; at most `more` will follow of the same text.
    pub(crate) fn extend(&mut self, ids: impl ExactSizeIterator<Item = u32>, more: usize) {
        let most = self.list.len() + ids.len() + more;
        grow(&mut self.list, ids.len(), most);
        self.list.extend(ids);
        if let Some(to) = self.to.as_mut().filter(|_| self.list.len() >= CHUNK) {
            to(&self.list);
            self.given += self.list.len();
            self.list.clear();
        }
    }

    pub(crate) fn finish(self) -> Vec<u32> {
        match self.to {
            Some(to) => {
                to(&self.list);
                Vec::new()
            }
            None => self.list,
        }
    }
}

/// Makes room for `more`, a quarter at a time rather than all over again: what is as long as a request must not stand there twice.
/// No more than `most` are expected in all.
pub fn grow<T>(list: &mut Vec<T>, more: usize, most: usize) {
    let needed = list.len().saturating_add(more);
    if needed > list.capacity() {
        let ample = list.len() + list.len() / 4 + 64;
        list.reserve_exact(ample.max(needed).min(most.max(needed)) - list.len());
    }
}
