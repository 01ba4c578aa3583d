//! A small HTTP client: GET with a whole answer, POST with an answer as it comes. Plain http only: m1ctl talks to routers of
//! this machine or through `kubectl port-forward`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// An answer that is read whole may be this long.
const LONGEST: usize = 1 << 20;
/// Waiting for a connection longer than this means that nobody is there.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be used.
    #[error("{given:?} given, allowed: http://HOST:PORT")]
    Address {
        /// What was given.
        given: String,
    },
    /// No connection, or it broke.
    #[error("{0}")]
    Transport(String),
    /// An answer other than 200.
    #[error("status {status}: {body}")]
    Status {
        /// Its status.
        status: u16,
        /// Its text.
        body: String,
    },
}

/// Connections to servers, kept open between requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
}

impl Default for Client {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        Self { pool: Pool::builder(TokioExecutor::new()).build(connector) }
    }
}

impl Client {
    /// The status and text of a GET.
    ///
    /// # Errors
    /// Nobody answers; a status other than 200 is no error here.
    pub async fn get(&self, url: &str) -> Result<(u16, String), HttpError> {
        let request = Request::get(url).body(Full::default()).map_err(|_| HttpError::Address { given: url.to_owned() })?;
        let response = self.pool.request(request).await.map_err(transport)?;
        let status = response.status().as_u16();
        Ok((status, text(response).await?))
    }

    /// The body of a POST of JSON, to be read as it comes.
    ///
    /// # Errors
    /// Nobody answers, or not with 200.
    pub async fn post(&self, url: &str, body: String) -> Result<Incoming, HttpError> {
        let request = Request::post(url)
            .header("content-type", "application/json")
            .body(Full::from(body))
            .map_err(|_| HttpError::Address { given: url.to_owned() })?;
        let response = self.pool.request(request).await.map_err(transport)?;
        match response.status().as_u16() {
            200 => Ok(response.into_body()),
            status => Err(HttpError::Status { status, body: text(response).await? }),
        }
    }
}

/// The next bytes of a body; none at its end.
///
/// # Errors
/// The connection broke.
pub async fn next(body: &mut Incoming) -> Result<Option<Bytes>, HttpError> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(transport)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn text(response: Response<Incoming>) -> Result<String, HttpError> {
    let body =
        Limited::new(response.into_body(), LONGEST).collect().await.map_err(|error| HttpError::Transport(error.to_string()))?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

fn transport(error: impl std::error::Error) -> HttpError {
    HttpError::Transport(crate::local::chain(&error))
}
