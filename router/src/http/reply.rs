//! What goes back: a whole body, or events as they come. A reply tells its connection what it is, and that it has ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use serde_json::Value;

use crate::error::ApiError;
use crate::server::{Link, Phase};

/// A source of bytes that says something when it has something to say.
pub trait Source: Send {
    /// The next bytes; none at the end. `probe`: say something now, be it a comment.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>, probe: bool) -> Poll<Option<Bytes>>;
}

enum Content {
    Whole(Option<Bytes>),
    Events(Pin<Box<dyn Source>>),
}

/// The body of an answer.
pub struct Reply {
    content: Content,
    link: Option<Arc<Link>>,
}

impl Reply {
    /// A whole body.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { content: Content::Whole(Some(bytes.into())), link: None }
    }

    /// A body that comes in parts.
    pub fn events(source: impl Source + 'static) -> Self {
        Self { content: Content::Events(Box::pin(source)), link: None }
    }

    /// The same, on its connection.
    pub fn on(mut self, link: Arc<Link>) -> Self {
        if matches!(self.content, Content::Events(_)) {
            link.enter(Phase::Stream);
        }
        self.link = Some(link);
        self
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.enter(Phase::Idle);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| {
                if let Some(link) = &this.link {
                    link.owes(bytes.len());
                }
                Ok(Frame::data(bytes))
            })),
            Content::Events(source) => {
                let probe = this.link.as_ref().is_some_and(|link| link.take_probe());
                source.as_mut().poll_next(cx, probe).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer of text, or of JSON that is text already.
pub fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer of JSON.
pub fn json(status: StatusCode, body: &Value) -> Response<Reply> {
    let mut response = text("application/json", body.to_string());
    *response.status_mut() = status;
    response
}

/// An error's answer.
pub fn error(error: &ApiError) -> Response<Reply> {
    let mut response = json(error.status(), &error.body());
    let headers = response.headers_mut();
    if let Some(seconds) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    match error {
        ApiError::Unauthorized { .. } => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        ApiError::Method { allowed, .. } => {
            if let Ok(allowed) = HeaderValue::try_from(if allowed == http::Method::GET { "GET, HEAD" } else { allowed.as_str() }) {
                headers.insert(header::ALLOW, allowed);
            }
        }
        _ => {}
    }
    if error.ends_connection() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer of server-sent events, which nothing on the way should hold back.
pub fn events(source: impl Source + 'static) -> Response<Reply> {
    let mut response = Response::new(Reply::events(source));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx gathers a response before it passes it on, unless told.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
