//! The router: HTTP in front (OpenAI's API, M1's own, metrics), workers behind. It owns text and admission; what to decide is `m1-router-core`'s, what
//! text means is `m1-text`'s. It holds no state that a restart would lose but running answers.
//!
//! A request: [`server`] (bytes, in time) -> [`http`] (path, key, body) -> [`requests`] (checked, an [`order`]) -> [`session`] (its owner: queue, lease, one
//! worker's stream, the log of what came) -> [`generation`] (a reader of that log: text) -> one body or [`sse`]. Which workers there are comes from
//! [`groups`], now and while it runs.

pub mod alarm;
pub mod config;
pub mod drain;
pub mod error;
pub mod generate;
pub mod generation;
pub mod groups;
pub mod http;
pub mod keys;
pub mod loops;
mod memory;
pub mod metrics;
pub mod model;
pub mod openai;
pub mod order;
pub mod reading;
pub mod requests;
pub mod server;
pub mod session;
pub mod sse;
pub mod workers;

use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use m1_router_core::Topology;
use m1_runtime::tls::{self, Tls, TlsError};
use m1_weights::source::{Location, Settings, Source, SourceError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use config::Config;
use drain::Stops;
use keys::{Keys, KeysError};
use loops::Loops;
use metrics::Metrics;
use model::{Model, ModelError};
use order::Limits;
use reading::Readers;
use workers::Pool;

/// Why the router cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The model's files.
    #[error("cannot open the model")]
    Model(#[from] ModelError),
    /// The model's files, which lie elsewhere.
    #[error("cannot fetch the model")]
    Fetch(#[from] SourceError),
    /// The API keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The name for certificates.
    #[error("--tls-name")]
    Tls(#[from] TlsError),
    /// The metrics' names.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// The threads that serve.
    #[error("cannot start a thread")]
    Threads(#[from] std::io::Error),
    /// The model or the keys could not be opened for want of a thread.
    #[error("the task that opens the model and the keys died")]
    Task(#[from] tokio::task::JoinError),
}

impl RouterError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Model(error) => error.reason(),
            Self::Fetch(error) => error.reason(),
            Self::Keys(error) => error.reason(),
            Self::Tls(_) => "BadName",
            Self::Metrics(_) => "BadMetrics",
            Self::Threads(_) => "NoThread",
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
    /// Who may ask; none: everybody may.
    pub keys: Option<Arc<Keys>>,
    /// Who reads long requests, and how many at once.
    pub readers: Readers,
    /// Ends the requests under way.
    pub ending: CancellationToken,
    leaving: AtomicBool,
}

impl App {
    /// Tokens of prompt and output together: the configured bound, or the workers' own where that is less.
    pub fn window(&self) -> u32 {
        self.config.max_context.min(self.pool.max_context().unwrap_or(u32::MAX))
    }

    /// What one request may ask for.
    pub fn limits(&self) -> Limits {
        Limits { window: self.window(), output: self.config.max_output_tokens }
    }

    /// The end is near: nobody should send anything more.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether the end is near.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }
}

/// Serves the groups of `topologies` on `listener`, until it was asked to stop and running answers have ended or are cut.
///
/// # Errors
/// The model or the keys cannot be opened, or the socket fails.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    topologies: watch::Receiver<Topology>,
    stops: Stops,
) -> Result<(), RouterError> {
    let (place, fetch, name) = (config.model.clone(), config.fetch.clone(), config.served_name.clone());
    let key_dir = config.api_keys.clone();
    let open = move || {
        let dir = model_dir(place, fetch)?;
        Ok::<_, RouterError>((Model::open(&dir, name)?, key_dir.map(Keys::open).transpose()?))
    };
    let (model, keys) = tokio::select! {
        opened = tokio::task::spawn_blocking(open) => opened??,
        // Nobody was served yet.
        () = stops.reached(1) => return Ok(()),
    };
    let metrics = Arc::new(Metrics::new(&config.served_name)?);
    let seed = RandomState::new().hash_one(now_seconds());
    let mut tasks = JoinSet::new();
    let tls = config.tls.as_ref().map(|(_, name)| Tls::new(name)).transpose()?;
    if let (Some(tls), Some((folder, _))) = (&tls, &config.tls) {
        tasks.spawn(tls.clone().follow(folder.clone(), tls::INTERVAL));
    }
    let loops = Arc::new(Loops::start(config.threads)?);
    let pool = Pool::new(config.patience, seed, Arc::clone(&metrics), Arc::clone(&loops), tls);
    tasks.spawn(Arc::clone(&pool).follow(topologies));
    tasks.spawn(Arc::clone(&pool).tick());
    tasks.spawn(memory::give_back());
    if let Some(keys) = &keys {
        tasks.spawn(Arc::clone(keys).follow(keys::INTERVAL));
    }
    let grace = config.grace;
    let readers = Readers::new(config.bodies.bytes);
    let app = Arc::new(App {
        config,
        model: Arc::new(model),
        pool,
        metrics,
        keys,
        readers,
        ending: CancellationToken::new(),
        leaving: AtomicBool::new(false),
    });
    let (closing, cut) = (CancellationToken::new(), CancellationToken::new());
    let mut served = std::pin::pin!(server::serve(Arc::clone(&app), &loops, listener, closing.clone(), cut.clone()));
    let mut ending = std::pin::pin!(async {
        drain::closing(&app, stops.clone()).await;
        closing.cancel();
        drain::cutting(grace.drain, stops).await;
        tracing::warn!("answers under way are ended");
        app.ending.cancel();
        // Their clients are told.
        tokio::time::sleep(drain::LAST_WORD).await;
        cut.cancel();
        std::future::pending::<()>().await;
    });
    tokio::select! {
        () = &mut served => {}
        () = &mut ending => {}
    }
    tasks.shutdown().await;
    Ok(())
}

/// The folder of config and tokenizer, fetched where they lie elsewhere.
fn model_dir(place: Location, fetch: Option<Settings>) -> Result<PathBuf, SourceError> {
    match (place, fetch) {
        (Location::Folder(dir), _) => Ok(dir),
        (place, fetch) => {
            let source = fetch.map(|settings| Source::open(&place, &settings)).transpose()?.flatten();
            // A configuration has settings for every place that is no folder.
            Ok(source.ok_or(SourceError::Stopped)?.texts(&mut |_| ControlFlow::Continue(()))?.dir())
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
