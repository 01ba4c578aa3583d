//! Texts and conversations to ids, no further than the window goes.

use m1_text::json::cut;
use m1_text::{Bounds, Conversation, EncodeError, MessageError, Prompt, RenderError};
use serde_json::value::RawValue;

use crate::error::ApiError;

use super::Context;
use super::echo::QUOTED;

/// Ids of raw text.
///
/// # Errors
/// It cannot fit the window; nobody waits any more.
pub fn encode(ctx: &Context<'_>, param: &'static str, text: &str) -> Result<Vec<u32>, ApiError> {
    let window = Some(ctx.limits.window);
    ctx.model.tokenizer.encode_within(text, &bounds(ctx, window)).map_err(|error| of_encode(param, window, error))
}

/// `messages` and `tools`, checked.
///
/// # Errors
/// The field that is wrong; nobody waits any more.
pub fn conversation(
    ctx: &Context<'_>,
    param: &'static str,
    messages: &RawValue,
    tools: Option<&RawValue>,
) -> Result<Conversation, ApiError> {
    Conversation::parse(messages.get(), tools.map(RawValue::get), ctx.cancelled).map_err(|error| of_message(param, &error))
}

/// Ids of a conversation.
///
/// # Errors
/// The template refuses it; it cannot fit `window`; nobody waits any more.
pub fn render(ctx: &Context<'_>, param: &'static str, conversation: Conversation, window: u32) -> Result<Vec<u32>, ApiError> {
    let window = Some(window);
    let prompt = prompt(ctx, param, conversation, window)?;
    ctx.model.tokenizer.encode_prompt_within(&prompt, &bounds(ctx, window)).map_err(|error| of_encode(param, window, error))
}

/// Ids of raw text as they come, whatever the window.
///
/// # Errors
/// Nobody waits any more.
pub fn encode_to(ctx: &Context<'_>, param: &'static str, text: &str, to: &mut dyn FnMut(&[u32])) -> Result<(), ApiError> {
    ctx.model.tokenizer.encode_to(text, &bounds(ctx, None), to).map_err(|error| of_encode(param, None, error))
}

/// Ids of a conversation as they come, whatever the window.
///
/// # Errors
/// The template refuses it; nobody waits any more.
pub fn render_to(
    ctx: &Context<'_>,
    param: &'static str,
    conversation: Conversation,
    to: &mut dyn FnMut(&[u32]),
) -> Result<(), ApiError> {
    let prompt = prompt(ctx, param, conversation, None)?;
    ctx.model.tokenizer.encode_prompt_to(&prompt, &bounds(ctx, None), to).map_err(|error| of_encode(param, None, error))
}

fn prompt(ctx: &Context<'_>, param: &'static str, conversation: Conversation, window: Option<u32>) -> Result<Prompt, ApiError> {
    ctx.model.template.render_within(conversation, &bounds(ctx, window)).map_err(|error| match error {
        RenderError::Message(error) => of_message(param, &error),
        RenderError::Bounds(error) => of_encode(param, window, error),
        error => ApiError::Invalid { param: param.to_owned(), message: renamed(param, &error.to_string()) },
    })
}

fn bounds<'a>(ctx: &Context<'a>, window: Option<u32>) -> Bounds<'a> {
    Bounds { tokens: window.map_or(usize::MAX, |window| window as usize), cancelled: ctx.cancelled }
}

fn of_message(param: &'static str, error: &MessageError) -> ApiError {
    match error {
        MessageError::Cancelled => ApiError::Cancelled,
        MessageError::Malformed { .. } => {
            ApiError::Malformed(format!("the body is not JSON: {}", renamed(param, &error.to_string())))
        }
        _ => ApiError::Invalid { param: renamed(param, error.field()), message: renamed(param, &error.to_string()) },
    }
}

fn of_encode(param: &'static str, window: Option<u32>, error: EncodeError) -> ApiError {
    let window = window.map_or_else(String::new, |window| {
        let s = if window == 1 { "" } else { "s" };
        format!(", the window holds {window} token{s} of prompt and output together")
    });
    match error {
        EncodeError::Cancelled => ApiError::Cancelled,
        EncodeError::Bytes { bytes, tokens } => {
            let message = format!("{param}: the prompt has {bytes} bytes or more, at least {tokens} tokens{window}");
            ApiError::ContextLength { param, message }
        }
        EncodeError::Tokens { tokens } => {
            let message = format!("{param}: the prompt has more than {tokens} tokens{window}");
            ApiError::ContextLength { param, message }
        }
        EncodeError::Vocabulary { .. } => ApiError::Internal(cut(&error.to_string(), QUOTED)),
    }
}

/// The same words with the field as the endpoint calls it.
fn renamed(param: &str, words: &str) -> String {
    match words.strip_prefix("messages") {
        Some(rest) => format!("{param}{rest}"),
        None => words.to_owned(),
    }
}
