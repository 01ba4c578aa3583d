//! `m1-worker serve`: binds the addresses, opens the checkpoint, starts the device thread and the services, and ends them in
//! order: drain (see `drain.rs`), stop the device thread, close connections. Ends when a signal comes, when the device thread
//! has ended, or when a checkpoint that could not be used may be usable now; a second signal ends it without a drain.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use m1_engine::{AllowedIds, RoutingShape};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::worker as pb;
use m1_proto::worker::worker_server::WorkerServer;
use m1_runtime::admin::Admin;
use m1_runtime::listener;
use m1_runtime::member::Guard;
use m1_runtime::shutdown::Signal;
use m1_runtime::tls::{self, Tls};
use m1_text::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;

use crate::config::Config;
use crate::device::{self, DeviceHandle, DeviceMessage, Parts, Remote};
use crate::drain::{Drained, drain};
use crate::open::{Model, Opened};
use crate::probes::Probes;
use crate::service::{Live, WorkerService};
use crate::status::SharedStatus;
use crate::tallies::Tallies;
use crate::transport::{DeviceIo, DeviceIoHandle, Dialer, DispatchService, HTTP2_FRAME, HTTP2_WINDOW, Identity, serve_driven};
use crate::watch::{self, Again};

/// Threads of the async runtime: connections only, the mathematics has its own thread.
const IO_THREADS: usize = 2;
/// How often the device thread is woken when nothing comes: timers of the dispatch rules are a multiple of it.
const TICK: Duration = Duration::from_millis(20);
/// A request of ten million prompt ids takes 31 MB; the router sends no larger message either.
const MESSAGE_LIMIT: usize = 64 << 20;
/// A connection that is silent is probed after this and given up after as much again: a caller that is gone with its node says
/// nothing, and its sequences hold slots.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the device thread and connections may take to end once they are told to. Only a device that is reading weights
/// takes longer, for minutes, and nobody waits for what it reads.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What is left of a worker that has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Nothing.
    Whole,
    /// The device thread, in the middle of something long. The process must end without the tensor library's destructors.
    DeviceLeftBehind,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// See [`serve`].
pub fn run(config: Config) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let served = runtime.block_on(async {
        let signals = m1_runtime::shutdown::signals();
        let sockets = Sockets::bind(&config).await?;
        serve(config, sockets, signals).await
    });
    // A file system that hangs must not hold the process.
    runtime.shutdown_background();
    served
}

/// Bound addresses. Nothing slow comes before them: whoever connects waits instead of being refused.
#[derive(Debug)]
pub struct Sockets {
    grpc: TcpListener,
    admin: Option<Admin>,
}

impl Sockets {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// An address is taken or not this machine's.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let grpc = listener::listen(config.listen, config.listen_fd).await?;
        let admin = match config.admin {
            Some(address) => Some(Admin::bind(address).await.context("--admin")?),
            None => None,
        };
        Ok(Self { grpc, admin })
    }
}

/// What every part of a running worker is given.
#[derive(Debug, Clone)]
struct Shared {
    events: DeviceHandle,
    status: Arc<SharedStatus>,
    /// Connections and other tasks that end with `stop`.
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when the device thread has ended.
    ended: CancellationToken,
    /// This pod's identity; none where nothing is encrypted.
    tls: Option<Tls>,
}

