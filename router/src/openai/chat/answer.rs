//! Chat answers: `chat.completion` and `chat.completion.chunk`.

use std::sync::Arc;

use m1_text::Delta;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::generation::{End, Piece, Whole};
use crate::model::Model;
use crate::openai::{chat_logprobs, usage};
use crate::sse::{Dialect, Frames, Header};

/// What every part of an answer needs.
pub struct Answer {
    pub header: Header,
    pub model: Arc<Model>,
    /// A last chunk with usage is wanted.
    pub usage: bool,
    /// Log-probabilities are wanted.
    pub logprobs: bool,
}

impl Answer {
    fn call_id(&self, index: u32) -> String {
        let hex = self.header.id.strip_prefix("chatcmpl-").unwrap_or(&self.header.id);
        format!("call_{hex}_{index}")
    }

    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let header = &self.header;
        let mut chunk = json!({"id": header.id, "object": "chat.completion.chunk", "created": header.created, "model": &*header.model, "choices": choices});
        if self.usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn choice(&self, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        self.chunk(json!([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]), Value::Null)
    }

    fn delta(&self, delta: Delta) -> Value {
        match delta {
            Delta::Reasoning(text) => json!({"reasoning_content": text}),
            Delta::Content(text) => json!({"content": text}),
            Delta::ToolCall { index, name, arguments } => json!({"tool_calls": [
                {"index": index, "id": self.call_id(index), "type": "function", "function": {"name": name, "arguments": arguments}}
            ]}),
        }
    }
}

impl Dialect for Answer {
    fn open(&mut self, out: &mut Frames) {
        out.data(&self.choice(json!({"role": "assistant", "content": ""}), Value::Null, None));
    }

    fn piece(&mut self, piece: Piece, out: &mut Frames) {
        // The tokens of a piece go with its first chunk; a chunk of their own where their text is still held back.
        let mut logprobs =
            if self.logprobs && !piece.marks.is_empty() { chat_logprobs(&self.model, &piece.marks) } else { Value::Null };
        if piece.deltas.is_empty() {
            out.data(&self.choice(json!({}), logprobs, None));
            return;
        }
        for delta in piece.deltas {
            out.data(&self.choice(self.delta(delta), logprobs.take(), None));
        }
    }

    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError> {
        out.data(&self.choice(json!({}), Value::Null, Some(end.finish.as_str())));
        if self.usage {
            out.data(&self.chunk(json!([]), usage(&end)));
        }
        out.done();
        Ok(())
    }
}

/// The answer in one.
pub fn whole(answer: &Answer, all: Whole, end: &End) -> Value {
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
    let logprobs = if answer.logprobs { chat_logprobs(&answer.model, &all.marks) } else { Value::Null };
    json!({
        "id": answer.header.id,
        "object": "chat.completion",
        "created": answer.header.created,
        "model": &*answer.header.model,
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": end.finish.as_str()}],
        "usage": usage(end),
    })
}
