//! The service: who runs, what was seen, what the status stream says. Sequences themselves are [`crate::sequence`]'s.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use m1_proto::worker::worker_server::Worker;
use m1_proto::worker::{
    ApplyPlacementRequest, ApplyPlacementResponse, DrainRequest, DrainResponse, GenerateEvent, GenerateRequest, Phase, Routing,
    StatusRequest, StatusResponse, WatchStatsRequest,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::script::{self, PREFIX, Script, Step};
use crate::sequence::Sequence;

/// The shape of the model it pretends to have: small, so that counts cost nothing here.
pub const LAYERS: u32 = 3;
/// See [`LAYERS`].
pub const EXPERTS: u32 = 4;
/// See [`LAYERS`].
pub const TOP_K: u32 = 2;
/// Remembered attempts of scripted requests.
const REMEMBERED: usize = 4096;
/// How often the status stream speaks, unless it is slow.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// How often a slow one does: rarer than anybody should wait for.
const SLOW_INTERVAL: Duration = Duration::from_secs(20);

/// What it says it has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences at once.
    pub slots: u32,
    /// Between tokens.
    pub gap_ms: u64,
    /// Tokens of a sequence.
    pub max_context: u32,
}

/// What the status stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ready, with its load.
    Ready,
    /// Loading.
    Loading,
    /// Ready, and then nothing for a long time.
    Slow,
    /// Nothing at all.
    Silent,
    /// Numbers that nobody can have.
    Absurd,
    /// The stream ends after every message.
    Broken,
}

impl FromStr for Standing {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "ready" => Self::Ready,
            "loading" => Self::Loading,
            "slow" => Self::Slow,
            "silent" => Self::Silent,
            "absurd" => Self::Absurd,
            "broken" => Self::Broken,
            other => bail!("{other:?} is no standing"),
        })
    }
}

#[derive(Default)]
struct Book {
    started: u64,
    cancelled: u64,
    running: u32,
    /// Those among them that brought a script.
    scripted: u32,
    /// Of scripted requests: id, attempt, script.
    seen: VecDeque<(String, u32, String)>,
    /// What was routed, by router.
    routed: HashMap<String, Routing>,
}

/// Everything that is shared.
pub struct Stage {
    /// What it says it has.
    pub shape: Shape,
    mode: Mutex<Script>,
    /// Scripts of requests that can bring no stop string, by their seed.
    seeded: Mutex<HashMap<u64, Script>>,
    standing: watch::Sender<Standing>,
    book: Mutex<Book>,
}

impl Stage {
    /// Nothing runs yet.
    pub fn new(shape: Shape, mode: Script, standing: Standing) -> Self {
        Self {
            shape,
            mode: Mutex::new(mode),
            seeded: Mutex::default(),
            standing: watch::Sender::new(standing),
            book: Mutex::default(),
        }
    }

