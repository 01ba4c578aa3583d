//! What the model writes, told apart while it arrives: reasoning, content, tool calls.
//!
//! `<think>`, `</think>`, `<tool_calls>` and `</tool_calls>` are ordinary text of several tokens, so they are found in the text, and an
//! end that could become a tag waits. Rules:
//! - An answer that begins with `<think>` (after white space) is reasoning up to `</think>`; anything inside, tags too, is reasoning.
//! - White space around the reasoning and the newlines after `</think>` belong to neither part.
//! - A `<tool_calls>` block holds JSON objects, one a line: `{"name": .., "arguments": {..}}`. White space before it is dropped. Its
//!   end may be missing. Surplus closing braces are skipped. What is no call is given out as content: nothing written is lost.
//!
//! Invariant: the deltas, joined by kind and place, do not depend on how the text was cut. What waits is looked at once: an answer of white space alone,
//! or of a block that never ends, costs what its length costs.

mod calls;

use crate::hold::partial_end;
use crate::tokenizer::Tokenizer;
use calls::{CallReader, Found};

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALLS: &str = "<tool_calls>";
const CALLS_END: &str = "</tool_calls>";
const NEWLINES: [char; 2] = ['\n', '\r'];

/// Whether tool calls are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// A `<tool_calls>` block becomes tool calls: for requests that offered tools.
    Parse,
    /// It stays content: for requests without tools, or with `tool_choice: none`.
    Keep,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Text inside `<think>`.
    Reasoning(String),
    /// Text for the reader.
    Content(String),
    /// One whole call.
    ToolCall {
        /// Its place among the answer's calls, from 0.
        index: u32,
        /// The function.
        name: String,
        /// Its arguments: a JSON object, as the model wrote it.
        arguments: String,
    },
}

/// Where in the answer the parser stands; what the next token will most likely be counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but white space, or the start of `<think>`, so far.
    Start,
    /// Inside `<think>`.
    Reasoning,
    /// Outside any block.
    Content,
    /// Inside `<tool_calls>`.
    ToolCalls,
}

/// What a prompt says inside of reasoning that it opens and does not close. What counts is the model's own turn, which is what follows the last control
/// token; a prompt without one is all the model's. A tag that a user wrote in a turn of theirs opens nothing.
#[must_use]
pub fn opened_reasoning(tokenizer: &Tokenizer, prompt: &[u32]) -> Option<String> {
    let turn = prompt.iter().rposition(|id| tokenizer.is_control(*id)).map_or(0, |control| control + 1);
    let text = tokenizer.decode(prompt.get(turn..).unwrap_or_default());
    let (_, opened) = text.rsplit_once(THINK)?;
    (!opened.contains(THINK_END)).then(|| opened.to_owned())
}

/// The streaming parser of one answer.
#[derive(Debug)]
pub struct OutputParser {
    calls: Calls,
    phase: Phase,
    /// The next text opens its part: leading newlines (in reasoning all white space) are dropped.
    opens: bool,
    held: String,
    /// Bytes at the front of what is held that are white space: they wait for what follows, and no tag begins in them.
    blank: usize,
    reader: CallReader,
    next_index: u32,
}

impl OutputParser {
    /// A parser at the start of an answer.
    #[must_use]
    pub fn new(calls: Calls) -> Self {
        Self {
            calls,
            phase: Phase::Start,
            opens: false,
            held: String::new(),
            blank: 0,
            reader: CallReader::default(),
            next_index: 0,
        }
    }

    /// A parser of an answer whose reasoning the prompt has opened, with what [`opened_reasoning`] gives.
    #[must_use]
    pub fn within(calls: Calls, opened: &str) -> Self {
        let held = opened.get(opened.len() - partial_end(opened, THINK_END)..).unwrap_or_default().to_owned();
        Self { phase: Phase::Reasoning, opens: opened.trim().is_empty(), held, ..Self::new(calls) }
    }

    /// Where the parser stands after the text so far.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many tool calls were given out.
    #[must_use]
    pub fn tool_calls(&self) -> u32 {
        self.next_index
    }

