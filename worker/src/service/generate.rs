//! `Generate`: a request becomes a checked sequence; its stream frees the sequence when nobody reads it any more.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use m1_engine::{Heard, Limits, Priority, Sampling, SequenceRequest, SequenceSpec, SpecError, TallyId, ThinkingBudget};
use m1_proto::worker::{self as pb, Phase};
use m1_text::Tokenizer;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;

use super::WorkerService;
use super::live::{Claim, checked_name};
use crate::device::{DeviceHandle, DeviceMessage, NewSequence, SequenceKey, must_arrive};
use crate::text::TextRules;

/// Numbers sequences of this process.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// Signs of progress that wait for a reader at most.
const SIGNS: usize = 16;
/// A longer text is read by a thread that may block: a million tokens take a tenth of a second, and connections wait meanwhile.
const LONG_TEXT: usize = 4096;

/// The events of one sequence, the last of them its end or an error. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct EventStream {
    key: SequenceKey,
    events: DeviceHandle,
    receiver: mpsc::Receiver<Result<pb::GenerateEvent, Status>>,
    /// The end has been told.
    ended: bool,
    _claim: Claim,
}

impl Stream for EventStream {
    type Item = Result<pb::GenerateEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.receiver.poll_recv(context));
        let finished = |event: &pb::GenerateEvent| matches!(event.event, Some(pb::generate_event::Event::Finished(_)));
        self.ended = !next.as_ref().is_some_and(|next| next.as_ref().is_ok_and(|event| !finished(event)));
        // A device thread that is gone has told no end.
        Poll::Ready(Some(next.unwrap_or_else(|| Err(stopping()))))
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.events.send_detached(DeviceMessage::Cancel(self.key));
    }
}

/// Checks the request and hands it to the device thread; returns once that has taken it in.
pub async fn start(service: &WorkerService, request: pb::GenerateRequest) -> Result<EventStream, Status> {
    ready(&service.status.brief())?;
    let (Some(limits), Some(tallies)) = (service.limits, &service.tallies) else { return Err(not_ready("no model is open")) };
    checked_name("router", &request.router)?;
    let mut claim = service.live.attempt(&request.request_id, request.attempt)?;
    let tally = tallies.open(&request.router, Instant::now());
    let tokens = request.prompt.len() + request.max_tokens as usize;
    let raw_logits = request.raw_logits;
    let (spec, text) = checked(service, request, tally.as_ref().map(|tally| tally.id), limits).await?;
    if raw_logits {
        // Every token but the last is fed and has a row.
        claim.raw_logits((tokens as u64 - 1) * u64::from(limits.vocab) * size_of::<f32>() as u64)?;
    }
    let key = SequenceKey(NEXT.fetch_add(1, Ordering::Relaxed));
    // Every event that must arrive fits, so the device thread never waits for a slow reader, and signs of progress beside them.
    let (sender, receiver) = mpsc::channel(must_arrive(spec.request()) + SIGNS);
    let sequence = EventStream { key, events: service.events.clone(), receiver, ended: false, _claim: claim };
    let (accepted, answer) = oneshot::channel();
    let mut status = service.status.follow();
    let new = Box::new(NewSequence { key, spec, text, tally, events: sender, accepted });
    let taken_in = async {
        service.events.send(DeviceMessage::Generate(new)).await?;
        answer.await.map_err(|_| stopping())?
    };
    tokio::select! {
        answer = taken_in => answer?,
        // The device has begun to load meanwhile, and hears nothing for minutes.
        changed = status.wait_for(|status| matches!(status.phase(), Phase::Waiting | Phase::Loading | Phase::Failed)) => {
            return Err(changed.map_or_else(|_| stopping(), |status| ready(&status).err().unwrap_or_else(stopping)));
        }
    }
    Ok(sequence)
}

