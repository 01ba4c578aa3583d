//! A rendered conversation, and the writer that ends a rendering which cannot fit.

use std::io;

use crate::encode::{Bounds, EncodeError, grow};

/// A rendered conversation, in which the template's control tokens are told from look-alikes in the caller's text.
///
/// A caller's `<end_of_sentence>` stays readable text for the model but is encoded as ordinary characters. Encoding
/// [`text`](Self::text) instead of the prompt would lose that; use [`Tokenizer::encode_prompt`](crate::Tokenizer::encode_prompt).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub(super) marked: String,
    pub(super) mark: Option<char>,
}

impl Prompt {
    /// The text as the model reads it.
    #[must_use]
    pub fn text(&self) -> String {
        match self.mark {
            Some(mark) => self.marked.replace(mark, ""),
            None => self.marked.clone(),
        }
    }

    pub(crate) fn marked(&self) -> &str {
        &self.marked
    }

    pub(crate) fn mark(&self) -> Option<char> {
        self.mark
    }
}

/// Takes what a template writes, as long as it can fit.
pub(super) struct Writer<'a> {
    out: Vec<u8>,
    bounds: &'a Bounds<'a>,
    longest: usize,
    halted: Option<EncodeError>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(bounds: &'a Bounds<'a>, longest: usize) -> Self {
        Self { out: Vec::new(), bounds, longest, halted: None }
    }

    pub(super) fn finish(mut self) -> Result<String, EncodeError> {
        self.out.shrink_to_fit();
        match self.halted {
            Some(error) => Err(error),
            None => String::from_utf8(self.out).map_err(|error| EncodeError::Vocabulary { message: error.to_string() }),
        }
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = self.bounds.check().and_then(|()| self.bounds.check_bytes(self.out.len() + bytes.len(), self.longest));
        if let Err(error) = fits {
            self.halted = Some(error);
            return Err(io::Error::other("the prompt ends here"));
        }
        grow(&mut self.out, bytes.len(), usize::MAX);
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
