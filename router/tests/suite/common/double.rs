//! An engine double: a gRPC server that speaks `m1.worker.v1` and says what its script says. It counts, stops and routes as a worker must. It lives in a
//! runtime of its own, so that it can die like a process: every connection at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use m1_proto::worker::generate_event::Event;
use m1_proto::worker::worker_server::{Worker, WorkerServer};
use m1_proto::worker::{
    ApplyPlacementRequest, ApplyPlacementResponse, DrainRequest, DrainResponse, FinishReason, Finished, GenerateEvent,
    GenerateRequest, Phase, Routing, StatusRequest, StatusResponse, TokenLogprobs, Tokens, WatchStatsRequest,
};
use m1_text::Tokenizer;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};

pub const LAYERS: u32 = 3;
pub const EXPERTS: u32 = 4;
pub const TOP_K: u32 = 2;

/// One thing a double does for a sequence.
#[derive(Clone, Debug)]
pub enum Act {
    /// The text's tokens, one a message.
    Say(&'static str),
    /// The text's tokens in one message.
    Burst(&'static str),
    /// The token that ends an answer.
    Eos,
    /// Waits for `release`.
    Hold,
    /// The stream breaks with this code.
    Break(Code),
    /// `Finished` with an error.
    Fail(&'static str),
    /// `Finished` with counts that do not add up.
    Miscount,
    /// `Finished` without a reason.
    Shrug,
    /// A token with so many alternatives, whatever was asked for.
    Alternatives(u32),
}

pub struct Stage {
    acts: Mutex<Vec<Act>>,
    refusals: Mutex<VecDeque<Code>>,
    seen: watch::Sender<Vec<GenerateRequest>>,
    cancelled: watch::Sender<u32>,
    released: Semaphore,
    status: watch::Sender<StatusResponse>,
    tokenizer: Tokenizer,
}

pub struct Double {
    pub address: String,
    stage: Arc<Stage>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Double {
    /// Starts a ready one.
    pub fn start(pod: u32) -> Self {
        let routing = Routing { layers: LAYERS, experts: EXPERTS, top_k: TOP_K, ..Routing::default() };
        let status = StatusResponse {
            pod,
            phase: Phase::Ready.into(),
            state_slots_total: 4,
            kv_blocks_used: 1,
            kv_blocks_total: 4,
            max_context_tokens: 2048,
            routing: Some(routing),
            ..StatusResponse::default()
        };
        let stage = Arc::new(Stage {
            acts: Mutex::new(vec![Act::Say("hi"), Act::Eos]),
            refusals: Mutex::default(),
            seen: watch::Sender::new(Vec::new()),
            cancelled: watch::Sender::new(0),
            released: Semaphore::new(0),
            status: watch::Sender::new(status),
            tokenizer: super::tokenizer(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = WorkerServer::new(Play(Arc::clone(&stage)));
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, stage, runtime: Some(runtime) }
    }

    /// What it does for the sequences that come.
    pub fn script(&self, acts: &[Act]) {
        *self.stage.acts.lock().unwrap() = acts.to_vec();
    }

    /// The next request gets this status instead of a stream.
    pub fn refuse_once(&self, code: Code) {
        self.stage.refusals.lock().unwrap().push_back(code);
    }

    /// Lets every `Hold`, now and later, go on.
    pub fn release(&self) {
        self.stage.released.add_permits(1000);
    }

    /// Says something else of itself.
    pub fn status(&self, change: impl FnOnce(&mut StatusResponse)) {
        self.stage.status.send_modify(change);
    }

    /// Status streams that are open.
    pub fn followers(&self) -> usize {
        self.stage.status.receiver_count()
    }

    /// Requests so far.
    pub fn seen(&self) -> Vec<GenerateRequest> {
        self.stage.seen.borrow().clone()
    }

    /// Waits until it has got so many requests.
    pub async fn wait_seen(&self, count: usize) {
        let mut seen = self.stage.seen.subscribe();
        let wait = seen.wait_for(|seen| seen.len() >= count);
        tokio::time::timeout(super::PATIENCE, wait).await.expect("the request came").unwrap();
    }

    /// Waits until a stream was dropped by its client.
    pub async fn wait_cancelled(&self) {
        let mut cancelled = self.stage.cancelled.subscribe();
        let wait = cancelled.wait_for(|count| *count > 0);
        tokio::time::timeout(super::PATIENCE, wait).await.expect("the stream was dropped").unwrap();
    }

    /// Dies: every connection closes.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Play(Arc<Stage>);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Play {
    type GenerateStream = Out<GenerateEvent>;
    type WatchStatsStream = Out<StatusResponse>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        self.0.seen.send_modify(|seen| seen.push(request.clone()));
        if let Some(code) = self.0.refusals.lock().unwrap().pop_front() {
            return Err(Status::new(code, "scripted"));
        }
        let (sender, receiver) = mpsc::channel(1);
        let acts = self.0.acts.lock().unwrap().clone();
        let sequence = Sequence { stage: Arc::clone(&self.0), request, sender, output: Vec::new() };
        tokio::spawn(sequence.play(acts));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn watch_stats(&self, _: Request<WatchStatsRequest>) -> Result<Response<Self::WatchStatsStream>, Status> {
        Ok(Response::new(Box::pin(WatchStream::new(self.0.status.subscribe()).map(Ok))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.0.status.borrow().clone()))
    }

    async fn apply_placement(&self, _: Request<ApplyPlacementRequest>) -> Result<Response<ApplyPlacementResponse>, Status> {
        Err(Status::unimplemented("a double takes no placement"))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Err(Status::unimplemented("a double does not drain"))
    }
}

struct Sequence {
    stage: Arc<Stage>,
    request: GenerateRequest,
    sender: mpsc::Sender<Result<GenerateEvent, Status>>,
    output: Vec<u32>,
}

/// The sequence is over.
struct Over;

impl Sequence {
    async fn play(mut self, acts: Vec<Act>) {
        for act in acts {
            if self.act(act).await.is_err() {
                return;
            }
        }
        let _ = self.finish(FinishReason::FinishStop, "").await;
    }

    async fn act(&mut self, act: Act) -> Result<(), Over> {
        match act {
            Act::Say(text) => {
                for id in self.stage.tokenizer.encode(text).unwrap() {
                    self.tokens(&[id]).await?;
                }
                Ok(())
            }
            Act::Burst(text) => self.tokens(&self.stage.tokenizer.encode(text).unwrap()).await,
            Act::Eos => {
                let eos = self.stage.tokenizer.eos_ids()[0];
                self.tokens(&[eos]).await
            }
            Act::Hold => tokio::select! {
                permit = self.stage.released.acquire() => {
                    permit.unwrap().forget();
                    Ok(())
                }
                () = self.sender.closed() => {
                    self.stage.cancelled.send_modify(|count| *count += 1);
                    Err(Over)
                }
            },
            Act::Break(code) => {
                let _ = self.sender.send(Err(Status::new(code, "scripted"))).await;
                Err(Over)
            }
            Act::Fail(reason) => {
                let mut finished = self.finished(FinishReason::FinishError);
                finished.error_reason = reason.to_owned();
                finished.error_message = "scripted".to_owned();
                self.send(Event::Finished(finished)).await?;
                Err(Over)
            }
            Act::Shrug => {
                let finished = self.finished(FinishReason::FinishUnspecified);
                self.send(Event::Finished(finished)).await?;
                Err(Over)
            }
            Act::Alternatives(count) => {
                let logprobs = vec![TokenLogprobs::new(-0.5, (0..count).map(|id| (id, -0.5)))];
                self.send(Event::Tokens(Tokens { ids: vec![300], logprobs })).await
            }
            Act::Miscount => {
                let mut finished = self.finished(FinishReason::FinishStop);
                finished.routing.as_mut().unwrap().expert_tokens[0] += 1;
                self.send(Event::Finished(finished)).await?;
                Err(Over)
            }
        }
    }

    async fn tokens(&mut self, ids: &[u32]) -> Result<(), Over> {
        let (mut out, mut end) = (Tokens::default(), None);
        for id in ids {
            self.output.push(*id);
            out.ids.push(*id);
            if self.request.logprobs > 0 {
                out.logprobs.push(TokenLogprobs::new(-0.5, (0..self.request.logprobs - 1).map(|n| (id + n, -0.5))));
            }
            let text = self.stage.tokenizer.decode(&self.output);
            let stop = self.request.stop_strings.iter().find(|stop| text.contains(stop.as_str())).cloned();
            if self.request.stop_ids.contains(id) || stop.is_some() {
                end = Some((FinishReason::FinishStop, stop.unwrap_or_default()));
            } else if self.output.len() == self.request.max_tokens as usize {
                end = Some((FinishReason::FinishLength, String::new()));
            }
            if end.is_some() {
                break;
            }
        }
        self.send(Event::Tokens(out)).await?;
        match end {
            Some((reason, stop)) => self.finish(reason, &stop).await,
            None => Ok(()),
        }
    }

    async fn finish(&mut self, reason: FinishReason, stop: &str) -> Result<(), Over> {
        let finished = Finished { stop_string: stop.to_owned(), ..self.finished(reason) };
        self.send(Event::Finished(finished)).await?;
        Err(Over)
    }

    async fn send(&self, event: Event) -> Result<(), Over> {
        self.sender.send(Ok(GenerateEvent { event: Some(event) })).await.map_err(|_| Over)
    }

    fn finished(&self, reason: FinishReason) -> Finished {
        let (prompt_tokens, output_tokens) = (self.request.prompt.len() as u32, self.output.len() as u32);
        let routing = route(prompt_tokens + output_tokens.saturating_sub(1), self.request.expert_threshold < 1.0);
        // The router knows what it sent and what came; nobody believes these.
        let (prompt_tokens, output_tokens) = (0, u32::MAX);
        Finished { reason: reason.into(), prompt_tokens, output_tokens, routing: Some(routing), ..Finished::default() }
    }
}

/// Counts of so many tokens, dealt out in turn; with a threshold every fourth expert use is skipped.
fn route(tokens: u32, skip: bool) -> Routing {
    let zero = vec![0u64; (LAYERS * EXPERTS) as usize];
    let mut routing = Routing {
        tokens: u64::from(tokens),
        layers: LAYERS,
        experts: EXPERTS,
        top_k: TOP_K,
        expert_tokens: zero.clone(),
        expert_skipped: zero.clone(),
        expert_lost: zero,
        ..Routing::default()
    };
    for (layer, turn) in (0..LAYERS).flat_map(|layer| (0..tokens * TOP_K).map(move |turn| (layer, turn))) {
        let pair = (layer * EXPERTS + (turn + layer) % EXPERTS) as usize;
        if skip && turn % 4 == 3 {
            routing.expert_skipped[pair] += 1;
            routing.skipped += 1;
        } else {
            routing.expert_tokens[pair] += 1;
            routing.executed += 1;
        }
    }
    routing.expert_weight = routing.expert_tokens.iter().map(|tokens| *tokens as f32 * 0.5).collect();
    routing
}
