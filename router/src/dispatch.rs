//! One sequence on one worker: from the queue to its last event. Before the first event another worker may take over, of the same revision while that has an
//! open group; afterwards a lost worker is an error. Dropping [`Running`] drops the worker's stream and the lease.

use std::sync::Arc;

use m1_proto::worker::generate_event::Event as WireEvent;
use m1_proto::worker::{self as wire, FinishReason};
use m1_router_core::{Counts, Request};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::App;
use crate::error::ApiError;
use crate::metrics::Meter;
use crate::order::Order;
use crate::workers::{Lease, geometry};

/// Workers that may try a request: beyond this the request itself is the likely cause.
const MOST_ATTEMPTS: usize = 3;

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// It ran out of tokens, rather than coming to an end.
    pub by_length: bool,
    /// As the worker counted.
    pub prompt_tokens: u32,
    /// With the token that ended it.
    pub output_tokens: u32,
    /// What the experts did; in words why not, where the numbers are missing or do not add up.
    pub routing: Result<Counts, String>,
}

/// What comes from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next tokens.
    Tokens(wire::Tokens),
    /// The last event.
    Finished(Finished),
}

/// A sequence under way.
pub struct Running {
    app: Arc<App>,
    lease: Option<Lease>,
    address: String,
    stream: Streaming<wire::GenerateEvent>,
    head: Option<WireEvent>,
    meter: Meter,
}

enum Fault {
    /// It has no room.
    Full,
    /// Another worker may do better.
    Passing(String),
    /// The request's own fault.
    Final(ApiError),
}

/// Finds a worker and waits for its first event.
///
/// # Errors
/// Nobody can serve, the queue is full, or every attempt failed.
pub async fn start(app: &Arc<App>, order: &Order, mut meter: Meter) -> Result<Running, ApiError> {
    match begin(app, order).await {
        Ok((lease, stream, head)) => {
            let address = lease.address().to_owned();
            Ok(Running { app: Arc::clone(app), lease: Some(lease), address, stream, head: Some(head), meter })
        }
        Err(error) => {
            meter.failed(&error);
            Err(error)
        }
    }
}

type Begun = (Lease, Streaming<wire::GenerateEvent>, WireEvent);

async fn begin(app: &Arc<App>, order: &Order) -> Result<Begun, ApiError> {
    let mut request = Request::default();
    let mut patience = app.pool.patience();
    let mut urgent = false;
    loop {
        let asked = Instant::now();
        let lease = app.pool.lease(request.clone(), urgent, patience).await?;
        // Waiting counts, work on a worker does not.
        patience = patience.saturating_sub(asked.elapsed());
        let attempt = u32::try_from(request.avoid.len()).unwrap_or(u32::MAX);
        urgent = true;
        request.revision.get_or_insert_with(|| lease.revision.clone());
        match open(app, order, attempt, &lease).await {
            Ok((stream, head)) => return Ok((lease, stream, head)),
            Err(Fault::Final(error)) => return Err(error),
            Err(Fault::Full) => app.pool.refused(lease.worker),
            Err(Fault::Passing(cause)) => {
                let address = lease.address();
                tracing::warn!(id = order.id, worker = address, cause, "attempt failed");
                request.avoid.push(lease.worker);
                if request.avoid.len() >= MOST_ATTEMPTS {
                    return Err(ApiError::WorkerLost(format!(
                        "{MOST_ATTEMPTS} workers failed this request, the last one {address}: {cause}"
                    )));
                }
                app.metrics.retries.inc();
            }
        }
    }
}

async fn open(app: &App, order: &Order, attempt: u32, lease: &Lease) -> Result<(Streaming<wire::GenerateEvent>, WireEvent), Fault> {
    let response = lease.client().generate(order.to_wire(&app.model, attempt)).await.map_err(|status| judge(&status))?;
    let mut stream = response.into_inner();
    match stream.message().await.map_err(|status| judge(&status))?.and_then(|event| event.event) {
        Some(head) => Ok((stream, head)),
        None => Err(Fault::Passing("the stream ended before its first event".to_owned())),
    }
}

fn judge(status: &Status) -> Fault {
    match status.code() {
        Code::ResourceExhausted => Fault::Full,
        // Too large for a message is the request's own fault too: no other worker takes it.
        Code::InvalidArgument | Code::OutOfRange => Fault::Final(ApiError::Invalid {
            param: "request".to_owned(),
            message: format!("the worker refuses the request: {}", status.message()),
        }),
        _ => Fault::Passing(status.to_string()),
    }
}

impl Running {
    /// The next event; nothing comes after [`Event::Finished`] or an error.
    ///
    /// # Errors
    /// The worker is lost, breaks its contract, or says that it failed.
    pub async fn next(&mut self) -> Result<Event, ApiError> {
        let event = self.step().await;
        if let Err(error) = &event {
            tracing::warn!(worker = self.address, %error, "sequence failed");
            self.meter.failed(error);
        }
        event
    }

    async fn step(&mut self) -> Result<Event, ApiError> {
        let event = match self.head.take() {
            Some(head) => head,
            None => self.receive().await?,
        };
        match event {
            WireEvent::Tokens(tokens) => {
                self.meter.tokens(tokens.ids.len());
                Ok(Event::Tokens(tokens))
            }
            WireEvent::Finished(finished) => self.finish(finished).map(Event::Finished),
            WireEvent::RawLogits(_) => {
                Err(ApiError::WorkerLost(format!("worker {} sent raw logits, which nobody asked for", self.address)))
            }
        }
    }

    async fn receive(&mut self) -> Result<WireEvent, ApiError> {
        let lost = |what: &str| {
            tracing::warn!(worker = self.address, what, "lost while it generated");
            ApiError::WorkerLost("the worker that generated this answer was lost; the request may be sent again".to_owned())
        };
        match self.stream.message().await {
            Ok(Some(event)) => event.event.ok_or_else(|| lost("it sent an empty event")),
            Ok(None) => Err(lost("its stream ended early")),
            Err(status) => Err(lost(&status.to_string())),
        }
    }

    /// Books what the experts did, gives the worker back, and only then lets the answer end.
    fn finish(&mut self, finished: wire::Finished) -> Result<Finished, ApiError> {
        let reason = finished.reason();
        let routing = self.book(finished.routing);
        self.lease = None;
        if reason == FinishReason::FinishError {
            let message = format!("worker {} failed: {}", self.address, finished.error_message);
            return Err(ApiError::Engine { reason: finished.error_reason, message });
        }
        self.meter.done(finished.prompt_tokens);
        Ok(Finished {
            by_length: reason == FinishReason::FinishLength,
            prompt_tokens: finished.prompt_tokens,
            output_tokens: finished.output_tokens,
            routing,
        })
    }

    fn book(&self, routing: Option<wire::Routing>) -> Result<Counts, String> {
        let counts = read_counts(routing.ok_or("the worker sent no routing counts")?);
        match self.app.metrics.book(&counts) {
            Ok(()) => Ok(counts),
            Err(error) => {
                tracing::error!(worker = self.address, reason = error.reason(), %error, "routing counts refused");
                self.app.metrics.routing_rejected.inc();
                Err(error.to_string())
            }
        }
    }
}

fn read_counts(routing: wire::Routing) -> Counts {
    Counts {
        geometry: geometry(&routing),
        tokens: routing.tokens,
        executed: routing.executed,
        skipped: routing.skipped,
        lost: routing.lost,
        expert_tokens: routing.expert_tokens,
        expert_weight: routing.expert_weight,
        expert_skipped: routing.expert_skipped,
        expert_lost: routing.expert_lost,
    }
}
