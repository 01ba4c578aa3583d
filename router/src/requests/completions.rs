//! `/v1/completions`, as it is asked: raw text or ids.

use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::order::Order;

use super::body::{Fields, open, text};
use super::echo::invalid;
use super::ids::{self, Ids, element};
use super::params::{Drawing, Streaming, flexible, stops};
use super::text::encode;
use super::{Context, unserved};

const KNOWN: &[&str] = &[
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stream",
    "service_tier",
    "stream_options",
    "stop",
    "logprobs",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "best_of",
    "echo",
    "suffix",
];
/// OpenAI's bound on `logprobs` here.
const MOST_LOGPROBS: u32 = 5;

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// What to generate.
    pub order: Order,
    /// How the answer goes.
    pub streaming: Streaming,
}

/// Reads a request.
///
/// # Errors
/// The field that is wrong; a prompt that does not fit; nobody waits any more.
pub fn read(ctx: &Context<'_>, body: &[u8], id: String) -> Result<Completion, ApiError> {
    let fields = open(body, KNOWN)?;
    ctx.check()?;
    ctx.model.check_name(&fields.needed_text("model")?)?;
    unserved::of_completions(&fields)?;
    let asked = fields.integer("max_tokens", 1..=u32::MAX)?.map(|most| ("max_tokens", most));
    let (drawing, batch) = (Drawing::read(&fields)?, flexible(&fields)?);
    let (streaming, stops) = (Streaming::read(&fields)?, stops(&fields)?);
    let logprobs = fields.integer("logprobs", 0..=MOST_LOGPROBS)?;
    let prompt = read_prompt(ctx, &fields)?;
    let max_tokens = ctx.limits.room("prompt", prompt.count, asked)?;
    let order = Order { stops, logprobs, batch, ..Order::new(id, prompt.kept, max_tokens, drawing, ctx.random) };
    Ok(Completion { order, streaming })
}

/// A text, ids, or a list of one of them.
fn read_prompt(ctx: &Context<'_>, fields: &Fields<'_>) -> Result<Ids, ApiError> {
    const ALLOWED: &str = "a string, a list of token ids, or a list of one of these";
    let given = fields.get("prompt").ok_or_else(|| ApiError::missing("prompt", ALLOWED))?;
    let is_list = |value: &RawValue| value.get().starts_with('[');
    let is_text = |value: &RawValue| value.get().starts_with('"');
    if is_text(given) {
        return of_text(ctx, "prompt", given);
    }
    if !is_list(given) {
        return Err(invalid("prompt", given, ALLOWED));
    }
    let window = ctx.limits.window as usize;
    match element(given, 0) {
        Some(first) if is_text(first) || is_list(first) => {
            if element(given, 1).is_some() {
                return Err(fields.unsupported("prompt", given, "one prompt"));
            }
            if is_text(first) { of_text(ctx, "prompt[0]", first) } else { ids::read(ctx, "prompt[0]", first, window) }
        }
        _ => ids::read(ctx, "prompt", given, window),
    }
}

fn of_text(ctx: &Context<'_>, path: &str, given: &RawValue) -> Result<Ids, ApiError> {
    let text = text(path, given)?.unwrap_or_default();
    let kept = encode(ctx, "prompt", &text)?;
    Ok(Ids { count: kept.len(), kept })
}
