//! `m1-worker serve`: binds the address, starts the device thread and the gRPC services, and on SIGTERM ends them in
//! order: stop admission, let sequences finish within the grace, stop the device thread, close connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use m1_engine::AllowedIds;
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::worker as pb;
use m1_proto::worker::worker_server::WorkerServer;
use m1_weights::Checkpoint;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::config::Config;
use crate::device::{self, Events, Inbox, Parts};
use crate::service::WorkerService;
use crate::status::SharedStatus;
use crate::transport::{Dialer, DispatchService, HTTP2_FRAME, HTTP2_WINDOW, Identity};

/// Threads of the async runtime: connections only, the mathematics has its own thread.
const IO_THREADS: usize = 2;
/// How often the device thread is woken when nothing comes: timers of the dispatch rules are a multiple of it.
const TICK: Duration = Duration::from_millis(20);
/// A request of ten million prompt ids takes 31 MB; the router sends no larger message either.
const MESSAGE_LIMIT: usize = 64 << 20;
/// How long running sequences may go on after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(config.listen).await.with_context(|| format!("--listen: cannot bind {}", config.listen))?;
    let (events, inbox) = Events::channel();
    let status = Arc::new(SharedStatus::new(first_status(&config)));
    let (checkpoint, identity) = open(&config, &status);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let tokenizer = identity.as_ref().and_then(|_| crate::text::open_tokenizer(&config.model));
    let ended = CancellationToken::new();
    let mut thread = None;
    if let (Some(checkpoint), Some(identity)) = (checkpoint, &identity) {
        let vocab = identity.arch.vocab as u32;
        let dialer = Dialer {
            identity: identity.clone(),
            events: events.clone(),
            status: status.clone(),
            tasks: tasks.clone(),
            generations: Arc::default(),
        };
        let known = tokenizer.as_ref().map_or_else(|| AllowedIds::all(vocab), |t| AllowedIds::from_ids(vocab, t.known_ids()));
        let parts = Parts {
            checkpoint,
            known,
            transport: Box::new(dialer),
            status: status.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        thread = Some(device::spawn(&config, parts, inbox, ended.clone())?);
    }
    let ticks = tasks.spawn(ticker(events.clone(), stop.clone()));
    let dispatch = DispatchService {
        identity: identity.clone(),
        events: events.clone(),
        status: status.clone(),
        tasks: tasks.clone(),
        stop: stop.clone(),
        generations: Arc::default(),
    };
    let limits = identity.as_ref().map(|identity| config.limits(&identity.arch));
    let worker = WorkerService { events: events.clone(), status: status.clone(), identity, tokenizer, limits, stop: stop.clone() };
    tracing::info!(address = %listener.local_addr()?, pod = config.pod, "m1-worker listens");
    let shutdown = shutdown(events, status, stop.clone(), ended);
    // Of accepted sockets; the builder's own option does not reach them. Without it answers wait for delayed ACKs: 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .max_frame_size(HTTP2_FRAME)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .add_service(WorkerServer::new(worker).max_decoding_message_size(MESSAGE_LIMIT))
        .add_service(ExpertDispatchServer::new(dispatch))
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
        .context("the gRPC server failed")?;
    ticks.await?;
    tasks.close();
    tasks.wait().await;
    if let Some(thread) = thread {
        thread.join().map_err(|_| anyhow::anyhow!("the device thread panicked"))?;
    }
    Ok(())
}

/// Opens the checkpoint. A broken one does not end the process: `Status` says what is wrong, and nothing is retried.
fn open(config: &Config, status: &SharedStatus) -> (Option<Checkpoint>, Option<Arc<Identity>>) {
    match Checkpoint::open(&config.model) {
        Ok(checkpoint) => {
            let identity =
                Identity { pod: config.pod, digest: checkpoint.digest().to_owned(), arch: checkpoint.architecture().clone() };
            status.update(|s| {
                s.weights_digest = identity.digest.clone();
                s.bytes_checkpoint = checkpoint.total_bytes();
            });
            (Some(checkpoint), Some(Arc::new(identity)))
        }
        Err(error) => {
            tracing::error!(error = %error, "the checkpoint cannot be used");
            status.update(|s| {
                s.set_phase(pb::Phase::Failed);
                s.reason = error.reason().into();
                s.message = error.to_string();
            });
            (None, None)
        }
    }
}

fn first_status(config: &Config) -> pb::StatusResponse {
    pb::StatusResponse {
        pod: config.pod.into(),
        phase: pb::Phase::Waiting.into(),
        message: "no placement yet".into(),
        state_slots_total: config.slots,
        max_context_tokens: config.max_context,
        ..Default::default()
    }
}

async fn ticker(events: Events, stop: CancellationToken) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => events.try_send(Inbox::Tick),
        }
    }
}

async fn shutdown(events: Events, status: Arc<SharedStatus>, stop: CancellationToken, ended: CancellationToken) {
    tokio::select! {
        _ = m1_runtime::shutdown::signal() => {}
        // Without its device this pod is of no use; the supervisor starts it anew.
        () = ended.cancelled() => {}
    }
    tracing::info!("draining");
    if events.send(Inbox::Drain).await.is_ok() {
        drained(&status, GRACE).await;
    }
    // The device thread may have ended by itself.
    let _ = events.send(Inbox::Stop).await;
    stop.cancel();
}

/// Waits until no sequence is left or the deadline has passed; returns how many are left.
pub async fn drained(status: &SharedStatus, deadline: Duration) -> u32 {
    let began = Instant::now();
    loop {
        let now = status.read();
        let left = now.running + now.waiting;
        if left == 0 || began.elapsed() >= deadline {
            return left;
        }
        tokio::time::sleep(TICK).await;
    }
}
