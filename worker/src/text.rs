//! Rules of a sequence that need its text: stop strings, and whether the reasoning is still open (for the thinking
//! budget). The ids are turned to text exactly as the router does it, by the same `m1-text` code.

use std::path::Path;
use std::sync::Arc;

use m1_text::{StopError, StopStrings, TextStream, Tokenizer, opened_reasoning};

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
    /// Rules with these stop strings, which may be none, for the answer to this prompt. The prompt's text counts for the
    /// reasoning only; a stop string is matched in the answer, of which earlier attempts may have said a part: `push` it.
    pub fn new(tokenizer: &Tokenizer, stop_strings: &[String], prompt: &[u32]) -> Result<Self, StopError> {
        let stops = StopStrings::new(stop_strings.to_vec())?;
        Ok(Self { stream: TextStream::new(tokenizer, stops), reasoning: Reasoning::after(tokenizer, prompt) })
    }

    /// Whether the text so far ends inside the reasoning.
    pub fn reasoning_open(&self) -> bool {
        self.reasoning.is_open()
    }

    /// Takes the next token of the output.
    pub fn push(&mut self, id: u32) -> Seen {
        let text = self.stream.push(id);
        self.reasoning.push(&text);
        Seen { stop: self.stream.stopped().map(str::to_owned), reasoning_open: self.reasoning.is_open() }
    }
}

impl Reasoning {
    fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        match opened_reasoning(tokenizer, prompt) {
            Some(opened) => {
                let mut open = Self::Open(String::new());
                open.push(&opened);
                open
            }
            None => Self::Start(String::new()),
        }
    }

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

    fn demo() -> Tokenizer {
        Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/m1-demo")).unwrap()
    }

    #[test]
    fn a_prompt_that_ends_inside_the_reasoning_has_opened_it() {
        let tokenizer = demo();
        let end = tokenizer.eos_ids()[0];
        let open = |parts: &[&str], then: &[&str]| {
            let parts: Vec<Vec<u32>> = parts.iter().map(|part| tokenizer.encode(part).unwrap()).collect();
            let mut rules = TextRules::new(&tokenizer, &[], &parts.join(&end)).unwrap();
            let mut open = rules.reasoning_open();
            then.iter().for_each(|text| {
                tokenizer.encode(text).unwrap().into_iter().for_each(|id| open = rules.push(id).reasoning_open);
            });
            open
        };
        assert!(open(&["<think>\n"], &[]));
        assert!(open(&["Why? <think>\nI"], &["think"]));
        assert!(open(&["a", "ai\n<think>"], &[]));
        assert!(!open(&["Why? <think>\nI"], &["see</th", "ink> now"]));
        assert!(!open(&["<think>a</think>"], &[]));
        assert!(open(&["<think>a</think>b<think>"], &[]), "the last one counts");
        assert!(!open(&["what does <think> mean?", "ai\n"], &[]), "a user's words");
        assert!(!open(&["<think>a</thi"], &[]), "within what may be the closing tag");
        assert!(!open(&["<think>a</thi"], &["nk>"]));
        assert!(open(&["ai\n"], &["<think>"]), "the answer opens it itself");
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
