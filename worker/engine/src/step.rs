//! What goes into the executor and what comes out towards callers.

use std::ops::Range;

use crate::executor::{Batch, ExecutorError};
use crate::routing::RoutingCounts;
use crate::sampler::TokenLogprobs;

/// A sequence of one worker; larger ids came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What a step does for its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// One token of every decoding sequence.
    Decode,
    /// Prompt chunks.
    Prefill,
}

impl StepKind {
    /// For logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        }
    }
}

/// One pass through the layers. Hand it back to `complete` or `fail`: until then there is no next step.
#[must_use = "a step that is never completed or failed stops the scheduler"]
#[derive(Debug)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// The executor's input.
    pub batch: Batch,
    /// The sequence of each segment.
    pub owners: Vec<SequenceId>,
    /// The expert threshold of each segment.
    pub(crate) thresholds: Vec<f32>,
}

impl Step {
    /// Row ranges of the batch with their expert threshold.
    pub(crate) fn thresholds(&self) -> impl Iterator<Item = (Range<usize>, f32)> {
        let rows = |start: u32, tokens: u32| start as usize..(start + tokens) as usize;
        self.batch.segments.iter().zip(&self.thresholds).map(move |(s, &threshold)| (rows(s.start, s.tokens), threshold))
    }
}

/// Something that happened to a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The next output token.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The output.
        token: u32,
        /// Fed by the thinking budget, not drawn.
        forced: bool,
        /// Where they were asked for.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// Logits of consecutive positions, for sequences that asked for raw logits; comes before the token drawn from them.
    RawLogits {
        /// The sequence.
        id: SequenceId,
        /// Position of the first row.
        position: u32,
        /// Rows of the step's logits.
        rows: Range<usize>,
    },
    /// The last of a sequence; its slot and blocks are free.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// Why.
        finish: Finish,
        /// Tokens in and out.
        usage: Usage,
        /// What the experts did for it.
        routing: Box<RoutingCounts>,
    },
}

impl Outcome {
    /// The sequence it happened to.
    pub fn id(&self) -> SequenceId {
        match self {
            Self::Token { id, .. } | Self::RawLogits { id, .. } | Self::Finished { id, .. } => *id,
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// A stop id came, or the caller saw a stop text.
    Stop,
    /// All tokens asked for were made.
    Length,
    /// It could not go on.
    Failed(Failure),
}

impl Finish {
    /// For logs and metric labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Failed(_) => "error",
        }
    }
}

/// Why a sequence or a step failed, for the caller's eyes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl From<&ExecutorError> for Failure {
    fn from(error: &ExecutorError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

/// Tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Output tokens, the one that ended it and those the thinking budget fed included.
    pub output_tokens: u32,
    /// Output tokens that came while the reasoning was open.
    pub reasoning_tokens: u32,
}
