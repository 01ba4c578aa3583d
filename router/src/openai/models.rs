//! `/v1/models`: the one model that is served, whether or not a worker is ready.

use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;

/// The list.
pub fn list(app: &App) -> Value {
    json!({"object": "list", "data": [describe(app)]})
}

/// One by its name.
///
/// # Errors
/// Another name.
pub fn one(app: &App, name: &str) -> Result<Value, ApiError> {
    app.model.check_name(name)?;
    Ok(describe(app))
}

fn describe(app: &App) -> Value {
    json!({
        "id": app.model.name,
        "object": "model",
        "created": app.model.created,
        "owned_by": "minimax-m1",
        "max_model_len": app.window(),
    })
}
