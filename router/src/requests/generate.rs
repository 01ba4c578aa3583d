//! `/v1/minimax-m1/generate`, as it is asked: text, messages or ids.

use m1_text::{Calls, Conversation};

use crate::error::ApiError;
use crate::generation::Reading;
use crate::order::{Limits, Order};

use super::Context;
use super::body::{Fields, open, text};
use super::echo::invalid;
use super::ids::{self, Ids};
use super::params::{Drawing, batch};
use super::text::{conversation, render};

const KNOWN: &[&str] = &[
    "model",
    "input",
    "temperature",
    "top_p",
    "seed",
    "max_output_tokens",
    "context_window",
    "expert_threshold",
    "thinking_budget",
    "stream",
    "priority",
];

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// What to generate.
    pub order: Order,
    /// Whether the answer goes as server-sent events.
    pub streamed: bool,
    /// How its text is read.
    pub reading: Reading,
}

/// Reads a request.
///
/// # Errors
/// The field that is wrong; a prompt that does not fit; nobody waits any more.
pub fn read(ctx: &Context<'_>, body: &[u8], id: String) -> Result<Generate, ApiError> {
    let fields = open(body, KNOWN)?;
    ctx.check()?;
    if let Some(name) = fields.text("model")? {
        ctx.model.check_name(&name)?;
    }
    let (drawing, batch) = (Drawing::read(&fields)?, batch(&fields)?);
    let asked = fields.integer("max_output_tokens", 1..=u32::MAX)?;
    let limits = ctx.limits;
    limits.check_output(asked.map(|most| ("max_output_tokens", most)))?;
    // One that is no narrower than what is served does not bind.
    let bound = fields.integer("context_window", 2..=u32::MAX)?.filter(|bound| *bound < limits.window);
    let threshold = fields.number("expert_threshold", "a number above 0.5, at most 1", |t| t > 0.5 && t <= 1.0)?;
    let thinking_budget = fields.integer("thinking_budget", 0..=u32::MAX)?;
    let streamed = fields.flag("stream")?.unwrap_or(false);
    let prompt = read_input(ctx, &fields, bound.unwrap_or(limits.window))?;
    // The caller's own window cuts the output; the model's is a limit on what may be asked.
    let max_tokens = match bound {
        None => limits.room("input", prompt.count, asked.map(|most| ("max_output_tokens", most)))?,
        Some(window) => {
            let left = Limits { window, ..limits }.room("input", prompt.count, None)?;
            asked.map_or(left, |asked| asked.min(left))
        }
    };
    let reading = Reading::parsed(ctx.model, Calls::Keep, &prompt.kept);
    let order = Order {
        expert_threshold: threshold.unwrap_or(1.0),
        thinking_budget,
        want_routing: true,
        batch,
        ..Order::new(id, prompt.kept, max_tokens, drawing, ctx.random)
    };
    Ok(Generate { order, streamed, reading })
}

/// Text (one user turn), messages, or ids.
fn read_input(ctx: &Context<'_>, fields: &Fields<'_>, window: u32) -> Result<Ids, ApiError> {
    const ALLOWED: &str = "a string, an array of messages, or {\"ids\": [..]}";
    const ARRAY: &str = "an array of token ids";
    let given = fields.get("input").ok_or_else(|| ApiError::missing("input", ALLOWED))?;
    let conversation = match given.get().as_bytes().first() {
        Some(b'"') => Conversation::of_user(text("input", given)?.unwrap_or_default()),
        Some(b'[') => conversation(ctx, "input", given, None)?,
        Some(b'{') => {
            let inner = Fields::of("input".to_owned(), given, &["ids"])?;
            let ids = inner.get("ids").ok_or_else(|| ApiError::missing("input.ids", ARRAY))?;
            if !ids.get().starts_with('[') {
                return Err(invalid("input.ids", ids, "an array"));
            }
            return ids::read(ctx, "input.ids", ids, window as usize);
        }
        _ => return Err(invalid("input", given, ALLOWED)),
    };
    let kept = render(ctx, "input", conversation, window)?;
    Ok(Ids { count: kept.len(), kept })
}
