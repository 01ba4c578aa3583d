//! `/v1/minimax-m1/generate`: M1's own endpoint, with its routing log.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use m1_router_core::Counts;
use m1_text::{Calls, Delta};
use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;
use crate::fields::{Fields, ids};
use crate::generation::{End, Generation, Piece, Reading};
use crate::metrics::Meter;
use crate::openai::chat::{conversation, render};
use crate::order::{Limits, Order};
use crate::params::Drawing;
use crate::sse::{Dialect, Frames, respond};

/// Answers a request.
///
/// # Errors
/// Whatever is wrong with the request, the queue or the worker before the answer begins.
pub async fn answer(app: Arc<App>, body: Value, id: String, mut meter: Meter) -> Result<Response, ApiError> {
    let prepared = app.blocking(move |app| prepare(app, &body, id)).await;
    let (order, streamed) = prepared.inspect_err(|error| meter.failed(error))?;
    let generation = Generation::start(&app, &order, Reading::Parsed(Calls::Keep), meter).await?;
    let model = app.model.name.clone();
    if streamed {
        return Ok(respond(generation, Telling { id: order.id, model }));
    }
    let (all, end) = generation.whole().await?;
    let routing = routing(&end)?;
    let body = json!({
        "id": order.id,
        "model": model,
        "text": all.content,
        "reasoning": all.reasoning,
        "finish_reason": end.finish.as_str(),
        "usage": usage(&end),
        "routing": routing,
    });
    Ok(Json(body).into_response())
}

fn prepare(app: &App, body: &Value, id: String) -> Result<(Order, bool), ApiError> {
    let fields = Fields::of_body(body)?;
    if let Some(name) = fields.text("model")? {
        app.model.check_name(name)?;
    }
    let drawing = Drawing::read(&fields)?;
    let asked = fields.integer("max_output_tokens", 1..=u32::MAX)?;
    let limits = app.limits();
    limits.check_output(asked.map(|most| ("max_output_tokens", most)))?;
    // One that is no narrower than what is served does not bind.
    let bound = fields.integer("context_window", 2..=u32::MAX)?.filter(|bound| *bound < limits.window);
    let threshold = fields.number("expert_threshold", "a number above 0.5, at most 1", |t| t > 0.5 && t <= 1.0)?;
    let thinking_budget = fields.integer("thinking_budget", 0..=u32::MAX)?;
    let streamed = fields.flag("stream")?.unwrap_or(false);
    let prompt = read_input(app, &fields)?;
    // The caller's own window cuts the output; the model's is a limit on what may be asked.
    let max_tokens = match bound {
        None => limits.room("input", prompt.len(), asked.map(|most| ("max_output_tokens", most)))?,
        Some(window) => {
            let left = Limits { window, ..limits }.room("input", prompt.len(), None)?;
            asked.map_or(left, |asked| asked.min(left))
        }
    };
    let order = Order {
        id,
        prompt,
        max_tokens,
        temperature: drawing.temperature,
        top_p: drawing.top_p,
        seed: drawing.seed.unwrap_or_else(|| app.pool.random()),
        stops: Vec::new(),
        logprobs: None,
        expert_threshold: threshold.unwrap_or(1.0),
        thinking_budget,
    };
    Ok((order, streamed))
}

/// Text (one user turn), messages, or ids.
fn read_input(app: &App, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    const ALLOWED: &str = "a string, an array of messages, or {\"ids\": [..]}";
    match fields.get("input") {
        None => Err(ApiError::missing("input", ALLOWED)),
        Some(Value::String(text)) => render(&app.model, &conversation(&json!([{"role": "user", "content": text}]), None)?),
        Some(messages @ Value::Array(_)) => {
            let conversation = conversation(messages, None).map_err(|error| rename(error, "messages", "input"))?;
            render(&app.model, &conversation).map_err(|error| rename(error, "messages", "input"))
        }
        Some(object @ Value::Object(_)) => {
            let inner = Fields::of("input".to_owned(), object)?;
            let items = inner.array("ids")?.ok_or_else(|| ApiError::missing("input.ids", "an array of token ids"))?;
            ids("input.ids", items, app.model.vocab)
        }
        Some(other) => Err(ApiError::invalid("input", other, ALLOWED)),
    }
}

/// The same error with the field as this endpoint calls it.
fn rename(error: ApiError, from: &str, to: &str) -> ApiError {
    match error {
        ApiError::Invalid { param, message } if param.starts_with(from) => {
            ApiError::Invalid { param: param.replacen(from, to, 1), message: message.replacen(from, to, 1) }
        }
        other => other,
    }
}

fn usage(end: &End) -> Value {
    json!({
        "input_tokens": end.prompt_tokens,
        "output_tokens": end.output_tokens,
        "reasoning_tokens": end.reasoning_tokens,
        "total_tokens": u64::from(end.prompt_tokens) + u64::from(end.output_tokens),
    })
}

fn routing(end: &End) -> Result<Value, ApiError> {
    match &end.routing {
        Ok(counts) => Ok(log(counts)),
        Err(message) => Err(ApiError::Engine { reason: "RoutingCounts".to_owned(), message: message.clone() }),
    }
}

fn log(counts: &Counts) -> Value {
    let shape = counts.geometry;
    let layer = |layer: usize| {
        json!({
            "layer": layer,
            "tokens": counts.layer(&counts.expert_tokens, layer),
            "mean_weight": counts.mean_weight(layer),
            "skipped": counts.layer(&counts.expert_skipped, layer),
        })
    };
    json!({
        "tokens": counts.tokens,
        "layers": shape.layers,
        "experts": shape.experts,
        "top_k": shape.top_k,
        "executed": counts.executed,
        "skipped": counts.skipped,
        "lost": counts.lost,
        "by_layer": (0..shape.layers).map(layer).collect::<Vec<_>>(),
    })
}

struct Telling {
    id: String,
    model: String,
}

impl Dialect for Telling {
    fn piece(&mut self, piece: Piece, out: &mut Frames) {
        for delta in piece.deltas {
            match delta {
                Delta::Reasoning(text) => out.event("text", &json!({"reasoning": text})),
                Delta::Content(text) => out.event("text", &json!({"text": text})),
                // Calls are kept as text here.
                Delta::ToolCall { .. } => {}
            }
        }
    }

    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError> {
        let routing = routing(&end)?;
        out.event("usage", &usage(&end));
        out.event("routing", &routing);
        out.event("done", &json!({"id": self.id, "model": self.model, "finish_reason": end.finish.as_str()}));
        Ok(())
    }
}
