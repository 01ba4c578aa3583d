//! Every error a client can see, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. Messages name the field, what was given and what
//! is allowed.

use http::StatusCode;
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
        /// What would do.
        allowed: http::Method,
    },
    /// The body is too long.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The head is none.
    #[error("the head of the request is not HTTP/1.1")]
    BadHead,
    /// The head is too long.
    #[error("the head of the request is longer than 64 KiB, or has more than 128 headers")]
    HeadTooLarge,
    /// The request's target is too long.
    #[error("the path is longer than 8 KiB")]
    UriTooLong,
    /// Another version of HTTP.
    #[error("HTTP/2 is not spoken here; allowed: HTTP/1.1")]
    Version,
    /// The body's length is given in two ways.
    #[error("Content-Length and Transfer-Encoding: given both, allowed: one of them")]
    Framing,
    /// Not one Host.
    #[error("Host: given none or several, allowed: one")]
    Host,
    /// A page that may not ask has sent what needs no leave.
    #[error("pages of this Origin may not ask (--cors); whoever is no page sends Content-Type: application/json, or no Origin")]
    Origin,
    /// The body comes in another way than in chunks.
    #[error("Transfer-Encoding: given another, allowed: chunked, once")]
    Transfer,
    /// The body is compressed in a way that is not known.
    #[error("Content-Encoding: given {given:?}, allowed: gzip, identity")]
    Encoding {
        /// What was given, cut.
        given: String,
    },
    /// The body came too slowly.
    #[error("the body was not here after {seconds} seconds; allowed: at least 1 KiB per second, and {most} seconds in all")]
    TooSlow {
        /// How long it was waited for.
        seconds: u64,
        /// The longest wait.
        most: u64,
    },
    /// The body came too slowly for the room that it takes from others.
    #[error("the body came with less than {least} KiB per second while others waited for its room; try again")]
    GaveWay {
        /// What is allowed while others wait.
        least: usize,
    },
    /// No room for one more connection.
    #[error("{most} connections are open already; try again")]
    TooManyConnections {
        /// The bound.
        most: usize,
    },
    /// The client has gone while its request was read; nobody sees this.
    #[error("the client is gone")]
    Cancelled,
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
    /// The router ends.
    #[error("this server is stopping; send the request again")]
    Stopping,
    /// A worker went away, or broke its contract, while it served the request.
    #[error("{0}")]
    WorkerLost(String),
    /// Every worker that tried the request failed before its first token.
    #[error("{0}")]
    Attempts(String),
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
            Self::Malformed(_)
            | Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::ContextLength { .. }
            | Self::BadHead
            | Self::Framing
            | Self::Host
            | Self::Transfer => StatusCode::BAD_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Encoding { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooSlow { .. } | Self::GaveWay { .. } | Self::Cancelled => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownModel { .. } | Self::UnknownPath(_) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::QueueFull { .. } | Self::QueueWait { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::NotReady(_) | Self::TooManyConnections { .. } | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::WorkerLost(_) | Self::Engine { .. } => StatusCode::BAD_GATEWAY,
            Self::Attempts(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
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
            Self::BadHead => "malformed_head",
            Self::HeadTooLarge => "head_too_large",
            Self::UriTooLong => "url_too_long",
            Self::Version => "http_version",
            Self::Framing | Self::Transfer => "body_length",
            Self::Host => "malformed_head",
            Self::Origin => "origin_not_allowed",
            Self::Encoding { .. } => "unsupported_encoding",
            Self::TooSlow { .. } | Self::GaveWay { .. } => "request_timeout",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::Cancelled => "cancelled",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueWait { .. } => "queue_timeout",
            Self::Unauthorized { .. } => "invalid_api_key",
            Self::NotReady(_) => "not_ready",
            Self::Stopping => "stopping",
            Self::WorkerLost(_) => "worker_lost",
            Self::Attempts(_) => "attempts_failed",
            Self::Internal(_) => "internal_error",
            Self::Engine { reason, .. } => reason,
        }
    }

    /// Whether nothing that follows on the connection can be trusted, or was read.
    pub fn ends_connection(&self) -> bool {
        matches!(
            self,
            Self::TooLarge { .. }
                | Self::Encoding { .. }
                | Self::TooSlow { .. }
                | Self::GaveWay { .. }
                | Self::Framing
                | Self::Transfer
                | Self::Host
                | Self::Version
                | Self::BadHead
                | Self::HeadTooLarge
                | Self::UriTooLong
                | Self::TooManyConnections { .. }
        )
    }

    /// Seconds after which the same request may succeed, where that is known.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::QueueFull { .. } | Self::QueueWait { .. } => Some(QUEUE_RETRY_SECONDS),
            Self::NotReady(_) | Self::TooManyConnections { .. } | Self::Stopping => Some(READY_RETRY_SECONDS),
            _ => None,
        }
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

/// A value as a message shows it: at most 64 characters.
pub fn shown(value: &Value) -> String {
    cut_to(&value.to_string(), 64)
}

/// What a client or a worker has sent, as a message shows it: at most 100 characters, so that no message of ours has more than 120 of anybody's.
pub fn cut(text: &str) -> String {
    cut_to(text, 100)
}

/// At most so many characters of a text, and two dots where more follow.
pub fn cut_to(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((cut, _)) => format!("{}..", text.get(..cut).unwrap_or("")),
        None => text.to_owned(),
    }
}
