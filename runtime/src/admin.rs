//! The admin server of a binary: `/livez`, `/readyz` and `/startupz` for a kubelet, `/metrics` for Prometheus. A check is
//! answered with 200 `ok`, or with 503 and `{"reason": "...", "message": "..."}`. It knows no component: what the answers
//! are is [`Checks`]. The address is bound before anything slow, so that a probe is never refused by a process that lives.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

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
        tokio::select! {
            served = axum::serve(self.listener, router(checks)).into_future() => {
                if let Err(error) = served {
                    tracing::error!(%error, "the admin server failed");
                }
            }
            () = stop => {}
        }
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
