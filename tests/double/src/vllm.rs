//! Stands in for a vLLM engine's gRPC servicer, so that a gateway which tokenises (smg) can be measured before an engine that does what [`crate::Double`] does. The
//! acts are the same; only what they are called on the wire differs.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::time::{Instant, Sleep};
use tonic::{Request, Response, Status};

use crate::script::Steady;

/// The generated types.
#[allow(missing_docs, clippy::all)]
mod wire {
    tonic::include_proto!("vllm.grpc.engine");
}

use wire::generate_request::Input;
use wire::generate_response::Response as Said;
use wire::vllm_engine_server::VllmEngine;
pub use wire::vllm_engine_server::VllmEngineServer;
use wire::{
    GenerateComplete, GenerateRequest, GenerateResponse, GenerateStreamChunk, GetLoadsResponse, GetModelInfoResponse,
    GetServerInfoResponse, HealthCheckResponse, Nothing, SchedulerLoad,
};

/// A ready engine.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Its pace.
    pub steady: Steady,
    /// As it names its model.
    pub model: String,
    /// The folder of the model's tokenizer.
    pub folder: String,
    /// Ids are below this.
    pub vocab: u32,
    /// Prompt and output together.
    pub max_context: u32,
    /// Sequences that fit.
    pub slots: u32,
}

type Out = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl VllmEngine for Engine {
    type GenerateStream = Out;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Out>, Status> {
        let request = request.into_inner();
        let prompt = match request.input {
            Some(Input::Tokenized(tokens)) => u32::try_from(tokens.input_ids.len()).unwrap_or(u32::MAX),
            Some(Input::Text(_)) | None => return Err(Status::invalid_argument("this engine takes ids")),
        };
        let bound = request.sampling_params.and_then(|params| params.max_tokens).unwrap_or(self.max_context);
        let due = Instant::now() + self.steady.first;
        let sleep = Box::pin(tokio::time::sleep_until(due));
        let telling = Telling { steady: self.steady.clone(), prompt, bound: bound.max(1), said: 0, due, sleep, over: false };
        Ok(Response::new(Box::pin(telling)))
    }

    async fn health_check(&self, _: Request<Nothing>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { healthy: true, message: "Health".to_owned() }))
    }

    async fn abort(&self, _: Request<Nothing>) -> Result<Response<Nothing>, Status> {
        Ok(Response::new(Nothing {}))
    }

    async fn get_model_info(&self, _: Request<Nothing>) -> Result<Response<GetModelInfoResponse>, Status> {
        Ok(Response::new(GetModelInfoResponse {
            model_path: self.folder.clone(),
            is_generation: true,
            max_context_length: self.max_context,
            vocab_size: self.vocab,
            served_model_name: self.model.clone(),
            tokenizer_path: self.folder.clone(),
            model_type: "minimax_m1".to_owned(),
            architectures: vec!["MiniMaxM1ForCausalLM".to_owned()],
            max_req_input_len: i32::try_from(self.max_context).unwrap_or(i32::MAX),
        }))
    }

    async fn get_server_info(&self, _: Request<Nothing>) -> Result<Response<GetServerInfoResponse>, Status> {
        let max_num_seqs = i32::try_from(self.slots).unwrap_or(i32::MAX);
        let server_type = "vllm-grpc".to_owned();
        Ok(Response::new(GetServerInfoResponse { server_type, data_parallel_size: 1, block_size: 16, max_num_seqs }))
    }

    async fn get_loads(&self, _: Request<Nothing>) -> Result<Response<GetLoadsResponse>, Status> {
        let max_running_requests = i32::try_from(self.slots).unwrap_or(i32::MAX);
        let load = SchedulerLoad { num_running_reqs: 0, max_total_num_tokens: i32::MAX, gen_throughput: 1e6, max_running_requests };
        Ok(Response::new(GetLoadsResponse { dp_rank_count: 1, loads: vec![load] }))
    }
}

/// One sequence: a chunk for each token, then what it came to.
struct Telling {
    steady: Steady,
    prompt: u32,
    bound: u32,
    said: u32,
    due: Instant,
    sleep: Pin<Box<Sleep>>,
    over: bool,
}

impl Stream for Telling {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if this.said == this.bound {
            this.over = true;
            let output_ids = (0..this.said).map(|n| this.word(n)).collect();
            let finish_reason = "length".to_owned();
            let complete = GenerateComplete { output_ids, finish_reason, prompt_tokens: this.prompt, completion_tokens: this.said };
            return Poll::Ready(Some(Ok(GenerateResponse { response: Some(Said::Complete(complete)) })));
        }
        if this.steady.hold_after == Some(this.said) {
            return Poll::Pending;
        }
        if this.due > Instant::now() {
            ready!(this.sleep.as_mut().poll(context));
        }
        let id = this.word(this.said);
        this.said += 1;
        this.due += this.steady.gap;
        if this.steady.gap > Duration::ZERO {
            this.sleep.as_mut().reset(this.due);
        }
        let chunk = GenerateStreamChunk { token_ids: vec![id], prompt_tokens: this.prompt, completion_tokens: this.said };
        Poll::Ready(Some(Ok(GenerateResponse { response: Some(Said::Chunk(chunk)) })))
    }
}

impl Telling {
    fn word(&self, nth: u32) -> u32 {
        self.steady.ids.get(nth as usize % self.steady.ids.len().max(1)).copied().unwrap_or(0)
    }
}
