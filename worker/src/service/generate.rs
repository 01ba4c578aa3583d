//! `Generate`: a request becomes a checked sequence; its stream frees the sequence when nobody reads it any more.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use m1_engine::{Sampling, SequenceRequest, SequenceSpec, SpecError, ThinkingBudget};
use m1_proto::worker as pb;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

use super::WorkerService;
use crate::device::{Events, Inbox, NewSequence, SequenceKey};
use crate::text::TextRules;

/// Numbers sequences of this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The events of one sequence. Dropping it cancels the sequence.
pub struct Sequence {
    key: SequenceKey,
    events: Events,
    receiver: mpsc::Receiver<Result<pb::GenerateEvent, Status>>,
}

impl Stream for Sequence {
    type Item = Result<pb::GenerateEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.events.send_detached(Inbox::Cancel(self.key));
    }
}

/// Checks the request and hands it to the device thread.
pub async fn start(service: &WorkerService, request: pb::GenerateRequest) -> Result<Sequence, Status> {
    let limits = service.limits.as_ref().ok_or_else(|| Status::failed_precondition(service.status.read().message))?;
    let text = text_rules(service, &request)?;
    let prompt = request.prompt.len();
    let max_tokens = request.max_tokens as usize;
    let spec = SequenceSpec::new(sequence_request(request), limits).map_err(|e| error_status(&e))?;
    let key = SequenceKey(NEXT.fetch_add(1, Ordering::Relaxed));
    // Every event the sequence can produce fits, so the device thread never waits for a slow reader: at most one for each
    // prompt token (raw logits of chunks), one for each output token, its raw logits, and the end.
    let (sender, receiver) = mpsc::channel(prompt + 2 * max_tokens + 2);
    let sequence = Sequence { key, events: service.events.clone(), receiver };
    service.events.send(Inbox::Generate(Box::new(NewSequence { key, spec, text, events: sender }))).await?;
    Ok(sequence)
}

/// A refusal as gRPC shows it: the message says the field, the metadata key `m1-reason` the one word.
pub fn error_status(error: &SpecError) -> Status {
    reasoned(Status::invalid_argument(error.to_string()), error.reason())
}

/// Adds the one word for a refusal.
pub fn reasoned(mut status: Status, reason: &'static str) -> Status {
    status.metadata_mut().insert("m1-reason", tonic::metadata::MetadataValue::from_static(reason));
    status
}

fn text_rules(service: &WorkerService, request: &pb::GenerateRequest) -> Result<Option<TextRules>, Status> {
    if request.stop_strings.is_empty() && request.thinking.is_none() {
        return Ok(None);
    }
    let Some(tokenizer) = &service.tokenizer else {
        let field = if request.thinking.is_some() { "thinking" } else { "stop_strings" };
        return Err(Status::invalid_argument(format!(
            "{field}: the model's folder has no tokenizer.json, so text rules cannot be kept"
        )));
    };
    TextRules::new(tokenizer, &request.stop_strings).map(Some).map_err(|e| Status::invalid_argument(format!("stop_strings: {e}")))
}

/// The wire's zeroes become the values they stand for.
fn sequence_request(request: pb::GenerateRequest) -> SequenceRequest {
    let sampling = request.sampling.unwrap_or_default();
    let one_if_zero = |value: f32| if value == 0.0 { 1.0 } else { value };
    SequenceRequest {
        prompt: request.prompt,
        max_tokens: request.max_tokens,
        sampling: Sampling { temperature: sampling.temperature, top_p: one_if_zero(sampling.top_p), seed: sampling.seed },
        stop_ids: request.stop_ids,
        expert_threshold: one_if_zero(request.expert_threshold),
        thinking: request.thinking.map(|t| ThinkingBudget { tokens: t.tokens, close_ids: t.close_ids }),
        logprobs: request.logprobs,
        prefill_chunk: request.prefill_chunk,
        raw_logits: request.raw_logits,
    }
}
