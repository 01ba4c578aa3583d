//! The checkpoint's tokenizer: text to ids, ids to bytes, which ids exist, and which one ends an answer.
//!
//! Control tokens are found here, not by the `tokenizers` crate, so that one instance serves both raw text (where a written control
//! token counts) and chat prompts (where only the template's own do). Their `lstrip`, `rstrip` and `single_word` flags, which M1 does
//! not set, are not obeyed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::DecoderWrapper;

use crate::control::{ControlTokens, Part};
use crate::encode::{Bounds, EncodeError, Encoder, Ids};
use crate::pieces::{Piece, Pieces, Utf8Assembler};
use crate::template::Prompt;

/// Why a tokenizer could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// `tokenizer.json` is not one that the `tokenizers` library understands.
    #[error("cannot load {}: {message}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// The library's words.
        message: String,
    },
    /// `tokenizer_config.json` is not JSON.
    #[error("cannot parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The decoder is not byte-level.
    #[error("{}: decoder is not supported; allowed: ByteLevel", path.display())]
    Decoder {
        /// The file.
        path: PathBuf,
    },
    /// The end-of-answer token is not named, or has no id.
    #[error("{}: eos_token is {given}; it must name a token of tokenizer.json", path.display())]
    EndToken {
        /// The file.
        path: PathBuf,
        /// What stands there.
        given: String,
    },
}

impl TokenizerError {
    /// One word for logs and conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "TokenizerUnreadable",
            Self::Load { .. } | Self::Parse { .. } => "TokenizerInvalid",
            Self::Decoder { .. } => "DecoderUnsupported",
            Self::EndToken { .. } => "EndTokenUnknown",
        }
    }
}

