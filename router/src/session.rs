//! One request's owner. A session holds the order, the place on a worker and that worker's stream, and writes what comes into its [`Log`]; whoever tells a
//! client reads the log at his own pace and holds up nobody. The log is bounded by the order's `max_tokens`.
//!
//! Before the first token another worker may take over, two at most, of the same revision while that has an open group; afterwards a lost worker is an
//! error. When the session is dropped, its place and the worker's sequence are free at once.

mod attempt;
mod log;

use std::sync::Arc;

use m1_proto::worker as wire;
use m1_router_core::{Counts, Next, Outcome, Reason, Request};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::App;
use crate::error::ApiError;
use crate::metrics::Meter;
use crate::order::Order;
use crate::server::Backlog;
use crate::workers::Lease;

use attempt::{Attempt, Fault};
pub use log::{Log, News, Place};

/// Signs of progress beside one for each token of a prompt: that it has left the worker's queue, and some.
const SIGNS: usize = 16;

/// Bytes of an alternative to a token, at the most: its id and its log-probability.
const ALTERNATIVE: usize = 9;

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// It ran out of tokens, rather than coming to an end.
    pub by_length: bool,
    /// Tokens that were read.
    pub prompt_tokens: u32,
    /// With the token that ended it.
    pub output_tokens: u32,
    /// What the experts did, where that was asked for; in words why not, where the numbers are missing or do not add up.
    pub routing: Result<Counts, String>,
}

/// A request under way. Dropping it ends it.
pub struct Session {
    log: Arc<Log>,
    _task: AbortOnDropHandle<()>,
}

impl Session {
    /// Starts to look for a worker. What comes counts as kept until it was read.
    pub fn start(app: &Arc<App>, order: Order, meter: Meter, backlog: &Arc<Backlog>) -> Self {
        let log = Arc::new(Log::new(order.logprobs.is_some(), Arc::clone(backlog)));
        let owner = Owner { app: Arc::clone(app), order, meter, log: Arc::clone(&log), attempts: 0 };
        Self { log, _task: AbortOnDropHandle::new(tokio::spawn(owner.run())) }
    }

    /// What has come.
    pub fn log(&self) -> &Log {
        &self.log
    }
}

struct Owner {
    app: Arc<App>,
    order: Order,
    meter: Meter,
    log: Arc<Log>,
    attempts: u32,
}

/// The log of a session that died ends all the same.
struct Ends(Arc<Log>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end(Err(ApiError::Internal("the request's task died".to_owned())));
    }
}

impl Owner {
    async fn run(mut self) {
        let ends = Ends(Arc::clone(&self.log));
        let ending = self.app.ending.clone();
        let ended = tokio::select! {
            ended = self.serve() => ended,
            () = ending.cancelled() => Err(ApiError::Stopping),
        };
        if let Err(error) = &ended {
            self.meter.failed(error);
        }
        ends.0.end(ended);
    }

    /// From the queue to the last event.
    async fn serve(&mut self) -> Result<Finished, ApiError> {
        let given = u32::try_from(self.order.prompt.len()).unwrap_or(u32::MAX);
        let growing = Request::growing(given.saturating_add(self.order.max_tokens), given);
        let mut request = Request { batch: self.order.batch, ..growing };
        let mut patience = self.app.pool.patience();
        let mut urgent = false;
        let mut cause = String::new();
        loop {
            let asked = Instant::now();
            // What is over before the first token is in a box: an open stream is small.
            let lease = Box::pin(self.app.pool.lease(request.clone(), urgent, patience)).await;
            let lease = lease.map_err(|error| again(error, &cause))?;
            // Waiting counts, work on a worker does not.
            patience = patience.saturating_sub(asked.elapsed());
            urgent = true;
            request.revision.get_or_insert_with(|| lease.revision.clone());
            let began = Instant::now();
            match self.attempt(&lease, &mut request).await {
                Ok(finished) => return Ok(finished),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Broken(error)) => {
                    self.app.pool.report(&lease, &mut request, Outcome::Broken);
                    return Err(error);
                }
                Err(Fault::Early(outcome, words)) => {
                    if matches!(outcome, Outcome::Full | Outcome::NotReady) {
                        // It waited there, if anywhere.
                        patience = patience.saturating_sub(began.elapsed());
                    }
                    if !matches!(outcome, Outcome::Full | Outcome::NotReady) {
                        tracing::warn!(
                            id = self.order.id,
                            worker = lease.address(),
                            outcome = outcome.as_str(),
                            words,
                            "attempt failed"
                        );
                        cause = words;
                    }
                    match self.app.pool.report(&lease, &mut request, outcome) {
                        Next::GiveUp(reason) => return Err(given_up(reason, &self.app)),
                        Next::Again | Next::Settled => {}
                    }
                    if request.is_retry() {
                        self.app.metrics.retries.inc();
                    }
                }
            }
        }
    }

    /// One worker's try, to its end.
    async fn attempt(&mut self, lease: &Lease, request: &mut Request) -> Result<Finished, Fault> {
        self.attempts += 1;
        let mut attempt = Box::pin(Attempt::open(&self.app, &self.order, self.attempts, lease)).await?;
        self.log.accept();
        let (mut said, mut signs) = (0u32, 0usize);
        let alternatives = self.order.logprobs.unwrap_or_default() as usize;
        loop {
            match attempt.next().await? {
                wire::generate_event::Event::Tokens(tokens) => {
                    if tokens.ids.is_empty() {
                        signs += 1;
                        if signs > self.order.prompt.len().saturating_add(self.order.said.len()).saturating_add(SIGNS) {
                            return Err(attempt.garbage("more signs of progress than there is to read"));
                        }
                        continue;
                    }
                    if tokens.logprobs.iter().any(|logprobs| logprobs.kept() > alternatives * ALTERNATIVE) {
                        return Err(attempt.garbage("more alternatives than were asked for"));
                    }
                    if said == 0 {
                        attempt.mark_begun();
                        self.app.pool.report(lease, request, Outcome::Served);
                    }
                    self.meter.tokens(tokens.ids.len());
                    said = said.saturating_add(u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX));
                    if !self.log.push(tokens, self.order.max_tokens) {
                        return Err(attempt.garbage("more tokens than were asked for"));
                    }
                }
                wire::generate_event::Event::Finished(finished) => {
                    let finished = Box::pin(attempt.finish(finished, said, &mut self.meter)).await?;
                    self.app.pool.report(lease, request, Outcome::Whole);
                    return Ok(finished);
                }
                wire::generate_event::Event::RawLogits(_) => return Err(attempt.garbage("raw logits, which nobody asked for")),
            }
        }
    }
}

/// What the queue says to a request that a worker has failed before: it was not for want of room.
fn again(error: ApiError, cause: &str) -> ApiError {
    match error {
        ApiError::NotReady(_) if !cause.is_empty() => {
            ApiError::Attempts("a worker failed this request before its first token, and no other could take it".to_owned())
        }
        error => error,
    }
}

fn given_up(reason: Reason, app: &App) -> ApiError {
    match reason {
        Reason::NoRetries => {
            ApiError::Attempts("a worker failed this request before its first token, and too many are tried again".to_owned())
        }
        Reason::AllFailed => ApiError::Attempts("every worker that tried this request failed before its first token".to_owned()),
        reason => app.pool.refusal(reason),
    }
}