    /// What requests without a script get from now on.
    pub fn set_mode(&self, mode: Script) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// What requests with a seed get from now on.
    pub fn set_seeded(&self, seed: u64, script: Script) {
        self.seeded.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, script);
    }

    fn seeded(&self, request: &GenerateRequest) -> Option<Script> {
        let seed = request.sampling.as_ref()?.seed;
        self.seeded.lock().unwrap_or_else(PoisonError::into_inner).get(&seed).cloned()
    }

    /// What requests without a script get.
    pub fn mode(&self) -> Script {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the status stream says from now on.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// What happened so far.
    pub fn count(&self) -> Value {
        let book = self.book();
        json!({"started": book.started, "running": book.running, "scripted": book.scripted, "cancelled": book.cancelled})
    }

    /// Ids and attempts of the requests that brought a script.
    pub fn seen(&self, script: &str) -> Value {
        let book = self.book();
        book.seen.iter().filter(|(_, _, text)| text == script).map(|(id, attempt, _)| json!([id, attempt])).collect()
    }

    /// A sequence ended.
    fn ended(&self, scripted: bool, cancelled: bool) {
        let mut book = self.book();
        book.scripted -= u32::from(scripted);
        book.running = book.running.saturating_sub(1);
        book.cancelled += u64::from(cancelled);
    }

    /// Books a sequence for its router; the tokens booked there so far, or 0 where there is no router.
    pub fn routed(&self, router: &str, routing: &Routing) -> u64 {
        if router.is_empty() {
            return 0;
        }
        let mut book = self.book();
        let all = book.routed.entry(router.to_owned()).or_default();
        (all.layers, all.experts, all.top_k) = (LAYERS, EXPERTS, TOP_K);
        all.tokens += routing.tokens;
        all.executed += routing.executed;
        add(&mut all.expert_tokens, &routing.expert_tokens);
        add(&mut all.expert_skipped, &routing.expert_skipped);
        add(&mut all.expert_lost, &routing.expert_lost);
        all.tokens
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a sequence in.
    fn enter(self: &Arc<Self>, request: &GenerateRequest) -> Result<(Script, Running), Status> {
        let given = request.stop_strings.iter().find_map(|stop| stop.strip_prefix(PREFIX));
        let script = match given {
            Some(text) => text.parse().map_err(|error: anyhow::Error| Status::invalid_argument(error.to_string()))?,
            None => self.seeded(request).unwrap_or_else(|| self.mode()),
        };
        let mut book = self.book();
        if given.is_some() {
            book.seen.push_back((request.request_id.clone(), request.attempt, script.text.clone()));
            if book.seen.len() > REMEMBERED {
                book.seen.pop_front();
            }
        }
        if book.running >= self.shape.slots {
            return Err(Status::resource_exhausted("no slot is free"));
        }
        book.started += 1;
        book.running += 1;
        book.scripted += u32::from(given.is_some());
        Ok((script, Running { stage: Arc::clone(self), scripted: given.is_some(), cancelled: true }))
    }

    fn status(&self, standing: Standing, router: &str) -> StatusResponse {
        let book = self.book();
        let (layers, experts) = if standing == Standing::Absurd { (u32::MAX, u32::MAX) } else { (LAYERS, EXPERTS) };
        let most = if standing == Standing::Absurd { u32::MAX } else { self.shape.slots };
        let phase = if standing == Standing::Loading { Phase::Loading } else { Phase::Ready };
        StatusResponse {
            phase: phase.into(),
            running: book.running,
            state_slots_used: book.running,
            state_slots_total: most,
            kv_blocks_used: book.running.saturating_mul(4),
            kv_blocks_total: most.saturating_mul(4),
            kv_block_tokens: 1024,
            max_context_tokens: self.shape.max_context,
            routing: Some(Routing { layers, experts, top_k: TOP_K, ..Routing::default() }),
            incarnation: u64::from(std::process::id()),
            experts: book.routed.get(router).cloned(),
            ..StatusResponse::default()
        }
    }
}

fn add(all: &mut Vec<u64>, more: &[u64]) {
    all.resize(more.len(), 0);
    all.iter_mut().zip(more).for_each(|(sum, one)| *sum += one);
}

/// The service.
pub struct Work(pub Arc<Stage>);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Work {
    type GenerateStream = Out<GenerateEvent>;
    type WatchStatsStream = Out<StatusResponse>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let (script, guard) = self.0.enter(&request)?;
        match script.steps.first() {
            Some(Step::Break(code, length)) => {
                guard.end();
                return Err(script::status(*code, *length));
            }
            Some(Step::Mute) => std::future::pending::<()>().await,
            Some(Step::Exit) => std::process::exit(9),
            _ => {}
        }
        let (sender, receiver) = mpsc::channel(8);
        let sequence = Sequence::new(Arc::clone(&self.0), request, sender);
        tokio::spawn(async move {
            if !sequence.play(script.steps).await {
                guard.end();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn watch_stats(&self, request: Request<WatchStatsRequest>) -> Result<Response<Self::WatchStatsStream>, Status> {
        let (stage, router) = (Arc::clone(&self.0), request.into_inner().router);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut standings = stage.standing.subscribe();
            loop {
                let standing = *standings.borrow_and_update();
                if standing != Standing::Silent && sender.send(Ok(stage.status(standing, &router))).await.is_err() {
                    return;
                }
                let pause = if standing == Standing::Ready { STATUS_INTERVAL } else { SLOW_INTERVAL };
                tokio::select! {
                    () = sender.closed() => return,
                    _ = standings.changed() => {}
                    () = tokio::time::sleep(pause), if standing != Standing::Broken => {}
                    () = std::future::ready(()), if standing == Standing::Broken => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let standing = *self.0.standing.borrow();
        Ok(Response::new(self.0.status(standing, "")))
    }

    async fn apply_placement(&self, _: Request<ApplyPlacementRequest>) -> Result<Response<ApplyPlacementResponse>, Status> {
        Err(Status::unimplemented("it takes no placement"))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Err(Status::unimplemented("it does not drain"))
    }
}

/// A sequence that was taken in; dropped without [`Running::end`], its caller has gone.
struct Running {
    stage: Arc<Stage>,
    scripted: bool,
    cancelled: bool,
}

impl Running {
    fn end(mut self) {
        self.cancelled = false;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stage.ended(self.scripted, self.cancelled);
    }
}
