//! OpenAI's API: its endpoints, and what their answers share.

pub mod chat;
pub mod completions;
pub mod models;
mod unserved;

use serde_json::{Value, json};

use crate::generation::{End, Mark};
use crate::model::Model;

/// `usage` as OpenAI writes it.
fn usage(end: &End) -> Value {
    json!({
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.output_tokens,
        "total_tokens": u64::from(end.prompt_tokens) + u64::from(end.output_tokens),
        "completion_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
    })
}

/// A token's text; half a character gives U+FFFD.
fn token_text(model: &Model, id: u32) -> String {
    String::from_utf8_lossy(model.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

/// `logprobs.content` of a chat answer.
fn chat_logprobs(model: &Model, marks: &[Mark]) -> Value {
    let token = |id: u32, logprob: f32| json!({"token": token_text(model, id), "logprob": logprob, "bytes": model.tokenizer.token_bytes(id)});
    let content = marks.iter().map(|mark| {
        let mut entry = token(mark.id, mark.logprob);
        entry["top_logprobs"] = mark.top.iter().map(|(id, logprob)| token(*id, *logprob)).collect();
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a completion.
fn text_logprobs(model: &Model, marks: &[Mark]) -> Value {
    let top = marks.iter().map(|mark| {
        let named = mark.top.iter().map(|(id, logprob)| (token_text(model, *id), Value::from(*logprob)));
        Value::Object(named.collect())
    });
    json!({
        "tokens": marks.iter().map(|mark| token_text(model, mark.id)).collect::<Vec<_>>(),
        "token_logprobs": marks.iter().map(|mark| mark.logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": marks.iter().map(|mark| mark.offset).collect::<Vec<_>>(),
    })
}
