//! Answers that are no gRPC, in place of the service's own, while the worker's mode is `garble:KIND`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use crate::script::{Garbage, Step};
use crate::worker::Stage;

/// Length of a frame that says more than it has.
const LIE: u32 = 100;

/// The service behind it, or garbage.
#[derive(Clone)]
pub struct Garble<S> {
    stage: Arc<Stage>,
    inner: S,
}

impl<S> Garble<S> {
    /// Before a service.
    pub fn new(stage: Arc<Stage>, inner: S) -> Self {
        Self { stage, inner }
    }
}

impl<S: NamedService> NamedService for Garble<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Garble<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.stage.mode().steps.first() {
            Some(Step::Garble(garbage)) if request.uri().path().ends_with("/Generate") => {
                let answer = answer(*garbage);
                Box::pin(std::future::ready(Ok(answer)))
            }
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

fn answer(garbage: Garbage) -> Response<Body> {
    match garbage {
        // Field 1 with a wire type that does not exist.
        Garbage::Protobuf => grpc(frame(0, 4, &[0x0f, 0xff, 0xff, 0xff]), true),
        Garbage::Huge => grpc(frame(0, u32::MAX, &[0; 64]), true),
        Garbage::Short => grpc(frame(0, LIE, &[0; 8]), true),
        Garbage::Compressed => grpc(frame(1, 4, &[1, 2, 3, 4]), true),
        Garbage::NoTrailers => grpc(frame(0, 0, &[]), false),
        Garbage::Html => plain(200, "text/html", "<html>it works</html>"),
        Garbage::Status500 => plain(500, "text/plain", "oops at 10.98.76.54:7000"),
    }
}

fn frame(flag: u8, length: u32, content: &[u8]) -> Bytes {
    let mut frame = vec![flag];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(content);
    frame.into()
}

fn grpc(content: Bytes, trailers: bool) -> Response<Body> {
    let mut end = HeaderMap::new();
    end.insert("grpc-status", HeaderValue::from_static("0"));
    let data = Ok::<_, Infallible>(Frame::data(content));
    let end = trailers.then(|| Ok(Frame::trailers(end)));
    let frames = futures_util::stream::iter(std::iter::once(data).chain(end));
    head(200, "application/grpc", Body::new(StreamBody::new(frames).boxed_unsync()))
}

fn plain(status: u16, kind: &'static str, text: &'static str) -> Response<Body> {
    head(status, kind, Body::new(Full::new(Bytes::from_static(text.as_bytes()))))
}

fn head(status: u16, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
    response
}
