//! OpenAI's API: its endpoints, and what their answers share.

pub mod chat;
mod chunks;
pub mod completions;
pub mod models;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::generation::{End, Mark};
use crate::model::Model;
use chunks::Header;

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
fn token_text(model: &Model, id: u32) -> Cow<'_, str> {
    String::from_utf8_lossy(model.tokenizer.token_bytes(id).unwrap_or_default())
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

/// `logprobs` of a chat answer. Written as they are, one after the other: as values twenty alternatives of a token cost more than all else that is done for
/// it, and some thirty times the memory of their text.
#[derive(Serialize)]
struct ChatLogprobs<'a> {
    #[serde(serialize_with = "each")]
    content: Each<'a, Marked<'a>>,
    refusal: Option<&'a str>,
}

impl<'a> ChatLogprobs<'a> {
    fn of(model: &'a Model, marks: &'a [Mark]) -> Self {
        let marked = |model: &'a Model, mark: &'a Mark| {
            let named = |id: u32, logprob: f32| {
                let bytes = model.tokenizer.token_bytes(id);
                Named { token: String::from_utf8_lossy(bytes.unwrap_or_default()), logprob: logprob.into(), bytes }
            };
            let Named { token, logprob, bytes } = named(mark.id, mark.logprob);
            let top_logprobs = mark.top.iter().map(|(id, logprob)| named(*id, *logprob)).collect();
            Marked { token, logprob, bytes, top_logprobs }
        };
        Self { content: Each { model, marks, what: marked }, refusal: None }
    }
}

/// `logprobs` of a completion.
#[derive(Serialize)]
struct TextLogprobs<'a> {
    #[serde(serialize_with = "each")]
    tokens: Each<'a, Cow<'a, str>>,
    #[serde(serialize_with = "each")]
    token_logprobs: Each<'a, f64>,
    #[serde(serialize_with = "each")]
    top_logprobs: Each<'a, BTreeMap<Cow<'a, str>, f64>>,
    #[serde(serialize_with = "each")]
    text_offset: Each<'a, usize>,
}

impl<'a> TextLogprobs<'a> {
    fn of(model: &'a Model, marks: &'a [Mark]) -> Self {
        Self {
            tokens: Each { model, marks, what: |model, mark| token_text(model, mark.id) },
            token_logprobs: Each { model, marks, what: |_, mark| mark.logprob.into() },
            top_logprobs: Each {
                model,
                marks,
                what: |model, mark| mark.top.iter().map(|(id, logprob)| (token_text(model, *id), (*logprob).into())).collect(),
            },
            text_offset: Each { model, marks, what: |_, mark| mark.offset },
        }
    }
}

/// Something of each token.
struct Each<'a, T> {
    model: &'a Model,
    marks: &'a [Mark],
    what: fn(&'a Model, &'a Mark) -> T,
}

fn each<S: Serializer, T: Serialize>(each: &Each<'_, T>, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(each.marks.iter().map(|mark| (each.what)(each.model, mark)))
}

/// A whole answer, as both of OpenAI's generating endpoints write it; they differ in what a choice says.
#[derive(Serialize)]
struct Body<'a, C> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: [C; 1],
    usage: Value,
}

impl<C: Serialize> Body<'_, C> {
    fn write(header: &Header, object: &str, choice: C, end: &End) -> Result<String, ApiError> {
        let Header { id, created, model } = header;
        let body = Body { id, object, created: *created, model, choices: [choice], usage: usage(end) };
        serde_json::to_string(&body).map_err(|error| ApiError::Internal(error.to_string()))
    }
}
