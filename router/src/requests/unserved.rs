//! Fields that OpenAI knows and this server does not serve: each is a 400 that names it, unless its value asks for nothing.

use serde_json::{Value, json};

use crate::error::ApiError;

use super::body::Fields;
use super::params::refuse_unserved;

/// Of `/v1/chat/completions`.
pub fn of_chat(fields: &Fields<'_>) -> Result<(), ApiError> {
    refuse_unserved(fields)?;
    if let Some(given) = fields.get("response_format") {
        // Its other fields may be long.
        let plain = Fields::of("response_format".to_owned(), given, &["type"]).and_then(|format| format.text("type"));
        if !matches!(plain, Ok(Some(kind)) if kind == "text") {
            return Err(fields.unsupported("response_format", given, "{\"type\": \"text\"}"));
        }
    }
    fields.refuse("audio", "nothing", |_| false)?;
    fields.refuse("modalities", "[\"text\"]", |value| value == &json!(["text"]))?;
    fields.refuse("functions", "nothing; use tools", |_| false)?;
    fields.refuse("function_call", "nothing; use tool_choice", |_| false)?;
    fields.refuse("prediction", "nothing", |_| false)?;
    fields.refuse("web_search_options", "nothing", |_| false)?;
    fields.refuse("reasoning_effort", "nothing", |_| false)?;
    fields.refuse("verbosity", "nothing", |_| false)?;
    fields.refuse("store", "false", |value| value == &Value::Bool(false))
}

/// Of `/v1/completions`.
pub fn of_completions(fields: &Fields<'_>) -> Result<(), ApiError> {
    refuse_unserved(fields)?;
    fields.refuse("best_of", "1", |value| value.as_f64() == Some(1.0))?;
    fields.refuse("echo", "false", |value| value == &Value::Bool(false))?;
    fields.refuse("suffix", "nothing", |value| value == &json!(""))
}
