//! The admin server of a binary: `/livez`, `/readyz` and `/startupz` for a kubelet, `/metrics` for Prometheus. A check is
//! answered with 200 `ok`, or with 503 and `{"reason": "...", "message": "..."}`. It knows no component: what the answers
//! are is [`Checks`]. The address is bound before anything slow, so that a probe is never refused by a process that lives.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Connections at most: probes and scrapers need a handful. One more ends the oldest, so that whoever holds many keeps no probe out.
const MOST_CONNECTIONS: usize = 64;
/// A head is here within this time, or the connection ends; also how long one may be idle.
const HEAD: Duration = Duration::from_secs(75);
/// No connection lives longer: scrapers make another one.
const LIFE: Duration = Duration::from_secs(600);
/// Pause after a connection that could not be accepted.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why a check does not pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unwell {
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Unwell {
    /// A reason and its sentence.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// What a binary says of itself. The checks are asked at any time, from any thread, and must not wait.
pub trait Checks: Send + Sync + 'static {
    /// Whether it has started: a kubelet asks nothing else before that, and restarts what does not start in time.
    ///
    /// # Errors
    /// What is still to come.
    fn started(&self) -> Result<(), Unwell>;

    /// Whether it can take work now.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), Unwell>;

    /// Whether it is to be left alone: a kubelet restarts what is not.
    ///
    /// # Errors
    /// What does not go on.
    fn live(&self) -> Result<(), Unwell>;

    /// Its metrics in Prometheus' text format.
    ///
    /// # Errors
    /// They cannot be written.
    fn metrics(&self) -> Result<String, Unwell>;
}

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("cannot bind {address} for the admin server")]
    Bind {
        /// The address given.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
}

impl AdminError {
    /// One CamelCase word for logs and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "AdminNotBound",
        }
    }
}

/// A bound admin server. Probes that come before [`Admin::serve`] wait in the kernel's queue.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Binds the address; port 0 takes a free one.
    ///
    /// # Errors
    /// It cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` completes.
    pub async fn serve(self, checks: Arc<dyn Checks>, stop: impl Future<Output = ()>) {
        tracing::info!(address = %self.address, "the admin server listens");
        let service = router(checks);
        // The oldest first.
        let mut connections: VecDeque<AbortHandle> = VecDeque::new();
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut stop => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // One client's trouble, or no descriptors left: both pass.
                    tracing::warn!(%error, "a probe's connection could not be accepted");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            };
            connections.retain(|connection| !connection.is_finished());
            if connections.len() >= MOST_CONNECTIONS
                && let Some(oldest) = connections.pop_front()
            {
                oldest.abort();
            }
            connections.push_back(tokio::spawn(connection(stream, service.clone())).abort_handle());
        }
        connections.iter().for_each(AbortHandle::abort);
    }
}

/// One connection, whose client may take its time for nothing.
async fn connection(stream: TcpStream, service: Router) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    // Answers are small and the kernel takes them whole, or somebody does not read them.
    if let Ok(Err(error)) = tokio::time::timeout(LIFE, served).await {
        tracing::debug!(%error, "a probe's connection broke");
    }
}

fn router(checks: Arc<dyn Checks>) -> Router {
    Router::new()
        .route("/startupz", get(async |State(checks): State<Arc<dyn Checks>>| verdict(checks.started())))
        .route("/readyz", get(async |State(checks): State<Arc<dyn Checks>>| verdict(checks.ready())))
        .route("/livez", get(async |State(checks): State<Arc<dyn Checks>>| verdict(checks.live())))
        .route("/metrics", get(async |State(checks): State<Arc<dyn Checks>>| exposition(checks.metrics())))
        .with_state(checks)
}

fn verdict(result: Result<(), Unwell>) -> Response {
    match result {
        Ok(()) => "ok".into_response(),
        Err(unwell) => (StatusCode::SERVICE_UNAVAILABLE, Json(unwell)).into_response(),
    }
}

fn exposition(result: Result<String, Unwell>) -> Response {
    match result {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(unwell) => (StatusCode::INTERNAL_SERVER_ERROR, Json(unwell)).into_response(),
    }
}
