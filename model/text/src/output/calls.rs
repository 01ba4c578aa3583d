//! The inside of a `<tool_calls>` block: objects, its end, and whatever else the model put there.
//!
//! An object ends at its balancing brace, whether it takes one line or several. A newline inside a string, or a `<` outside one,
//! breaks it; if it broke at the block's end only because closing braces lack, they are added.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CALLS_END, NEWLINES};
use crate::hold::partial_end;

/// What stands at the front of a block's text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A call.
    Call { name: String, arguments: String },
    /// Text that is no call.
    Other,
    /// The end of the block.
    End,
}

/// How far what is unfinished was read, so that long arguments, lines without an end and white space are read once.
#[derive(Debug, Default, Clone)]
pub(super) struct CallReader {
    /// Bytes in front that may stand between two calls.
    skipped: usize,
    /// Bytes read of what follows them.
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// Leaves out what may stand between two calls: white space, commas, surplus closing braces.
pub(super) fn skip(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | '}'))
}

impl CallReader {
    /// What `text` begins with, and how many bytes that takes; none while more text is needed. Until something was found, the next
    /// call must give the same text with more behind it.
    pub(super) fn next(&mut self, text: &str) -> Option<(usize, Found)> {
        let body = skip(text.get(self.skipped..).unwrap_or_default());
        let skipped = text.len() - body.len();
        self.skipped = skipped;
        if CALLS_END.starts_with(body) && body.len() < CALLS_END.len() {
            return None;
        }
        let (length, found) = if body.starts_with(CALLS_END) {
            (CALLS_END.len(), Found::End)
        } else if body.starts_with('{') {
            let (length, missing) = self.object(body)?;
            let written = &body[..length];
            let call = if missing == 0 { read(written) } else { read(&format!("{}{}", written.trim_end(), "}".repeat(missing))) };
            (length, call.unwrap_or(Found::Other))
        } else {
            (self.stray(body)?, Found::Other)
        };
        *self = Self::default();
        Some((skipped + length, found))
    }

    /// Length of the object at the front of `body`, and how many closing braces it lacks.
    fn object(&mut self, body: &str) -> Option<(usize, usize)> {
        for (at, byte) in body.bytes().enumerate().skip(self.at) {
            self.at = at + 1;
            match byte {
                b'\n' if self.in_string => return Some((at + 1, 0)),
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'}' if self.depth == 1 => return Some((at + 1, 0)),
                b'}' => self.depth -= 1,
                b'<' => return Some((at, self.depth)),
                _ => {}
            }
        }
        None
    }

    /// Length of text that begins no object: up to the end of its line or of the block.
    fn stray(&mut self, body: &str) -> Option<usize> {
        let from = self.at;
        let new = body.get(from..).unwrap_or_default();
        let line = new.find(NEWLINES).map(|at| from + at + 1);
        let end = new.find(CALLS_END).map(|at| from + at);
        // The end's own start may have come.
        self.at = body.len() - partial_end(new, CALLS_END);
        match (line, end) {
            (Some(line), Some(end)) => Some(line.min(end)),
            (line, end) => line.or(end),
        }
    }
}

#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

/// Reads a call; arguments that the model put into a string are taken out of it.
fn read(text: &str) -> Option<Found> {
    let written: Written<'_> = serde_json::from_str(text).ok()?;
    let arguments = written.arguments.map_or("{}", RawValue::get);
    let inner: Option<String> = serde_json::from_str(arguments).ok();
    let arguments = inner.unwrap_or_else(|| arguments.to_owned());
    let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&arguments).is_ok();
    is_object.then_some(Found::Call { name: written.name, arguments })
}
