//! One request's stopwatch. It books when dropped, so that a client that went away counts too.

use std::sync::Arc;

use tokio::time::Instant;

use super::Metrics;
use crate::error::ApiError;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/minimax-m1/generate`
    Generate,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Generate];

    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Generate => "generate",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in full.
    Ok,
    /// Refused: the client's fault.
    Invalid,
    /// Refused for lack of room or workers.
    Overloaded,
    /// Failed under way.
    Failed,
    /// The client went away.
    Cancelled,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Invalid, Self::Overloaded, Self::Failed, Self::Cancelled];

    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The stopwatch.
#[derive(Debug)]
pub struct Meter {
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    id: String,
    request: String,
    outcome: Outcome,
    started: Instant,
    last_tokens: Option<Instant>,
}

impl Meter {
    /// Starts now; `id` of the answer and `request`, its client's word for it, are for the log.
    pub fn start(metrics: Arc<Metrics>, endpoint: Endpoint, id: String, request: String) -> Self {
        Self { metrics, endpoint, id, request, outcome: Outcome::Cancelled, started: Instant::now(), last_tokens: None }
    }

    /// Tokens came.
    pub fn tokens(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        match self.last_tokens.replace(now) {
            None => self.metrics.ttft.observe((now - self.started).as_secs_f64()),
            Some(last) => {
                let each = (now - last).as_secs_f64() / count as f64;
                (0..count).for_each(|_| self.metrics.tpot.observe(each));
            }
        }
        self.metrics.generation_tokens.inc_by(count as u64);
    }

    /// The sequence ended well.
    pub fn done(&mut self, prompt_tokens: u32) {
        self.metrics.prompt_tokens.inc_by(u64::from(prompt_tokens));
        self.outcome = Outcome::Ok;
    }

    /// It ended with an error.
    pub fn failed(&mut self, error: &ApiError) {
        self.outcome = match error {
            ApiError::Cancelled => Outcome::Cancelled,
            ApiError::NotReady(_) | ApiError::QueueFull { .. } | ApiError::QueueWait { .. } => Outcome::Overloaded,
            error if error.status().is_server_error() => Outcome::Failed,
            _ => Outcome::Invalid,
        };
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let (endpoint, outcome) = (self.endpoint.as_str(), self.outcome.as_str());
        self.metrics.requests.with_label_values(&[endpoint, outcome]).inc();
        // A refusal takes no time; among answers it would only hide how long they take.
        if self.outcome != Outcome::Invalid {
            self.metrics.e2e.observe(seconds);
        }
        tracing::info!(id = self.id, request = self.request, endpoint, outcome, seconds, "request ended");
    }
}