/// Serves on `sockets` until something of `signals` or of its own accord ends it.
///
/// # Errors
/// A part cannot be started or ends with an error.
pub async fn serve(config: Config, sockets: Sockets, mut signals: mpsc::Receiver<Signal>) -> anyhow::Result<Ended> {
    let (events, inbox) = DeviceHandle::channel();
    let status = Arc::new(SharedStatus::new(first_status(&config)));
    let (tasks, stop, ended, tls) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new(), identity(&config)?);
    let shared = Shared { events, status, tasks, stop, ended, tls };
    let _stopping = shared.stop.clone().drop_guard();
    if let Some(admin) = sockets.admin {
        let checks = Probes::new(shared.status.clone(), shared.ended.clone());
        shared.tasks.spawn(admin.serve(Arc::new(checks), shared.stop.clone().cancelled_owned()));
    }
    let opening = {
        let (config, status) = (config.clone(), shared.status.clone());
        tokio::task::spawn_blocking(move || Opened::open(&config, &status))
    };
    let opened = tokio::select! {
        opened = opening => opened.context("opening the checkpoint failed")?,
        Some(signal) = signals.recv() => {
            tracing::info!(?signal, "nothing runs yet, so nothing is drained");
            return Ok(Ended::Whole);
        }
    };
    let Opened { model, tokenizer, again } = opened;
    let identity = model.as_ref().map(|model| model.identity.clone());
    let tallies = identity.as_ref().map(|identity| Arc::new(Tallies::new(RoutingShape::of(&identity.arch))));
    let (thread, device) = match model.zip(tallies.clone()) {
        Some((model, tallies)) => {
            let io = DeviceIo::new().context("cannot start the device's connections")?;
            let handle = io.handle();
            (Some(start_device(&config, &shared, (model, tallies), tokenizer.as_deref(), (io, inbox))?), Some(handle))
        }
        None => {
            // Nobody takes messages, so nobody shall wait for an answer to one.
            drop(inbox);
            (None, None)
        }
    };
    shared.tasks.spawn(ticker(shared.events.clone(), shared.status.clone(), shared.stop.clone()));
    tracing::info!(address = %sockets.grpc.local_addr()?, pod = config.pod, "m1-worker listens");
    let mut server = tokio::spawn(listen(config.clone(), shared.clone(), (identity, tallies), tokenizer, (sockets.grpc, device)));
    tokio::select! {
        () = until_over(&config, &shared, again, &mut signals) => {}
        served = &mut server => return served.context("the gRPC server panicked")?.map(|()| Ended::Whole),
    }
    let ends = async {
        // The device thread may have ended by itself.
        let _ = shared.events.send(DeviceMessage::Stop).await;
        shared.stop.cancel();
        shared.tasks.close();
        let served = server.await;
        shared.tasks.wait().await;
        if let Some(thread) = thread {
            shared.ended.cancelled().await;
            thread.join().map_err(|_| anyhow::anyhow!("the device thread panicked"))?;
        }
        served.context("the gRPC server panicked")?.map(|()| Ended::Whole)
    };
    match tokio::time::timeout(STOP_LIMIT, ends).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!(limit = ?STOP_LIMIT, "the device thread is in the middle of something long and is left behind");
            Ok(Ended::DeviceLeftBehind)
        }
    }
}

/// The identity of this pod, read again whenever its files change.
fn identity(config: &Config) -> anyhow::Result<Option<Tls>> {
    let Some((folder, name)) = &config.tls else { return Ok(None) };
    let tls = Tls::new(name).context("--tls-name")?;
    tls.read(folder).context("--tls-dir")?;
    tokio::spawn(tls.clone().follow(folder.clone(), tls::INTERVAL));
    Ok(Some(tls))
}

/// Waits for a reason to end, and drains where it is a signal.
async fn until_over(config: &Config, shared: &Shared, again: Again, signals: &mut mpsc::Receiver<Signal>) {
    let again = async {
        let passed = watch::passed(watch::EVERY, watch::PAUSE, || shared.status.failed_for_now());
        match again {
            Again::Files(watch) => tokio::select! {
                () = watch.changed(watch::EVERY, || shared.status.brief().phase() == pb::Phase::Failed) => {}
                () = passed => {}
            },
            Again::Time => passed.await,
        }
    };
    let signal = tokio::select! {
        Some(signal) = signals.recv() => signal,
        // Without its device this pod is of no use; whoever supervises it starts it anew.
        () = shared.ended.cancelled() => return tracing::error!("the device thread has ended"),
        () = again => return tracing::info!("the checkpoint may be usable now: this process ends, so that another one tries"),
    };
    tracing::info!(?signal, seconds = config.drain.as_secs(), "draining");
    let drained = tokio::select! {
        drained = drain(&shared.events, &shared.status, config.drain) => drained,
        () = shared.ended.cancelled() => return tracing::error!("the device thread has ended"),
        Some(signal) = signals.recv() => return tracing::warn!(?signal, "a second signal ends the drain"),
    };
    match drained {
        Drained::Done => tracing::info!("drained: no sequence is left, no peer needs this pod"),
        Drained::PeersLeft => tracing::warn!("drained: no sequence is left; peers still ask for experts"),
        Drained::SequencesLeft(left) => tracing::warn!(left, "the time to drain is over: what is left of sequences fails"),
    }
}

