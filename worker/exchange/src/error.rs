//! Why an exchange or a connection ends.

use std::time::Duration;

use m1_arch::LayerId;
use thiserror::Error;

use crate::ids::{Lane, PodId, RequestId, StepId};

/// Why a step's exchange failed or a connection is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExchangeError {
    /// Nobody reachable held an expert for the whole wait.
    #[error("layer {layer}: no reachable pod holds expert {}: waited {waited:?}", list(.experts))]
    ExpertUnavailable {
        /// The MoE layer.
        layer: LayerId,
        /// The experts, ascending.
        experts: Vec<u16>,
        /// How long the step waited without progress.
        waited: Duration,
    },
    /// The step has an exchange open already; both are given up.
    #[error("step {step} has an exchange open already")]
    StepOpen {
        /// The step.
        step: StepId,
    },
    /// A number outside its range, in a routing or a peer's frame.
    #[error("{field}: {given} given, allowed: {low} to {high}")]
    Range {
        /// The field.
        field: &'static str,
        /// What came.
        given: usize,
        /// Lowest allowed.
        low: usize,
        /// Highest allowed.
        high: usize,
    },
    /// A list whose length does not fit its rows.
    #[error("experts: {given} places given for {rows} rows, allowed: the same number, 1 to {top_k}, for each row")]
    Places {
        /// Places given.
        given: usize,
        /// Rows given.
        rows: usize,
        /// Places of a row at most.
        top_k: usize,
    },
    /// A peer sent a request without credit.
    #[error("request {id}: sent without credit, {allowed} frames may be open")]
    NoCredit {
        /// The request.
        id: RequestId,
        /// Frames that may be open on the lane.
        allowed: u32,
    },
    /// A request came on a lane that was never greeted.
    #[error("request {id}: pod {peer} has no {lane} connection here")]
    NotConnected {
        /// The requester.
        peer: PodId,
        /// The lane.
        lane: Lane,
        /// The request.
        id: RequestId,
    },
    /// An answer with another number of rows than were asked.
    #[error("answer {id}: {given} rows given, {allowed} asked")]
    AnswerRows {
        /// The request.
        id: RequestId,
        /// Rows that came.
        given: usize,
        /// Rows asked.
        allowed: usize,
    },
    /// A peer owes an answer for too long: the link is taken for broken.
    #[error("request {id}: no answer from pod {peer} for {waited:?}")]
    AnswerOverdue {
        /// The server.
        peer: PodId,
        /// The request.
        id: RequestId,
        /// Since it was sent.
        waited: Duration,
    },
}

impl ExchangeError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ExpertUnavailable { .. } => "ExpertUnavailable",
            Self::StepOpen { .. } => "StepOpen",
            Self::Range { .. } => "ValueOutOfRange",
            Self::Places { .. } => "WrongSize",
            Self::NoCredit { .. } => "NoCredit",
            Self::NotConnected { .. } => "NotConnected",
            Self::AnswerRows { .. } => "WrongSize",
            Self::AnswerOverdue { .. } => "AnswerOverdue",
        }
    }

    /// Whether the same step may succeed later, here or in another group.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::ExpertUnavailable { .. } | Self::AnswerOverdue { .. })
    }
}

fn list(experts: &[u16]) -> String {
    experts.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}