/// Whether a worker in this state takes sequences in. Decided from what it shows: a device that loads answers nothing.
fn ready(status: &pb::StatusResponse) -> Result<(), Status> {
    match status.phase() {
        Phase::Connecting | Phase::Ready => Ok(()),
        Phase::Draining => Err(reasoned(Status::unavailable("this worker drains and admits no more"), "Draining")),
        Phase::Unspecified | Phase::Waiting => Err(not_ready("it waits for a placement")),
        Phase::Loading => Err(not_ready("it loads its weights")),
        Phase::Failed => Err(not_ready(&status.message)),
    }
}

fn not_ready(why: &str) -> Status {
    reasoned(Status::unavailable(format!("this worker is not ready: {why}")), "NotReady")
}

fn stopping() -> Status {
    reasoned(Status::unavailable("this worker stops"), "Stopping")
}

/// A request and its text rules, checked.
async fn checked(
    service: &WorkerService,
    request: pb::GenerateRequest,
    tally: Option<TallyId>,
    limits: Limits,
) -> Result<(SequenceSpec, Option<TextRules>), Status> {
    let tokenizer = match (needs_text(&request), &service.tokenizer) {
        (None, _) => None,
        (Some(_), Some(tokenizer)) => Some(tokenizer.clone()),
        (Some(field), None) => {
            let message = format!("{field}: the model's folder has no tokenizer.json, so text rules cannot be kept");
            return Err(Status::invalid_argument(message));
        }
    };
    let long = tokenizer.is_some() && request.prompt.len() + request.said.len() > LONG_TEXT;
    let check = move || check(request, tokenizer.as_deref(), tally, &limits);
    if !long {
        return check();
    }
    tokio::task::spawn_blocking(check).await.map_err(|_| Status::internal("the request could not be read"))?
}

/// The field that needs the text of the answer, if one does.
fn needs_text(request: &pb::GenerateRequest) -> Option<&'static str> {
    let thinking = request.thinking.as_ref().map(|_| "thinking");
    thinking.or_else(|| (!request.stop_strings.is_empty()).then_some("stop_strings"))
}

fn check(
    request: pb::GenerateRequest,
    tokenizer: Option<&Tokenizer>,
    tally: Option<TallyId>,
    limits: &Limits,
) -> Result<(SequenceSpec, Option<TextRules>), Status> {
    let mut text = match tokenizer {
        Some(tokenizer) => {
            let rules = TextRules::new(tokenizer, &request.stop_strings, &request.prompt);
            Some(rules.map_err(|error| Status::invalid_argument(format!("stop_strings: {error}")))?)
        }
        None => None,
    };
    let opened = text.as_ref().is_some_and(TextRules::reasoning_open);
    let hear = |id| {
        let seen = text.as_mut().map(|text| text.push(id));
        seen.map_or_else(Heard::default, |seen| Heard { stop: seen.stop.is_some(), reasoning_open: seen.reasoning_open })
    };
    let spec = SequenceSpec::heard(sequence_request(request, tally), limits, opened, hear).map_err(|e| error_status(&e))?;
    Ok((spec, text))
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

/// The wire's zeroes become the values they stand for.
fn sequence_request(request: pb::GenerateRequest, tally: Option<TallyId>) -> SequenceRequest {
    // Who wants to be counted and cannot be is told by the sequence itself.
    let omit_routing = request.omit_routing && (tally.is_some() || request.router.is_empty());
    let sampling = request.sampling.unwrap_or_default();
    let one_if_zero = |value: f32| if value == 0.0 { 1.0 } else { value };
    SequenceRequest {
        prompt: request.prompt,
        said: request.said,
        max_tokens: request.max_tokens,
        sampling: Sampling { temperature: sampling.temperature, top_p: one_if_zero(sampling.top_p), seed: sampling.seed },
        stop_ids: request.stop_ids,
        expert_threshold: one_if_zero(request.expert_threshold),
        thinking: request.thinking.map(|t| ThinkingBudget { tokens: t.tokens, close_ids: t.close_ids }),
        logprobs: request.logprobs,
        prefill_chunk: request.prefill_chunk,
        raw_logits: request.raw_logits,
        omit_routing,
        tally,
        // Another word of a later router means no haste either.
        priority: if request.priority == i32::from(pb::Priority::Interactive) { Priority::Interactive } else { Priority::Batch },
    }
}
