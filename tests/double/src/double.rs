//! Starts and ends doubles: in this process ([`Double`]), or as all a process does ([`serve`]).

use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use m1_proto::worker::StatusResponse;
use m1_proto::worker::worker_server::WorkerServer;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::Settings;
use crate::board::{Board, Tally};
use crate::script::Script;
use crate::service::{Service, Stage};

/// HTTP/2 windows, as a worker's.
const WINDOW: u32 = 16 << 20;
/// Longest request, as a worker's: a million tokens and their like.
const MESSAGE_LIMIT: usize = 64 << 20;

/// Why a double does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// No runtime.
    #[error("start a runtime")]
    Runtime(#[source] std::io::Error),
    /// What was to run beside it does not.
    #[error("start what runs beside it")]
    Ready(#[source] std::io::Error),
    /// The server ended.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

impl StartError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "ListenFailed",
            Self::Runtime(_) => "RuntimeFailed",
            Self::Ready(_) => "ReadyFailed",
            Self::Serve(_) => "ServeFailed",
        }
    }
}

/// What can be asked of a double and changed in it while it runs.
#[derive(Clone)]
pub struct Control(Arc<Stage>);

impl Control {
    fn new(settings: Settings, script: impl Script) -> Self {
        let board = Arc::new(Board::new(settings));
        Self(Arc::new(Stage { board, script: RwLock::new(Arc::new(script)) }))
    }

    /// Does something else for the calls that come from now on.
    pub fn script(&self, script: impl Script) {
        *self.0.script.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(script);
    }

    /// Lets every hold, now and later, go on.
    pub fn release(&self) {
        self.0.board.release();
    }

    /// What has come of the calls; can be waited on.
    pub fn tally(&self) -> watch::Receiver<Tally> {
        self.0.board.tally()
    }

    /// What it tells of itself now.
    pub fn status(&self) -> StatusResponse {
        crate::status::status(&self.0.board, "", false)
    }

    /// Its state, to change by force: another phase, another epoch.
    pub fn board(&self) -> &Arc<Board> {
        &self.0.board
    }
}

/// A double on a thread of its own. Dropping it kills it.
pub struct Double {
    address: SocketAddr,
    control: Control,
    runtime: Option<Runtime>,
}

impl Double {
    /// Starts one on a free port of loopback.
    ///
    /// # Errors
    /// No port, or no thread.
    pub fn start(settings: Settings, script: impl Script) -> Result<Self, StartError> {
        Self::start_at("127.0.0.1:0", settings, script)
    }

    /// Starts one at an address.
    ///
    /// # Errors
    /// The address is taken, or there is no thread.
    pub fn start_at(address: &str, settings: Settings, script: impl Script) -> Result<Self, StartError> {
        let (listener, address) = listen(address)?;
        let control = Control::new(settings, script);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(StartError::Runtime)?;
        runtime.spawn(run(listener, control.clone()));
        Ok(Self { address, control, runtime: Some(runtime) })
    }

    /// HOST:PORT.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Dies: every connection closes, and nobody listens any more.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Deref for Double {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

/// Serves at an address on this thread until the process ends. `ready` hears where; it runs inside the server's runtime, so it may spawn.
///
/// # Errors
/// The address is taken, or the server broke.
pub fn serve(
    address: &str,
    settings: Settings,
    script: impl Script,
    ready: impl AsyncFnOnce(SocketAddr, Control) -> std::io::Result<()>,
) -> Result<(), StartError> {
    let (listener, address) = listen(address)?;
    let control = Control::new(settings, script);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    runtime.block_on(async {
        ready(address, control.clone()).await.map_err(StartError::Ready)?;
        run(listener, control).await
    })
}

fn listen(address: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let wrong = |source| StartError::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    Ok((listener, address))
}

async fn run(listener: TcpListener, control: Control) -> Result<(), StartError> {
    let wrong = |source| StartError::Listen { address: "a bound socket".to_owned(), source };
    let listener = tokio::net::TcpListener::from_std(listener).map_err(wrong)?;
    // Without it an answer waits for the delayed ACK of the one before.
    let incoming =
        TcpListenerStream::new(listener).map(|stream| stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream)));
    let service = WorkerServer::new(Service::new(control.0)).max_decoding_message_size(MESSAGE_LIMIT);
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
