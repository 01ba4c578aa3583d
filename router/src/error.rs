//! Every error a client can see, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. Messages name the field, what was given and what
//! is allowed.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Seconds after which a client should try again when the queue is full: a sequence of ordinary length ends within about one.
const QUEUE_RETRY_SECONDS: u32 = 1;
/// Seconds after which a client should try again when no worker is ready: short beside a restart, long beside a readiness probe.
pub const READY_RETRY_SECONDS: u32 = 2;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is no JSON.
    #[error("{0}")]
    Malformed(String),
    /// A field is missing, of a wrong type or out of bounds.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: String,
        /// Field, given, allowed.
        message: String,
    },
    /// A field that OpenAI knows and this server does not serve yet.
    #[error("{param}: {given} is not supported; allowed: {allowed}")]
    Unsupported {
        /// The field.
        param: String,
        /// Its value, cut.
        given: String,
        /// What would do.
        allowed: &'static str,
    },
    /// The prompt, or prompt and output together, exceed the window.
    #[error("{message}")]
    ContextLength {
        /// The field that holds the prompt.
        param: &'static str,
        /// With the numbers.
        message: String,
    },
    /// Another model.
    #[error("model: {given:?} does not exist; allowed: {known:?}")]
    UnknownModel {
        /// What was asked for.
        given: String,
        /// What is served.
        known: String,
    },
    /// Another path.
    #[error("{0} does not exist")]
    UnknownPath(String),
    /// Another method.
    #[error("method {given} is not allowed for {path}")]
    Method {
        /// The method.
        given: String,
        /// The path.
        path: String,
    },
    /// The body is too long.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Too many wait.
    #[error("{waiting} requests wait already; try again")]
    QueueFull {
        /// The queue's bound.
        waiting: usize,
    },
    /// It waited too long.
    #[error("no worker had room within {seconds} seconds; try again")]
    QueueWait {
        /// The longest wait.
        seconds: u64,
    },
    /// No key, or none that is known.
    #[error("Authorization: given {given}, allowed: Bearer and an API key of this server")]
    Unauthorized {
        /// What there was in its place, in words: never the key.
        given: &'static str,
    },
    /// No worker can serve.
    #[error("{0}")]
    NotReady(String),
    /// A worker went away, or broke its contract, while it served the request.
    #[error("{0}")]
    WorkerLost(String),
    /// The router itself failed.
    #[error("{0}")]
    Internal(String),
    /// A worker ended the sequence with an error of its own.
    #[error("{message}")]
    Engine {
        /// Its CamelCase word.
        reason: String,
        /// Its sentence.
        message: String,
    },
}

impl ApiError {
    /// A field that is not as it should be.
    pub fn invalid(param: impl Into<String>, given: &Value, allowed: &str) -> Self {
        let param = param.into();
        let message = format!("{param}: given {}, allowed: {allowed}", shown(given));
        Self::Invalid { param, message }
    }

    /// A field that must be there.
    pub fn missing(param: impl Into<String>, allowed: &str) -> Self {
        let param = param.into();
        let message = format!("{param}: given nothing, allowed: {allowed}");
        Self::Invalid { param, message }
    }

    /// A known field that is not served.
    pub fn unsupported(param: impl Into<String>, given: &Value, allowed: &'static str) -> Self {
        Self::Unsupported { param: param.into(), given: shown(given), allowed }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Invalid { .. } | Self::Unsupported { .. } | Self::ContextLength { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::UnknownModel { .. } | Self::UnknownPath(_) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::QueueFull { .. } | Self::QueueWait { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::WorkerLost(_) | Self::Engine { .. } => StatusCode::BAD_GATEWAY,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `code` of the body: one word for programs.
    pub fn reason(&self) -> &str {
        match self {
            Self::Malformed(_) => "malformed_json",
            Self::Invalid { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::UnknownModel { .. } => "model_not_found",
            Self::UnknownPath(_) => "unknown_url",
            Self::Method { .. } => "method_not_allowed",
            Self::TooLarge { .. } => "body_too_large",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueWait { .. } => "queue_timeout",
            Self::Unauthorized { .. } => "invalid_api_key",
            Self::NotReady(_) => "not_ready",
            Self::WorkerLost(_) => "worker_lost",
            Self::Internal(_) => "internal_error",
            Self::Engine { reason, .. } => reason,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::QueueFull { .. } | Self::QueueWait { .. } | Self::NotReady(_) | Self::WorkerLost(_) | Self::Engine { .. }
        )
    }

    /// The body.
    pub fn body(&self) -> Value {
        let param = match self {
            Self::Invalid { param, .. } | Self::Unsupported { param, .. } => Some(param.as_str()),
            Self::ContextLength { param, .. } => Some(*param),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        };
        let kind = match self {
            Self::QueueFull { .. } | Self::QueueWait { .. } => "rate_limit_error",
            error if error.status().is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.to_string(), "type": kind, "param": param, "code": self.reason()}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        let retry = match self {
            Self::QueueFull { .. } | Self::QueueWait { .. } => Some(QUEUE_RETRY_SECONDS),
            Self::NotReady(_) => Some(READY_RETRY_SECONDS),
            _ => None,
        };
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Unauthorized { .. }) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A value as a message shows it: at most 64 characters.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(64) {
        Some((cut, _)) => format!("{}..", text.get(..cut).unwrap_or("")),
        None => text,
    }
}
