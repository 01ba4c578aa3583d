//! `/v1/chat/completions`, as it is asked.

use m1_text::Calls;
use serde_json::Value;

use crate::error::ApiError;
use crate::generation::Reading;
use crate::order::Order;

use super::body::{Fields, open, text};
use super::echo::{invalid, wrong};
use super::params::{Drawing, MOST_TOP_LOGPROBS, Streaming, flexible, stops};
use super::text::{conversation, render};
use super::{Context, unserved};

const KNOWN: &[&str] = &[
    "model",
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stream",
    "service_tier",
    "stream_options",
    "stop",
    "logprobs",
    "top_logprobs",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "response_format",
    "audio",
    "modalities",
    "functions",
    "function_call",
    "prediction",
    "web_search_options",
    "reasoning_effort",
    "verbosity",
    "store",
];

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// What to generate; whether log-probabilities belong into the answer is in it.
    pub order: Order,
    /// How the answer goes.
    pub streaming: Streaming,
    /// How its text is read.
    pub reading: Reading,
}

/// Reads a request.
///
/// # Errors
/// The field that is wrong; a prompt that does not fit; nobody waits any more.
pub fn read(ctx: &Context<'_>, body: &[u8], id: String) -> Result<Chat, ApiError> {
    let fields = open(body, KNOWN)?;
    ctx.check()?;
    ctx.model.check_name(&fields.needed_text("model")?)?;
    unserved::of_chat(&fields)?;
    let messages = fields.get("messages").ok_or_else(|| ApiError::missing("messages", "an array of at least one message"))?;
    let conversation = conversation(ctx, "messages", messages, fields.get("tools"))?;
    let offered = conversation.has_tools();
    let (conversation, calls) = match (offered, wants_tools(&fields, offered)?) {
        (true, true) => (conversation, Calls::Parse),
        (true, false) => (conversation.without_tools(), Calls::Keep),
        (false, _) => (conversation, Calls::Keep),
    };
    let most = fields.integer("max_tokens", 1..=u32::MAX)?.map(|most| ("max_tokens", most));
    let newer = fields.integer("max_completion_tokens", 1..=u32::MAX)?.map(|most| ("max_completion_tokens", most));
    let asked = newer.or(most);
    let (drawing, batch) = (Drawing::read(&fields)?, flexible(&fields)?);
    let (streaming, stops, logprobs) = (Streaming::read(&fields)?, stops(&fields)?, logprobs(&fields)?);
    ctx.limits.check_output(asked)?;
    let prompt = render(ctx, "messages", conversation, ctx.limits.window)?;
    let max_tokens = ctx.limits.room("messages", prompt.len(), asked)?;
    let reading = Reading::parsed(ctx.model, calls, &prompt);
    let order = Order { stops, logprobs, batch, ..Order::new(id, prompt, max_tokens, drawing, ctx.random) };
    Ok(Chat { order, streaming, reading })
}

/// Whether the model may call tools: `tool_choice`, by default auto.
fn wants_tools(fields: &Fields<'_>, offered: bool) -> Result<bool, ApiError> {
    const ALLOWED: &str = "\"none\" or \"auto\"";
    if offered {
        fields.refuse("parallel_tool_calls", "true", |value| value == &Value::Bool(true))?;
    }
    let Some(choice) = fields.get("tool_choice") else { return Ok(true) };
    match text("tool_choice", choice)?.as_deref() {
        Some("none") => Ok(false),
        Some("auto") => Ok(true),
        Some("required") => Err(fields.unsupported("tool_choice", choice, ALLOWED)),
        None if choice.get().starts_with('{') => Err(fields.unsupported("tool_choice", choice, ALLOWED)),
        _ => Err(invalid("tool_choice", choice, ALLOWED)),
    }
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let on = fields.flag("logprobs")?.unwrap_or(false);
    match fields.integer("top_logprobs", 0..=MOST_TOP_LOGPROBS)? {
        Some(top) if !on && top > 0 => Err(wrong("top_logprobs", &Value::from(top), "nothing unless logprobs is true")),
        top => Ok(on.then_some(top.unwrap_or(0))),
    }
}
