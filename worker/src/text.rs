//! Rules of a sequence that need its text: stop strings, and whether the reasoning is still open (for the thinking
//! budget). The ids are turned to text exactly as the router does it, by the same `m1-text` code.

use std::path::Path;
use std::sync::Arc;

use m1_text::{StopError, StopStrings, TextStream, Tokenizer};

/// How the text of a reasoning model opens and closes its reasoning. Plain text in MiniMax-M1, several tokens each.
const THINK: (&str, &str) = ("<think>", "</think>");

/// Opens the model's tokenizer. A folder without one can still run sequences of ids; a broken one is said and left out.
pub fn open_tokenizer(model: &Path) -> Option<Arc<Tokenizer>> {
    if !model.join("tokenizer.json").exists() {
        tracing::info!("the model's folder has no tokenizer.json: ids only, no id is kept from being sampled");
        return None;
    }
    match Tokenizer::open(model) {
        Ok(tokenizer) => Some(Arc::new(tokenizer)),
        Err(error) => {
            tracing::error!(reason = error.reason(), error = %error, "the tokenizer cannot be used");
            None
        }
    }
}

/// Watches the text of one sequence.
pub struct TextRules {
    stream: TextStream,
    reasoning: Reasoning,
}

impl std::fmt::Debug for TextRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextRules").field("reasoning", &self.reasoning).finish_non_exhaustive()
    }
}

/// Where the text stands. Text is kept only until that is known.
#[derive(Debug)]
enum Reasoning {
    /// Not yet enough text to say.
    Start(String),
    /// Inside; the tail that could be the beginning of the closing tag.
    Open(String),
    /// Closed, or never opened.
    Closed,
}

/// What one more token changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// The stop string that is now complete.
    pub stop: Option<String>,
    /// Whether the text is inside the reasoning, behind the whole opening tag and not within what may be the closing one: where
    /// the closing tag can be put.
    pub reasoning_open: bool,
}

impl TextRules {
    /// Rules with these stop strings, which may be none.
    pub fn new(tokenizer: &Tokenizer, stop_strings: &[String]) -> Result<Self, StopError> {
        let stops = StopStrings::new(stop_strings.to_vec())?;
        Ok(Self { stream: TextStream::new(tokenizer, stops), reasoning: Reasoning::Start(String::new()) })
    }

    /// Takes the next token of the output.
    pub fn push(&mut self, id: u32) -> Seen {
        let text = self.stream.push(id);
        self.reasoning.push(&text);
        Seen { stop: self.stream.stopped().map(str::to_owned), reasoning_open: self.reasoning.is_open() }
    }
}

impl Reasoning {
    fn is_open(&self) -> bool {
        let within_tag = |tail: &str| (1..THINK.1.len()).any(|length| tail.ends_with(&THINK.1[..length]));
        matches!(self, Self::Open(tail) if !within_tag(tail))
    }

    fn push(&mut self, text: &str) {
        match self {
            Self::Start(seen) => {
                seen.push_str(text);
                let start = seen.trim_start();
                if let Some(rest) = start.strip_prefix(THINK.0) {
                    let rest = rest.to_owned();
                    *self = Self::Open(String::new());
                    self.push(&rest);
                } else if !THINK.0.starts_with(start) {
                    *self = Self::Closed;
                }
            }
            Self::Open(tail) => {
                tail.push_str(text);
                if tail.contains(THINK.1) {
                    *self = Self::Closed;
                } else {
                    let keep = tail.char_indices().rev().nth(THINK.1.len()).map_or(0, |(at, _)| at);
                    tail.drain(..keep);
                }
            }
            Self::Closed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_after(pieces: &[&str]) -> bool {
        let mut state = Reasoning::Start(String::new());
        pieces.iter().for_each(|p| state.push(p));
        state.is_open()
    }

    #[test]
    fn reasoning_opens_at_the_start_only_and_closes_across_pieces() {
        assert!(open_after(&["<th", "ink>\nI"]));
        assert!(open_after(&["\n<think>", "a</thin", "g"]));
        assert!(!open_after(&["<think>", "a</thin", "k>"]));
        assert!(!open_after(&["Hello <think>"]));
        assert!(!open_after(&["<think>é</think>x"]));
    }

    #[test]
    fn within_a_tag_it_is_not_open() {
        assert!(!open_after(&[]));
        assert!(!open_after(&["\n"]));
        assert!(!open_after(&["<thin"]));
        assert!(open_after(&["<think>"]));
        assert!(!open_after(&["<think>", "a</thin"]));
    }
}
