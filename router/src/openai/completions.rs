//! `/v1/completions`: raw text in, raw text out.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use m1_text::Delta;
use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;
use crate::fields::{Fields, ids};
use crate::generation::{End, Generation, Piece, Reading};
use crate::metrics::Meter;
use crate::model::Model;
use crate::order::Order;
use crate::params::{Drawing, Streaming, stops};
use crate::sse::{Dialect, Frames, Header, respond};

use super::{text_logprobs, unserved, usage};

/// OpenAI's bound on `logprobs` here.
const MOST_LOGPROBS: u32 = 5;

/// Answers a request.
///
/// # Errors
/// Whatever is wrong with the request, the queue or the worker before the answer begins.
pub async fn answer(app: Arc<App>, body: Value, id: String, mut meter: Meter) -> Result<Response, ApiError> {
    let prepared = app.blocking(move |app| prepare(app, &body, id)).await;
    let (order, streaming) = prepared.inspect_err(|error| meter.failed(error))?;
    let header = Header { id: order.id.clone(), created: crate::now_seconds(), model: app.model.name.as_str().into() };
    let generation = Generation::start(&app, &order, Reading::Raw, meter).await?;
    let answer = Answer { header, model: Arc::clone(&app.model), usage: streaming.usage, logprobs: order.logprobs.is_some() };
    if streaming.on {
        return Ok(respond(generation, answer));
    }
    let (all, end) = generation.whole().await?;
    let logprobs = if answer.logprobs { text_logprobs(&answer.model, &all.marks) } else { Value::Null };
    let mut body = answer.body(json!([choice(&all.content, logprobs, Some(end.finish.as_str()))]));
    body["usage"] = usage(&end);
    Ok(Json(body).into_response())
}

fn prepare(app: &App, body: &Value, id: String) -> Result<(Order, Streaming), ApiError> {
    let fields = Fields::of_body(body)?;
    app.model.check_name(fields.needed_text("model")?)?;
    unserved::of_completions(&fields)?;
    let asked = fields.integer("max_tokens", 1..=u32::MAX)?.map(|most| ("max_tokens", most));
    let drawing = Drawing::read(&fields)?;
    let (streaming, stops) = (Streaming::read(&fields)?, stops(&fields)?);
    let logprobs = fields.integer("logprobs", 0..=MOST_LOGPROBS)?;
    let prompt = read_prompt(&app.model, &fields)?;
    let max_tokens = app.limits().room("prompt", prompt.len(), asked)?;
    let order = Order {
        id,
        prompt,
        max_tokens,
        temperature: drawing.temperature,
        top_p: drawing.top_p,
        seed: drawing.seed.unwrap_or_else(|| app.pool.random()),
        stops,
        logprobs,
        expert_threshold: 1.0,
        thinking_budget: None,
    };
    Ok((order, streaming))
}

/// A text, ids, or a list of one of them.
fn read_prompt(model: &Model, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    const ALLOWED: &str = "a string, a list of token ids, or a list of one of these";
    let given = fields.get("prompt").ok_or_else(|| ApiError::missing("prompt", ALLOWED))?;
    match given {
        Value::String(text) => model.encode(text),
        Value::Array(items) => match items.as_slice() {
            [Value::String(text)] => model.encode(text),
            [Value::Array(inner)] => ids("prompt[0]", inner, model.vocab),
            [Value::String(_) | Value::Array(_), ..] => Err(ApiError::unsupported("prompt", given, "one prompt")),
            items => ids("prompt", items, model.vocab),
        },
        other => Err(ApiError::invalid("prompt", other, ALLOWED)),
    }
}

struct Answer {
    header: Header,
    model: Arc<Model>,
    usage: bool,
    logprobs: bool,
}

impl Answer {
    fn body(&self, choices: Value) -> Value {
        let header = &self.header;
        json!({"id": header.id, "object": "text_completion", "created": header.created, "model": &*header.model, "choices": choices})
    }

    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let mut chunk = self.body(choices);
        if self.usage {
            chunk["usage"] = usage;
        }
        chunk
    }
}

fn choice(text: &str, logprobs: Value, finish: Option<&str>) -> Value {
    json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish})
}

impl Dialect for Answer {
    fn piece(&mut self, piece: Piece, out: &mut Frames) {
        let texts = piece.deltas.iter().filter_map(|delta| match delta {
            Delta::Content(text) => Some(text.as_str()),
            Delta::Reasoning(_) | Delta::ToolCall { .. } => None,
        });
        let logprobs =
            if self.logprobs && !piece.marks.is_empty() { text_logprobs(&self.model, &piece.marks) } else { Value::Null };
        out.data(&self.chunk(json!([choice(&texts.collect::<String>(), logprobs, None)]), Value::Null));
    }

    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError> {
        out.data(&self.chunk(json!([choice("", Value::Null, Some(end.finish.as_str()))]), Value::Null));
        if self.usage {
            out.data(&self.chunk(json!([]), usage(&end)));
        }
        out.done();
        Ok(())
    }
}
