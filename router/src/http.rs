//! Paths, keys, bodies, health and metrics. Every answer that is not a success has the shape of [`ApiError`]; every answer carries `x-request-id`.

pub mod body;
pub mod cors;
pub mod reply;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use hyper::Request;
use hyper::body::{Body, Incoming};
use serde_json::json;

use crate::App;
use crate::error::{ApiError, READY_RETRY_SECONDS, cut};
use crate::metrics::{Endpoint, Meter};
use crate::openai::{chat, completions, models};
use crate::server::{Framing, Link, Phase};
use crate::{generate, requests};

pub use reply::{Reply, json as json_reply};

/// Names a request in logs and answers; the client's own is taken where it can be.
pub const REQUEST_ID: &str = "x-request-id";
/// Longest id of a client that is taken over.
const LONGEST_ID: usize = 128;
/// Bytes of all headers. hyper's own bound is on its buffer, which may hold twice as much.
const LONGEST_HEAD: usize = 64 << 10;
/// Longest target of a request.
const LONGEST_TARGET: usize = 8 << 10;
/// Paths that need no key: what probes and scrapers ask. All others do, known or not, so that a path added later is not open by oversight.
const OPEN: [&str; 3] = ["/health", "/ready", "/metrics"];
/// What a client that speaks HTTP/2 from the start asks first; see [`crate::server`].
const HTTP_2: &str = "PRI";

/// What is known of a request beside its body.
pub struct Call {
    /// Its connection.
    pub link: Arc<Link>,
    /// In answers and logs.
    pub id: String,
}

/// Answers one request.
pub async fn answer(app: Arc<App>, link: Arc<Link>, request: Request<Incoming>) -> hyper::Response<Reply> {
    let framing = link.begin(request.body().size_hint().exact());
    if link.take_turn() {
        tokio::task::yield_now().await;
    }
    let number = app.pool.random();
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let fits = |id: &&str| (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    let id = given.filter(fits).map_or_else(|| request_id(number), str::to_owned);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = app.config.cors.allows(origin.as_ref());
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let is_version_11 = request.version() == Version::HTTP_11;
    let call = Call { link: Arc::clone(&link), id: id.clone() };
    let answered = match admit(&app, &request, framing, allowed) {
        Ok(()) if cors::is_preflight(&request) && allowed => Ok(cors::preflight(&request)),
        Ok(()) => route(&app, call, request, number).await,
        Err(error) => Err(error),
    };
    let mut response = answered.unwrap_or_else(|error| {
        link.refused();
        reply::error(&error)
    });
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(origin) = origin.filter(|_| allowed) {
        cors::mark(headers, origin, app.config.cors.is_any());
    }
    if chunked && is_version_11 {
        // What follows a chunked body is where another server might see it end elsewhere: nothing follows.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|reply| reply.on(link))
}

/// The name of a request that has none that can be taken over.
pub fn request_id(number: u64) -> String {
    format!("req-{number:016x}")
}

/// What is refused before anything of the body is read.
fn admit(app: &App, request: &Request<Incoming>, framing: Framing, allowed: bool) -> Result<(), ApiError> {
    if request.method().as_str() == HTTP_2 {
        return Err(ApiError::Version);
    }
    if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
        return Err(ApiError::Host);
    }
    if !allowed && cors::is_simple(request) {
        return Err(ApiError::Origin);
    }
    let sizes = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if sizes.sum::<usize>() > LONGEST_HEAD {
        return Err(ApiError::HeadTooLarge);
    }
    if request.uri().path_and_query().map_or(0, |target| target.as_str().len()) > LONGEST_TARGET {
        return Err(ApiError::UriTooLong);
    }
    if framing.known && framing.length && framing.encoding {
        return Err(ApiError::Framing);
    }
    let encodings = request.headers().get_all(header::TRANSFER_ENCODING);
    if encodings.iter().count() > 1 || encodings.iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(ApiError::Transfer);
    }
    let is_open = OPEN.contains(&request.uri().path()) || cors::is_preflight(request);
    match app.keys.as_ref().filter(|_| !is_open) {
        Some(keys) => keys.admit(request.headers()),
        None => Ok(()),
    }
}

