//! Paths, keys, bodies, health and metrics. Every answer that is not a success has the shape of [`ApiError`].

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use crate::error::{ApiError, READY_RETRY_SECONDS};
use crate::fields::parse;
use crate::metrics::{Endpoint, Meter};
use crate::openai::{chat, completions, models};
use crate::{App, generate, tokenize};

/// A body over the limit is still read up to this many times it, and thrown away, so that a client that is sending sees the 413 and not a reset.
const DISCARD_FACTOR: usize = 4;

type Shared = State<Arc<App>>;

/// The routes.
pub fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/chat/completions", post(|app: Shared, body: Body| generate_with(app, body, Endpoint::Chat)))
        .route("/v1/completions", post(|app: Shared, body: Body| generate_with(app, body, Endpoint::Completions)))
        .route("/v1/minimax-m1/generate", post(|app: Shared, body: Body| generate_with(app, body, Endpoint::Generate)))
        .route("/tokenize", post(|app: Shared, body: Body| compute(app, body, tokenize::encode)))
        .route("/detokenize", post(|app: Shared, body: Body| compute(app, body, tokenize::decode)))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), admit))
        .with_state(app)
}

/// Paths that need no key: what probes and scrapers ask. All others do, known or not, so that a path added later is not open by oversight.
const OPEN: [&str; 3] = ["/health", "/ready", "/metrics"];

async fn admit(State(app): Shared, request: Request, next: Next) -> Response {
    let Some(keys) = app.keys.as_ref().filter(|_| !OPEN.contains(&request.uri().path())) else { return next.run(request).await };
    match keys.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            // Read, so that a client that is sending sees the 401 and not a reset.
            discard(request.into_body(), app.config.body_limit).await;
            error.into_response()
        }
    }
}

async fn generate_with(State(app): Shared, body: Body, endpoint: Endpoint) -> Result<Response, ApiError> {
    let number = app.pool.random();
    let id = match endpoint {
        Endpoint::Chat => format!("chatcmpl-{number:016x}"),
        Endpoint::Completions => format!("cmpl-{number:016x}"),
        Endpoint::Generate => format!("gen-{number:016x}"),
    };
    let mut meter = Meter::start(Arc::clone(&app.metrics), endpoint, id.clone());
    let body = read(body, app.config.body_limit).await.and_then(|body| parse(&body)).inspect_err(|error| meter.failed(error))?;
    match endpoint {
        Endpoint::Chat => chat::answer(app, body, id, meter).await,
        Endpoint::Completions => completions::answer(app, body, id, meter).await,
        Endpoint::Generate => generate::answer(app, body, id, meter).await,
    }
}

/// An answer that needs no worker.
async fn compute(
    State(app): Shared,
    body: Body,
    answer: fn(&App, &Value) -> Result<Response, ApiError>,
) -> Result<Response, ApiError> {
    let body = read(body, app.config.body_limit).await?;
    app.blocking(move |app| answer(app, &parse(&body)?)).await
}

async fn ready(State(app): Shared) -> Response {
    let (workers, leaving) = (app.pool.describe(), app.is_leaving());
    if app.pool.is_ready() && !leaving {
        return axum::Json(json!({"ready": true, "workers": workers})).into_response();
    }
    let body = json!({"ready": false, "stopping": leaving, "workers": workers});
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(READY_RETRY_SECONDS));
    response
}

async fn metrics(State(app): Shared) -> Result<Response, ApiError> {
    let text = app.metrics.render(&app.pool.view()).map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::UnknownPath(uri.path().to_owned())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::Method { given: method.to_string(), path: uri.path().to_owned() }
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut stream = body.into_data_stream();
    let (mut all, mut length) = (Vec::new(), 0usize);
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| ApiError::Malformed(format!("the body could not be read: {error}")))?;
        length = length.saturating_add(part.len());
        if length <= limit {
            all.extend_from_slice(&part);
        } else if length > limit.saturating_mul(DISCARD_FACTOR) {
            break;
        } else {
            all = Vec::new();
        }
    }
    if length > limit { Err(ApiError::TooLarge { limit }) } else { Ok(all) }
}

async fn discard(body: Body, limit: usize) {
    let mut stream = body.into_data_stream();
    let mut length = 0usize;
    while let Some(Ok(part)) = stream.next().await {
        length = length.saturating_add(part.len());
        if length > limit {
            break;
        }
    }
}