    /// Takes the next text; gives what is now certain, in order, neighbours of one kind joined.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// Ends the answer: what was held back.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.held);
        self.blank = 0;
        match self.phase {
            Phase::Start | Phase::Content => content(&rest, &mut out),
            Phase::Reasoning => reasoning(rest.trim_end(), &mut out),
            // The start of the block's end, and braces too many, say nothing.
            Phase::ToolCalls if CALLS_END.starts_with(calls::skip(&rest)) => {}
            Phase::ToolCalls => content(&rest, &mut out),
        }
        out
    }

    /// One move; false when more text is needed.
    fn step(&mut self, out: &mut Vec<Delta>) -> bool {
        match self.phase {
            Phase::Start => self.start(),
            Phase::Reasoning => self.reason(out),
            Phase::Content => self.speak(out),
            Phase::ToolCalls => self.call(out),
        }
    }

    fn start(&mut self) -> bool {
        let text = self.behind_blank().trim_start();
        self.blank = self.held.len() - text.len();
        let text = self.behind_blank();
        if text.starts_with(THINK) {
            self.take(self.blank + THINK.len());
            self.enter(Phase::Reasoning);
            return true;
        }
        if THINK.starts_with(text) {
            return false;
        }
        self.phase = Phase::Content;
        true
    }

    fn reason(&mut self, out: &mut Vec<Delta>) -> bool {
        if self.opens {
            self.drop_start(char::is_whitespace);
        }
        if let Some(at) = self.find(THINK_END) {
            let text = self.take(at + THINK_END.len());
            reasoning(text[..at].trim_end(), out);
            self.enter(Phase::Content);
            return true;
        }
        reasoning(&self.certain(THINK_END), out);
        false
    }

    fn speak(&mut self, out: &mut Vec<Delta>) -> bool {
        if self.opens {
            self.drop_start(|c| NEWLINES.contains(&c));
        }
        if self.calls == Calls::Keep {
            let text = self.take(self.held.len());
            content(&text, out);
            return false;
        }
        if let Some(at) = self.find(CALLS) {
            let text = self.take(at + CALLS.len());
            content(text[..at].trim_end(), out);
            self.enter(Phase::ToolCalls);
            return true;
        }
        content(&self.certain(CALLS), out);
        false
    }

    fn call(&mut self, out: &mut Vec<Delta>) -> bool {
        let (used, found) = match self.reader.next(&self.held) {
            Some(next) => next,
            None => return false,
        };
        let text = self.take(used);
        match found {
            Found::Call { name, arguments } => {
                out.push(Delta::ToolCall { index: self.next_index, name, arguments });
                self.next_index += 1;
            }
            Found::Other => content(&text, out),
            Found::End => self.enter(Phase::Content),
        }
        true
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.opens = true;
        self.reader = CallReader::default();
    }

    fn drop_start(&mut self, unwanted: impl Fn(char) -> bool) {
        let kept = self.held.trim_start_matches(unwanted).len();
        self.take(self.held.len() - kept);
        self.opens = self.held.is_empty();
    }

    /// What is held behind its white space.
    fn behind_blank(&self) -> &str {
        &self.held[self.blank..]
    }

    /// Where a tag begins.
    fn find(&self, tag: &str) -> Option<usize> {
        self.behind_blank().find(tag).map(|at| self.blank + at)
    }

    /// Takes bytes off the front.
    fn take(&mut self, bytes: usize) -> String {
        self.blank = self.blank.saturating_sub(bytes);
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }

    /// Takes what neither belongs to a tag that may follow nor is white space in front of one.
    fn certain(&mut self, tag: &str) -> String {
        let text = self.behind_blank();
        let certain = &text[..text.len() - partial_end(text, tag)];
        let (whole, said) = (certain.len(), certain.trim_end().len());
        if said == 0 {
            self.blank += whole;
            return String::new();
        }
        let text = self.take(self.blank + said);
        self.blank = whole - said;
        text
    }
}

fn content(text: &str, out: &mut Vec<Delta>) {
    if text.is_empty() {
        return;
    }
    match out.last_mut() {
        Some(Delta::Content(last)) => last.push_str(text),
        _ => out.push(Delta::Content(text.to_owned())),
    }
}

fn reasoning(text: &str, out: &mut Vec<Delta>) {
    if text.is_empty() {
        return;
    }
    match out.last_mut() {
        Some(Delta::Reasoning(last)) => last.push_str(text),
        _ => out.push(Delta::Reasoning(text.to_owned())),
    }
}

#[cfg(test)]
mod tests;
