//! Which `tokenizer.json` is encoded here: byte-level BPE in its plain form, as M1's. Every field that could change an id must have a value that is
//! known; otherwise the crate does it.

use serde::Deserialize;
use serde_json::Value;

use super::merges::Merges;
use super::split::Splitter;
use super::words::Words;
use super::{Bounds, EncodeError, Ids};

/// Words between two looks at whether anybody still waits: less than a millisecond.
const LOOK: usize = 1024;

/// A pattern that cuts words, and the merges of their bytes.
#[derive(Debug)]
pub(crate) struct Own {
    splitter: Splitter,
    words: Words,
}

#[derive(Deserialize)]
struct File {
    truncation: Option<Value>,
    padding: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) vocab: std::collections::HashMap<String, u32>,
    pub(super) merges: Vec<Merge>,
}

/// Both spellings that there are.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Pair(String, String),
    Line(String),
}

/// Ids of a text, and how many may still come behind the word at hand.
pub(super) struct Room<'a, 'i> {
    pub(super) ids: &'a mut Ids<'i>,
    pub(super) more: usize,
}

impl Own {
    /// None where the crate is needed.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(json).ok()?;
        let plain = file.truncation.is_none()
            && file.padding.is_none()
            && file.normalizer.is_none()
            // Control tokens are found before; other added tokens would have to be found here.
            && file.added_tokens.iter().all(|token| token.special)
            && file.model.kind == "BPE"
            && file.model.dropout.is_none_or(|dropout| dropout == 0.0)
            && file.model.continuing_subword_prefix.as_deref().is_none_or(str::is_empty)
            && file.model.end_of_word_suffix.as_deref().is_none_or(str::is_empty);
        if !plain {
            return None;
        }
        let splitter = Splitter::read(file.pre_tokenizer.as_ref()?)?;
        let merges = Merges::read(&file.model)?;
        Some(Self { splitter, words: Words::new(merges, &file.model) })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, bounds: &Bounds<'_>, ids: &mut Ids<'_>) -> Result<(), EncodeError> {
        let mut scratch = self.words.scratch();
        let (mut at, mut until_look) = (0, LOOK);
        while let Some(end) = self.splitter.next(text, at) {
            // Every id takes a byte at least.
            let mut out = Room { ids, more: text.len() - end };
            self.words.encode(&text.as_bytes()[at..end], bounds, &mut scratch, &mut out)?;
            bounds.check_tokens(ids.count())?;
            at = end;
            until_look -= 1;
            if until_look == 0 {
                bounds.check()?;
                until_look = LOOK;
            }
        }
        Ok(())
    }
}