async fn route(app: &Arc<App>, call: Call, request: Request<Incoming>, number: u64) -> Result<hyper::Response<Reply>, ApiError> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let endpoint = match path {
        "/v1/chat/completions" => Some((Endpoint::Chat, "chatcmpl")),
        "/v1/completions" => Some((Endpoint::Completions, "cmpl")),
        "/v1/minimax-m1/generate" => Some((Endpoint::Generate, "gen")),
        _ => None,
    };
    if let Some((endpoint, prefix)) = endpoint {
        only(&parts.method, path, &Method::POST)?;
        return generate(app, call, &parts.headers, body, endpoint, format!("{prefix}-{number:016x}")).await;
    }
    match path {
        "/health" | "/ready" | "/metrics" | "/v1/models" => only(&parts.method, path, &Method::GET)?,
        "/tokenize" | "/detokenize" => only(&parts.method, path, &Method::POST)?,
        _ => {}
    }
    match path {
        "/health" => Ok(reply::text("text/plain; charset=utf-8", "ok\n")),
        "/ready" => Ok(ready(app)),
        "/metrics" => metrics(app).await,
        "/v1/models" => Ok(json_reply(StatusCode::OK, &models::list(app))),
        "/tokenize" => compute(app, &call, &parts.headers, body, requests::tokenize::encode).await,
        "/detokenize" => compute(app, &call, &parts.headers, body, requests::tokenize::decode).await,
        path => match path.strip_prefix("/v1/models/") {
            Some(name) => {
                only(&parts.method, path, &Method::GET)?;
                let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
                Ok(json_reply(StatusCode::OK, &models::one(app, &name)?))
            }
            None => Err(ApiError::UnknownPath(cut(path))),
        },
    }
}

fn only(given: &Method, path: &str, allowed: &Method) -> Result<(), ApiError> {
    if given == allowed || (allowed == Method::GET && given == Method::HEAD) {
        return Ok(());
    }
    Err(ApiError::Method { given: cut(given.as_str()), path: cut(path), allowed: allowed.clone() })
}

async fn generate(
    app: &Arc<App>,
    call: Call,
    headers: &HeaderMap,
    body: Incoming,
    endpoint: Endpoint,
    id: String,
) -> Result<hyper::Response<Reply>, ApiError> {
    let mut meter = Meter::start(Arc::clone(&app.metrics), endpoint, id.clone(), call.id.clone());
    let body = body::read(headers, body, &app.config.bodies, &app.readers).await.inspect_err(|error| meter.failed(error))?;
    call.link.enter(Phase::Reading);
    match endpoint {
        Endpoint::Chat => chat::answer(app, call, body, id, meter).await,
        Endpoint::Completions => completions::answer(app, call, body, id, meter).await,
        Endpoint::Generate => generate::answer(app, call, body, id, meter).await,
    }
}

/// An answer that needs no worker.
async fn compute(
    app: &Arc<App>,
    call: &Call,
    headers: &HeaderMap,
    body: Incoming,
    answer: fn(&requests::Context<'_>, &[u8]) -> Result<Vec<u8>, ApiError>,
) -> Result<hyper::Response<Reply>, ApiError> {
    let body = body::read(headers, body, &app.config.bodies, &app.readers).await?;
    call.link.enter(Phase::Whole);
    let text = app.reading(body, answer).await?;
    Ok(reply::text("application/json", text))
}

fn ready(app: &App) -> hyper::Response<Reply> {
    let (workers, leaving) = (app.pool.describe(), app.is_leaving());
    if app.pool.is_ready() && !leaving {
        return json_reply(StatusCode::OK, &json!({"ready": true, "workers": workers}));
    }
    let body = json!({"ready": false, "stopping": leaving, "workers": workers});
    let mut response = json_reply(StatusCode::SERVICE_UNAVAILABLE, &body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(READY_RETRY_SECONDS));
    response
}

/// 13,000 lines take tens of milliseconds to write, which the clients of this loop must not wait for.
async fn metrics(app: &Arc<App>) -> Result<hyper::Response<Reply>, ApiError> {
    /// One at a time: two scrapers wait for each other, and a thousand clients do not make a thousand pages at once.
    static TURN: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(1);
    let _turn = TURN.acquire().await;
    let app = Arc::clone(app);
    let rendered = tokio::task::spawn_blocking(move || app.metrics.render(&app.pool.view())).await;
    let text = rendered.map_err(|error| ApiError::Internal(error.to_string()))?;
    let text = text.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(reply::text("text/plain; version=0.0.4; charset=utf-8", text))
}
