//! `/tokenize` and `/detokenize`: what the tokenizer makes of a text, a conversation, or ids. They need no worker.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;
use crate::fields::{Fields, ids};
use crate::openai::chat::{conversation, render};

/// `{"prompt": text}` or `{"messages": [..], "tools": [..]}` to `{"count", "max_model_len", "tokens"}`.
///
/// # Errors
/// Neither or both, or what is wrong with them.
pub fn encode(app: &App, body: &Value) -> Result<Response, ApiError> {
    const ALLOWED: &str = "a string, or messages in its place";
    let fields = Fields::of_body(body)?;
    check_model(app, &fields)?;
    let tokens = match (fields.text("prompt")?, fields.get("messages")) {
        (Some(text), None) => app.model.encode(text)?,
        (None, Some(messages)) => render(&app.model, &conversation(messages, fields.get("tools"))?)?,
        (Some(text), Some(_)) => return Err(ApiError::invalid("prompt", &Value::from(text), ALLOWED)),
        (None, None) => return Err(ApiError::missing("prompt", ALLOWED)),
    };
    Ok(Json(json!({"count": tokens.len(), "max_model_len": app.window(), "tokens": tokens})).into_response())
}

/// `{"tokens": [..]}` to `{"prompt": text}`, control tokens by name.
///
/// # Errors
/// What is wrong with the ids.
pub fn decode(app: &App, body: &Value) -> Result<Response, ApiError> {
    let fields = Fields::of_body(body)?;
    check_model(app, &fields)?;
    let items = fields.array("tokens")?.ok_or_else(|| ApiError::missing("tokens", "an array of token ids"))?;
    let ids = ids("tokens", items, app.model.vocab)?;
    Ok(Json(json!({"prompt": app.model.tokenizer.decode_with_control(&ids)})).into_response())
}

fn check_model(app: &App, fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.text("model")?.map_or(Ok(()), |name| app.model.check_name(name))
}
