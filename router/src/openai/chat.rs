//! `/v1/chat/completions`.

mod answer;

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use m1_text::{Calls, Conversation};
use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Generation, Reading};
use crate::metrics::Meter;
use crate::model::Model;
use crate::order::Order;
use crate::params::{Drawing, MOST_TOP_LOGPROBS, Streaming, stops};
use crate::sse::{Header, respond};

use super::unserved;
use answer::{Answer, whole};

/// A checked request.
struct Chat {
    conversation: Conversation,
    calls: Calls,
    drawing: Drawing,
    streaming: Streaming,
    stops: Vec<String>,
    logprobs: Option<u32>,
    max_tokens: Option<(&'static str, u32)>,
}

/// Answers a request.
///
/// # Errors
/// Whatever is wrong with the request, the queue or the worker before the answer begins.
pub async fn answer(app: Arc<App>, body: Value, id: String, mut meter: Meter) -> Result<Response, ApiError> {
    let prepared = app.blocking(move |app| prepare(app, &body, id)).await;
    let (order, chat) = prepared.inspect_err(|error| meter.failed(error))?;
    let header = Header { id: order.id.clone(), created: crate::now_seconds(), model: app.model.name.as_str().into() };
    let generation = Generation::start(&app, &order, Reading::Parsed(chat.calls), meter).await?;
    let answer = Answer { header, model: Arc::clone(&app.model), usage: chat.streaming.usage, logprobs: chat.logprobs.is_some() };
    if chat.streaming.on {
        return Ok(respond(generation, answer));
    }
    let (all, end) = generation.whole().await?;
    Ok(Json(whole(&answer, all, &end)).into_response())
}

fn prepare(app: &App, body: &Value, id: String) -> Result<(Order, Chat), ApiError> {
    let chat = read(&app.model, &Fields::of_body(body)?)?;
    let prompt = render(&app.model, &chat.conversation)?;
    let max_tokens = app.limits().room("messages", prompt.len(), chat.max_tokens)?;
    let order = Order {
        id,
        prompt,
        max_tokens,
        temperature: chat.drawing.temperature,
        top_p: chat.drawing.top_p,
        seed: chat.drawing.seed.unwrap_or_else(|| app.pool.random()),
        stops: chat.stops.clone(),
        logprobs: chat.logprobs,
        expert_threshold: 1.0,
        thinking_budget: None,
    };
    Ok((order, chat))
}

/// Ids of a conversation.
///
/// # Errors
/// The template refuses it.
pub fn render(model: &Model, conversation: &Conversation) -> Result<Vec<u32>, ApiError> {
    let prompt = model
        .template
        .render_conversation(conversation)
        .map_err(|error| ApiError::Invalid { param: error.field().to_owned(), message: error.to_string() })?;
    model.tokenizer.encode_prompt(&prompt).map_err(|error| ApiError::Internal(error.to_string()))
}

/// `messages` and `tools`, checked.
///
/// # Errors
/// The field that is wrong.
pub fn conversation(messages: &Value, tools: Option<&Value>) -> Result<Conversation, ApiError> {
    Conversation::read(messages, tools)
        .map_err(|error| ApiError::Invalid { param: error.field().to_owned(), message: error.to_string() })
}

fn read(model: &Model, fields: &Fields<'_>) -> Result<Chat, ApiError> {
    model.check_name(fields.needed_text("model")?)?;
    unserved::of_chat(fields)?;
    let messages = fields.get("messages").ok_or_else(|| ApiError::missing("messages", "an array of at least one message"))?;
    let conversation = conversation(messages, fields.get("tools"))?;
    let offered = conversation.has_tools();
    let (conversation, calls) = match (offered, wants_tools(fields, offered)?) {
        (true, true) => (conversation, Calls::Parse),
        (true, false) => (conversation.without_tools(), Calls::Keep),
        (false, _) => (conversation, Calls::Keep),
    };
    let most = fields.integer("max_tokens", 1..=u32::MAX)?.map(|most| ("max_tokens", most));
    let newer = fields.integer("max_completion_tokens", 1..=u32::MAX)?.map(|most| ("max_completion_tokens", most));
    Ok(Chat {
        conversation,
        calls,
        drawing: Drawing::read(fields)?,
        streaming: Streaming::read(fields)?,
        stops: stops(fields)?,
        logprobs: logprobs(fields)?,
        max_tokens: newer.or(most),
    })
}

/// Whether the model may call tools: `tool_choice`, by default auto.
fn wants_tools(fields: &Fields<'_>, offered: bool) -> Result<bool, ApiError> {
    if offered {
        fields.refuse("parallel_tool_calls", "true", |value| value == &Value::Bool(true))?;
    }
    match fields.get("tool_choice") {
        None => Ok(true),
        Some(Value::String(choice)) if choice == "none" => Ok(false),
        Some(Value::String(choice)) if choice == "auto" => Ok(true),
        Some(other) => {
            let known = other == &json!("required") || other.is_object();
            let error = if known {
                ApiError::unsupported("tool_choice", other, ALLOWED)
            } else {
                ApiError::invalid("tool_choice", other, ALLOWED)
            };
            Err(error)
        }
    }
}

const ALLOWED: &str = "\"none\" or \"auto\"";

fn logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let on = fields.flag("logprobs")?.unwrap_or(false);
    match fields.integer("top_logprobs", 0..=MOST_TOP_LOGPROBS)? {
        Some(top) if !on && top > 0 => Err(ApiError::invalid("top_logprobs", &Value::from(top), "nothing unless logprobs is true")),
        top => Ok(on.then_some(top.unwrap_or(0))),
    }
}