/// Starts the device thread.
fn start_device(
    config: &Config,
    shared: &Shared,
    (Model { checkpoint, identity, snapshot }, tallies): (Model, Arc<Tallies>),
    tokenizer: Option<&Tokenizer>,
    (io, inbox): (DeviceIo, mpsc::Receiver<DeviceMessage>),
) -> anyhow::Result<JoinHandle<()>> {
    let vocab = identity.arch.vocab as u32;
    let dialer = Dialer {
        identity,
        events: shared.events.clone(),
        status: shared.status.clone(),
        tasks: shared.tasks.clone(),
        generations: Arc::default(),
        tls: shared.tls.clone(),
        device: Some(io.handle()),
        member: config.member.clone(),
    };
    let parts = Parts {
        checkpoint,
        load: device::load,
        remote: snapshot.map(|snapshot| Remote { snapshot, events: shared.events.clone(), given_up: false }),
        known: tokenizer.map_or_else(|| AllowedIds::all(vocab), |t| AllowedIds::from_ids(vocab, t.known_ids())),
        transport: Box::new(dialer),
        status: shared.status.clone(),
        tallies,
        runtime: tokio::runtime::Handle::current(),
    };
    Ok(device::spawn(config, parts, io, inbox, shared.ended.clone())?)
}

/// Serves gRPC until the worker stops and its streams have ended.
async fn listen(
    config: Config,
    shared: Shared,
    (identity, tallies): (Option<Arc<Identity>>, Option<Arc<Tallies>>),
    tokenizer: Option<Arc<Tokenizer>>,
    (listener, device): (TcpListener, Option<DeviceIoHandle>),
) -> anyhow::Result<()> {
    let Shared { events, status, tasks, stop, tls, .. } = shared;
    let guard = Guard::new(config.member.clone());
    let dispatch = DispatchService {
        guard: guard.clone(),
        identity: identity.clone(),
        events: events.clone(),
        status: status.clone(),
        tasks,
        stop: stop.clone(),
        generations: Arc::default(),
        driven: Default::default(),
    };
    let urgent = device.map(|io| serve_driven(&io, dispatch.clone(), guard.clone(), stop.clone()));
    let limits = identity.as_ref().map(|identity| config.limits(&identity.arch));
    let live = Live::new(config.raw_logits_limit);
    let worker =
        WorkerService { guard: guard.clone(), events, status, identity, tokenizer, limits, tallies, live, stop: stop.clone() };
    Server::builder()
        .layer(InterceptorLayer::new(guard))
        .max_frame_size(HTTP2_FRAME)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(WorkerServer::new(worker).max_decoding_message_size(MESSAGE_LIMIT))
        .add_service(ExpertDispatchServer::new(dispatch))
        .serve_with_incoming_shutdown(tls::sorted(listener, tls, urgent), stop.cancelled_owned())
        .await
        .context("the gRPC server failed")
}

fn first_status(config: &Config) -> pb::StatusResponse {
    pb::StatusResponse {
        pod: config.pod.into(),
        member: config.member.as_ref().map(ToString::to_string).unwrap_or_default(),
        phase: pb::Phase::Waiting.into(),
        message: "the checkpoint is being opened".into(),
        state_slots_total: config.slots,
        kv_blocks_total: m1_engine::CacheSize::for_tokens(config.slots, config.kv_tokens.into()).kv_blocks,
        kv_block_tokens: m1_engine::KV_BLOCK_TOKENS as u32,
        max_context_tokens: config.max_context,
        incarnation: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
        ..Default::default()
    }
}

async fn ticker(events: DeviceHandle, status: Arc<SharedStatus>, stop: CancellationToken) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => events.tick(status.pulses()),
        }
    }
}

#[cfg(test)]
mod tests;
