//! OpenAI's API: its endpoints, and what their answers share.

pub mod chat;
mod chunks;
pub mod completions;
pub mod models;

use std::borrow::Cow;

use serde::Serialize;
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

/// A token as `logprobs.content` of a chat answer names it.
#[derive(Serialize)]
struct Named<'a> {
    token: Cow<'a, str>,
    logprob: f64,
    bytes: Option<&'a [u8]>,
}

/// One token of a chat answer, and the most likely ones in its place.
#[derive(Serialize)]
struct Marked<'a> {
    token: Cow<'a, str>,
    logprob: f64,
    bytes: Option<&'a [u8]>,
    top_logprobs: Vec<Named<'a>>,
}

/// `logprobs` of a chat answer. Written as they are: as values twenty alternatives of a token cost more than all else that is done for it.
#[derive(Serialize)]
struct ChatLogprobs<'a> {
    content: Vec<Marked<'a>>,
    refusal: Option<&'a str>,
}

impl<'a> ChatLogprobs<'a> {
    fn of(model: &'a Model, marks: &[Mark]) -> Self {
        let named = |id: u32, logprob: f32| {
            let bytes = model.tokenizer.token_bytes(id);
            Named { token: String::from_utf8_lossy(bytes.unwrap_or_default()), logprob: logprob.into(), bytes }
        };
        let content = marks.iter().map(|mark| {
            let Named { token, logprob, bytes } = named(mark.id, mark.logprob);
            let top_logprobs = mark.top.iter().map(|(id, logprob)| named(*id, *logprob)).collect();
            Marked { token, logprob, bytes, top_logprobs }
        });
        Self { content: content.collect(), refusal: None }
    }
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
