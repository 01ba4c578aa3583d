//! `/v1/models`: the one model that is served, whether or not a worker is ready.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;

/// The list.
pub async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [describe(&app)]}))
}

/// One by its name.
///
/// # Errors
/// Another name.
pub async fn one(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    app.model.check_name(&name)?;
    Ok(Json(describe(&app)))
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
