//! Chat answers: `chat.completion` and `chat.completion.chunk`.

use std::sync::Arc;

use m1_text::Delta;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::generation::{End, Piece, Whole};
use crate::model::Model;
use crate::openai::chunks::{Chunks, Header};
use crate::openai::{Body, ChatLogprobs};
use crate::sse::{Dialect, Frames};

/// What every part of an answer needs.
pub struct Answer {
    header: Header,
    model: Arc<Model>,
    /// Log-probabilities are wanted.
    logprobs: bool,
    chunks: Chunks,
}

impl Answer {
    /// The answer `header` names.
    pub fn new(header: Header, model: Arc<Model>, usage: bool, logprobs: bool) -> Self {
        let chunks = Chunks::new(&header, "chat.completion.chunk", usage);
        Self { header, model, logprobs, chunks }
    }

    fn call_id(&self, index: u32) -> String {
        let hex = self.header.id.strip_prefix("chatcmpl-").unwrap_or(&self.header.id);
        format!("call_{hex}_{index}")
    }

    /// A chunk with one choice, whose delta `delta` writes.
    fn choice(&self, out: &mut Frames, delta: impl FnOnce(&mut Frames), logprobs: &Option<ChatLogprobs<'_>>, finish: Option<&str>) {
        let said = |out: &mut Frames| {
            out.text("\"delta\":");
            delta(out);
        };
        self.chunks.choice(out, said, logprobs, finish);
    }

    fn delta(&self, delta: &Delta, out: &mut Frames) {
        let mut field = |name: &str, text: &str| {
            out.text(name);
            out.json(text);
            out.text("}");
        };
        match delta {
            Delta::Reasoning(text) => field("{\"reasoning_content\":", text),
            Delta::Content(text) => field("{\"content\":", text),
            Delta::ToolCall { index, name, arguments } => out.json(&json!({"tool_calls": [
                {"index": index, "id": self.call_id(*index), "type": "function", "function": {"name": name, "arguments": arguments}}
            ]})),
        }
    }
}

impl Dialect for Answer {
    fn open(&mut self, out: &mut Frames) {
        self.choice(out, |out| out.text("{\"role\":\"assistant\",\"content\":\"\"}"), &None, None);
    }

    fn piece(&mut self, piece: Piece, out: &mut Frames) {
        // The tokens of a piece go with its first chunk; a chunk of their own where their text is still held back.
        let mut logprobs = (self.logprobs && !piece.marks.is_empty()).then(|| ChatLogprobs::of(&self.model, &piece.marks));
        if piece.deltas.is_empty() {
            self.choice(out, |out| out.text("{}"), &logprobs, None);
            return;
        }
        for delta in &piece.deltas {
            self.choice(out, |out| self.delta(delta, out), &logprobs.take(), None);
        }
    }

    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError> {
        self.choice(out, |out| out.text("{}"), &None, Some(end.finish.as_str()));
        self.chunks.end(&end, out);
        Ok(())
    }
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Value,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: &'static str,
}

/// The answer in one.
///
/// # Errors
/// It cannot be written.
pub fn whole(answer: &Answer, all: Whole, end: &End) -> Result<String, ApiError> {
    let calls: Vec<Value> = (0u32..)
        .zip(&all.calls)
        .map(|(index, (name, arguments))| json!({"id": answer.call_id(index), "type": "function", "function": {"name": name, "arguments": arguments}}))
        .collect();
    let text = |text: String, empty: Value| if text.is_empty() { empty } else { Value::String(text) };
    let none = if calls.is_empty() { json!("") } else { Value::Null };
    let mut message = json!({
        "role": "assistant",
        "content": text(all.content, none),
        "reasoning_content": text(all.reasoning, Value::Null),
    });
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    let logprobs = answer.logprobs.then(|| ChatLogprobs::of(&answer.model, &all.marks));
    let choice = Choice { index: 0, message, logprobs, finish_reason: end.finish.as_str() };
    Body::write(&answer.header, "chat.completion", choice, end)
}
