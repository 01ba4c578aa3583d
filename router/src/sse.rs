//! Server-sent events: a generation told in an API's own dialect. Errors after the start are one `data: {"error": ..}` and the end of the stream.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;

use crate::error::ApiError;
use crate::generation::{End, Generation, Piece, Step};

/// How an API tells an answer.
pub trait Dialect: Send + 'static {
    /// Before the first piece.
    fn open(&mut self, _out: &mut Frames) {}

    /// A piece.
    fn piece(&mut self, piece: Piece, out: &mut Frames);

    /// The end.
    ///
    /// # Errors
    /// What the worker said of the end cannot be told.
    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError>;
}

/// Events to be sent together.
#[derive(Debug, Default)]
pub struct Frames(String);

impl Frames {
    /// An event without a name.
    pub fn data(&mut self, value: &Value) {
        self.line("data", &value.to_string());
        self.0.push('\n');
    }

    /// An event with a name.
    pub fn event(&mut self, name: &str, value: &Value) {
        self.line("event", name);
        self.data(value);
    }

    /// OpenAI's last event.
    pub fn done(&mut self) {
        self.0.push_str("data: [DONE]\n\n");
    }

    fn line(&mut self, field: &str, text: &str) {
        self.0.push_str(field);
        self.0.push_str(": ");
        self.0.push_str(text);
        self.0.push('\n');
    }
}

struct Telling<D> {
    generation: Generation,
    dialect: D,
}

/// The response. Its body drops the generation, and with it the worker's stream, when the client goes away.
pub fn respond<D: Dialect>(generation: Generation, mut dialect: D) -> Response {
    let mut first = Frames::default();
    dialect.open(&mut first);
    let start = (Some(Telling { generation, dialect }), first);
    let body = futures_util::stream::unfold(start, |(telling, first)| async move {
        if !first.0.is_empty() {
            return Some((Ok::<_, Infallible>(Bytes::from(first.0)), (telling, Frames::default())));
        }
        let (frames, rest) = telling?.advance().await;
        Some((Ok(Bytes::from(frames.0)), (rest, Frames::default())))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}

impl<D: Dialect> Telling<D> {
    /// The next frames, and what is left to tell.
    async fn advance(mut self) -> (Frames, Option<Self>) {
        let mut frames = Frames::default();
        let over = match self.generation.next().await {
            Ok(Step::Piece(piece)) => {
                self.dialect.piece(piece, &mut frames);
                return (frames, Some(self));
            }
            Ok(Step::End(end)) => self.dialect.end(end, &mut frames),
            Err(error) => Err(error),
        };
        if let Err(error) = over {
            frames.data(&error.body());
        }
        (frames, None)
    }
}

/// What the chunks of one answer share.
#[derive(Clone, Debug)]
pub struct Header {
    /// The answer's id.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: Arc<str>,
}