/// A byte-level BPE tokenizer. Shared by reference; every method takes `&self` and keeps no state.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    control: ControlTokens,
    pieces: Arc<Pieces>,
    /// Bytes of the longest token.
    longest: usize,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Opens `tokenizer.json` and `tokenizer_config.json` of a checkpoint directory.
    ///
    /// # Errors
    /// [`TokenizerError`], naming the file.
    pub fn open(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| TokenizerError::Load { path: path.clone(), message: error.to_string() })?;
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(TokenizerError::Decoder { path });
        }
        inner.set_encode_special_tokens(true);
        let added = inner.get_added_tokens_decoder();
        let is_control = |id: u32| added.get(&id).is_some_and(|token| token.special);
        // Ids may have gaps: the highest one decides, not the count.
        let size = inner.get_vocab(true).into_values().max().map_or(0, |id| id + 1);
        let pieces = Pieces::build(size, |id| inner.id_to_token(id), is_control, |id| added.contains_key(&id));
        let control =
            ControlTokens::new(added.iter().filter(|(_, token)| token.special).map(|(id, token)| (token.content.clone(), *id)))
                .map_err(|error| TokenizerError::Load { path, message: error.to_string() })?;
        let eos = end_ids(dir, &inner)?;
        let longest = pieces.longest();
        Ok(Self { encoder: Encoder::new(&bytes, inner), control, pieces: Arc::new(pieces), longest, eos })
    }

    /// Ids of raw text, as `/v1/completions` takes it: control tokens written in it count as such; none are added.
    ///
    /// # Errors
    /// [`EncodeError`], on a damaged vocabulary only.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.encode_within(text, &Bounds::NONE)
    }

    /// The same, as long as somebody waits for it and it can fit.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode_within(&self, text: &str, bounds: &Bounds<'_>) -> Result<Vec<u32>, EncodeError> {
        self.encode_parts(text, None, bounds, Ids::kept())
    }

    /// The same, passed on as they come.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode_to(&self, text: &str, bounds: &Bounds<'_>, to: &mut dyn FnMut(&[u32])) -> Result<(), EncodeError> {
        self.encode_parts(text, None, bounds, Ids::passed(to)).map(drop)
    }

    /// Ids of a rendered conversation: only the template's control tokens count, never those in a caller's text.
    ///
    /// # Errors
    /// [`EncodeError`], on a damaged vocabulary only.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, EncodeError> {
        self.encode_prompt_within(prompt, &Bounds::NONE)
    }

    /// The same, as long as somebody waits for it and it can fit.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode_prompt_within(&self, prompt: &Prompt, bounds: &Bounds<'_>) -> Result<Vec<u32>, EncodeError> {
        self.encode_parts(prompt.marked(), prompt.mark(), bounds, Ids::kept())
    }

    /// The same, passed on as they come.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode_prompt_to(&self, prompt: &Prompt, bounds: &Bounds<'_>, to: &mut dyn FnMut(&[u32])) -> Result<(), EncodeError> {
        self.encode_parts(prompt.marked(), prompt.mark(), bounds, Ids::passed(to)).map(drop)
    }

    fn encode_parts(&self, text: &str, mark: Option<char>, bounds: &Bounds<'_>, mut ids: Ids<'_>) -> Result<Vec<u32>, EncodeError> {
        if mark.is_none() {
            bounds.check_bytes(text.len(), self.longest)?;
        }
        for part in self.control.split(text) {
            match (part, mark) {
                (Part::Control(id), _) => ids.extend([id].into_iter(), 0),
                (Part::Text(text), Some(mark)) if text.contains(mark) => {
                    let mut clean = String::with_capacity(text.split(mark).map(str::len).sum());
                    text.split(mark).for_each(|piece| clean.push_str(piece));
                    bounds.check_bytes(clean.len(), self.longest)?;
                    self.encoder.encode(&clean, bounds, &mut ids)?;
                }
                (Part::Text(text), _) => self.encoder.encode(text, bounds, &mut ids)?,
            }
            bounds.check_tokens(ids.count())?;
        }
        Ok(ids.finish())
    }

    /// Bytes of the longest token: a text of n bytes has at least n / longest tokens.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Text of `ids` without control tokens; ids without a token give nothing, bytes that are no character give U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// Like [`decode`](Self::decode), but control tokens are written by name.
    #[must_use]
    pub fn decode_with_control(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    /// Like [`decode_with_control`](Self::decode_with_control), passed on as it comes, until `to` wants no more.
    pub fn decode_with_control_to(&self, ids: &[u32], to: &mut dyn FnMut(&str) -> bool) {
        self.decode_to(ids, true, to);
    }

    fn decode_with(&self, ids: &[u32], show_control: bool) -> String {
        let mut all = String::new();
        self.decode_to(ids, show_control, &mut |text| {
            all.push_str(text);
            true
        });
        all
    }

    fn decode_to(&self, ids: &[u32], show_control: bool, to: &mut dyn FnMut(&str) -> bool) {
        let (mut text, mut characters) = (String::new(), Utf8Assembler::default());
        for some in ids.chunks(256) {
            for &id in some {
                match self.pieces.get(id) {
                    Some(Piece::Text(bytes)) => characters.push(bytes, &mut text),
                    Some(Piece::Control(name)) if show_control => characters.push(name.as_bytes(), &mut text),
                    Some(Piece::Control(_)) | None => {}
                }
            }
            if !to(&text) {
                return;
            }
            text.clear();
        }
        characters.finish(&mut text);
        to(&text);
    }

    /// The bytes of one token (a control token's name); none for an id that does not exist. A token may be part of a character.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id).map(|piece| match piece {
            Piece::Text(bytes) => bytes.as_ref(),
            Piece::Control(name) => name.as_bytes(),
        })
    }

    /// Whether the tokenizer has a token for `id`; only such ids may be sampled.
    #[must_use]
    pub fn is_known(&self, id: u32) -> bool {
        self.pieces.get(id).is_some()
    }

    /// Whether `id` is a control token.
    #[must_use]
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.pieces.get(id), Some(Piece::Control(_)))
    }

    /// Every id that has a token, ascending; the model's vocabulary may be larger.
    pub fn known_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.pieces.known()
    }

    /// Ids that end an answer: `eos_token` of `tokenizer_config.json`. M1's config.json names none.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    pub(crate) fn control(&self) -> &ControlTokens {
        &self.control
    }

    pub(crate) fn pieces(&self) -> Arc<Pieces> {
        Arc::clone(&self.pieces)
    }
}

fn end_ids(dir: &Path, inner: &tokenizers::Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    let path = dir.join("tokenizer_config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
    let config: Value = serde_json::from_str(&text).map_err(|source| TokenizerError::Parse { path: path.clone(), source })?;
    let token = &config["eos_token"];
    // Written as the token's text or as an object with `content`.
    let name = token.as_str().or_else(|| token["content"].as_str());
    match name.and_then(|name| inner.token_to_id(name)) {
        Some(id) => Ok(vec![id]),
        None => Err(TokenizerError::EndToken { path, given: token.to_string() }),
    }
}
