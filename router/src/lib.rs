//! The router: HTTP in front (OpenAI's API, M1's own, metrics), workers behind. It owns text and admission; what to decide is `m1-router-core`'s, what
//! text means is `m1-text`'s. It holds no state that a restart would lose but running answers.
//!
//! A request: bytes -> [`fields`] (checked) -> [`order`] -> [`workers`] (queue, lease) -> [`dispatch`] (one worker's stream) -> [`generation`] (text) ->
//! one body or [`sse`].

pub mod config;
pub mod dispatch;
pub mod error;
pub mod fields;
pub mod generate;
pub mod generation;
pub mod http;
pub mod metrics;
pub mod model;
pub mod openai;
pub mod order;
pub mod params;
pub mod sse;
pub mod tokenize;
pub mod workers;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::serve::ListenerExt;
use m1_router_core::WorkerId;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use config::Config;
use error::ApiError;
use metrics::Metrics;
use model::{Model, ModelError};
use workers::Pool;

/// Answers under way may end within this after the signal; then they are cut, and their clients see the connection close.
const GRACE: Duration = Duration::from_secs(5);

/// Why the router cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The model's files.
    #[error("cannot open the model")]
    Model(#[from] ModelError),
    /// A worker's address.
    #[error("a worker's address is wrong")]
    Address(#[from] tonic::transport::Error),
    /// The metrics' names.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// The listening socket.
    #[error("cannot serve HTTP")]
    Serve(#[from] std::io::Error),
    /// The model could not be opened for want of a thread.
    #[error("the task that opens the model died")]
    Task(#[from] tokio::task::JoinError),
}

impl RouterError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Model(error) => error.reason(),
            Self::Address(_) => "BadAddress",
            Self::Metrics(_) => "BadMetrics",
            Self::Serve(_) => "ServeFailed",
            Self::Task(_) => "TaskDied",
        }
    }
}

/// What every handler sees.
pub struct App {
    /// As checked at the start.
    pub config: Config,
    /// Tokenizer and names.
    pub model: Arc<Model>,
    /// The workers.
    pub pool: Arc<Pool>,
    /// The handles.
    pub metrics: Arc<Metrics>,
}

impl App {
    /// Tokens of prompt and output together: the configured bound, or the workers' own where that is less.
    pub fn window(&self) -> u32 {
        self.config.max_context.min(self.pool.max_context().unwrap_or(u32::MAX))
    }

    /// Runs what takes long (parsing and tokenising a million tokens) beside the event loop.
    ///
    /// # Errors
    /// The work's own.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&app)).await {
            Ok(result) => result,
            Err(error) => Err(ApiError::Internal(format!("a task died: {error}"))),
        }
    }
}

/// Serves on `listener` until `stop` completes and running answers have ended, or the grace is over.
///
/// # Errors
/// The model cannot be opened, or the socket fails.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RouterError> {
    let (dir, name) = (config.model.clone(), config.served_name.clone());
    let model = tokio::task::spawn_blocking(move || Model::open(&dir, name)).await??;
    let metrics = Arc::new(Metrics::new(&config.served_name)?);
    let seed = RandomState::new().hash_one(now_seconds());
    let pool = Pool::new(&config.groups, config.queue_limit, seed, Arc::clone(&metrics))?;
    let mut tasks = JoinSet::new();
    for worker in (0u32..).zip(config.groups.iter().flatten()).map(|(id, _)| WorkerId(id)) {
        tasks.spawn(Arc::clone(&pool).watch(worker));
    }
    tasks.spawn(Arc::clone(&pool).tick());
    let app = Arc::new(App { config, model: Arc::new(model), pool, metrics });
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY refused");
        }
    });
    let (stopped, mut stopping) = tokio::sync::watch::channel(false);
    let server = axum::serve(listener, http::routes(app)).with_graceful_shutdown(async move {
        stop.await;
        tracing::info!("stopping");
        stopped.send_replace(true);
    });
    let out_of_time = async {
        if stopping.wait_for(|stopped| *stopped).await.is_ok() {
            tokio::time::sleep(GRACE).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let served = tokio::select! {
        served = async { server.await } => served,
        () = out_of_time => {
            tracing::warn!("answers under way were cut");
            Ok(())
        }
    };
    tasks.shutdown().await;
    Ok(served?)
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
