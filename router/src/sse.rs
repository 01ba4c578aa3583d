//! Server-sent events: a generation told in an API's own dialect. The head leaves once a worker has the sequence, or after a while; then something is said
//! every while, be it a comment, so that proxies do not cut it. Errors from then on are one `data: {"error": ..}` and the end of the stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::Response;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::error::ApiError;
use crate::generation::{AnswerPart, End, Generation, Piece};
use crate::http::reply::{self, Reply, Source};
use crate::server::{Link, Phase};

/// Says nothing, and shows that somebody is there.
const COMMENT: Bytes = Bytes::from_static(b": wait\n\n");

/// How an API tells an answer.
pub trait Dialect: Send + Unpin + 'static {
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

/// Events to be sent together. What was sent gives its room to what comes next.
#[derive(Debug, Default)]
pub struct Frames(BytesMut);

impl Frames {
    /// An event without a name.
    pub fn data(&mut self, value: &Value) {
        self.text("data: ");
        self.json(value);
        self.text("\n\n");
    }

    /// An event with a name.
    pub fn event(&mut self, name: &str, value: &Value) {
        self.text("event: ");
        self.text(name);
        self.text("\n");
        self.data(value);
    }

    /// OpenAI's last event.
    pub fn done(&mut self) {
        self.text("data: [DONE]\n\n");
    }

    /// A part of an event, as it is.
    pub fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// A part of an event, as JSON.
    pub fn json<T: Serialize + ?Sized>(&mut self, value: &T) {
        // Writing JSON values into memory does not fail.
        drop(serde_json::to_writer((&mut self.0).writer(), value));
    }

    /// What was written since the last time.
    fn take(&mut self) -> Bytes {
        self.0.split().freeze()
    }
}

/// When to say something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The head leaves after this, whether or not a worker has the sequence.
    pub head: Duration,
    /// A comment follows so much silence.
    pub comment: Duration,
}

struct Telling<D> {
    generation: Option<Generation>,
    dialect: D,
    pace: Duration,
    spoken: Instant,
    frames: Frames,
    alarm: Alarm,
}

/// The response. Its body drops the generation, and with it the worker's sequence, when the client goes away.
///
/// # Errors
/// It ended before the head left.
pub async fn respond<D: Dialect>(
    generation: Generation,
    mut dialect: D,
    pace: Pace,
    link: &Arc<Link>,
) -> Result<Response<Reply>, ApiError> {
    link.enter(Phase::Stream);
    let mut late = std::pin::pin!(tokio::time::sleep(pace.head));
    let begun = std::future::poll_fn(|cx| {
        // A client that has finished sending is answered at once: that shows whether it is still there.
        if late.as_mut().poll(cx).is_ready() || link.has_finished() {
            return Poll::Ready(Ok(()));
        }
        generation.session().log().poll_accepted(cx)
    });
    begun.await?;
    let mut frames = Frames::default();
    dialect.open(&mut frames);
    let (pace, spoken) = (pace.comment, Instant::now());
    Ok(reply::events(Telling { generation: Some(generation), dialect, frames, pace, spoken, alarm: Alarm::default() }))
}

impl<D: Dialect> Source for Telling<D> {
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>, probe: bool) -> Poll<Option<Bytes>> {
        let this = &mut *self;
        let Some(frames) = std::task::ready!(this.poll_frames(cx, probe)) else { return Poll::Ready(None) };
        this.spoken = Instant::now();
        Poll::Ready(Some(frames))
    }
}

impl<D: Dialect> Telling<D> {
    fn poll_frames(&mut self, cx: &mut Context<'_>, probe: bool) -> Poll<Option<Bytes>> {
        if !self.frames.0.is_empty() {
            return Poll::Ready(Some(self.frames.take()));
        }
        let Some(generation) = &mut self.generation else { return Poll::Ready(None) };
        if probe {
            return Poll::Ready(Some(COMMENT));
        }
        let frames = &mut self.frames;
        let over = match generation.poll_next(cx) {
            Poll::Ready(Ok(AnswerPart::Piece(piece))) => {
                self.dialect.piece(piece, frames);
                return Poll::Ready(Some(frames.take()));
            }
            Poll::Ready(Ok(AnswerPart::End(end))) => self.dialect.end(end, frames),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => return self.poll_silence(cx),
        };
        if let Err(error) = over {
            frames.data(&error.body());
        }
        let last = frames.take();
        self.generation = None;
        Poll::Ready(Some(last))
    }

    /// A comment, once nothing was said for long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.alarm.poll(self.spoken + self.pace, cx).map(|()| Some(COMMENT))
    }
}
