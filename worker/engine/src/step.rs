//! What goes into the executor and what comes out towards callers.

use std::ops::Range;
use std::sync::Arc;

use crate::executor::{Batch, ExecutorError, StepId};
use crate::routing::{RoutingCounts, TallyId};
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

/// One pass through the layers. Hand it back to `complete` or `fail`: until then its sequences take part in no other.
#[must_use = "the sequences of a step that is never completed or failed stand still"]
#[derive(Debug)]
pub struct Step {
    /// Its number.
    pub id: StepId,
    /// What it does.
    pub kind: StepKind,
    /// The executor's input.
    pub batch: Arc<Batch>,
    /// The sequence of each segment.
    pub owners: Vec<SequenceId>,
    /// Whose experts each segment is counted with, beside the worker's own.
    pub(crate) tallies: Vec<Option<TallyId>>,
    /// Of each segment the tokens that are read again, and were counted before.
    pub(crate) counted: Vec<u32>,
    /// Why a segment cannot be computed to its end while the others can.
    pub(crate) given_up: Vec<Option<Failure>>,
}

impl Step {
    /// A step without rows.
    pub(crate) fn blank() -> Self {
        let (batch, owners, tallies, counted, given_up) = Default::default();
        Self { id: StepId(0), kind: StepKind::Decode, batch, owners, tallies, counted, given_up }
    }

    /// Begins another one with the memory of this. The batch's is had again where the executor has let go of it.
    pub(crate) fn reset(&mut self, id: StepId, kind: StepKind) -> Batch {
        (self.id, self.kind) = (id, kind);
        self.owners.clear();
        self.tallies.clear();
        self.counted.clear();
        self.given_up.clear();
        let mut batch = Arc::try_unwrap(std::mem::take(&mut self.batch)).unwrap_or_default();
        batch.clear();
        batch
    }

    /// The sequence of this row cannot be computed any further: it ends with this failure when the step ends, none of its
    /// rows counts, and the others go on. The first failure of a sequence is the one that is told.
    pub fn give_up(&mut self, row: u32, failure: &Failure) {
        let place = self.batch.segments.iter().position(|segment| (segment.start..segment.start + segment.tokens).contains(&row));
        if let Some(given_up) = place.and_then(|place| self.given_up.get_mut(place)) {
            given_up.get_or_insert_with(|| failure.clone());
        }
    }

    /// Rows of the sequences that were given up.
    pub fn given_up_rows(&self) -> impl Iterator<Item = Range<u32>> {
        let segments = self.batch.segments.iter().zip(&self.given_up);
        segments.filter(|(_, given_up)| given_up.is_some()).map(|(segment, _)| segment.start..segment.start + segment.tokens)
    }

    /// The sequences that were not given up.
    pub fn wanted(&self) -> impl Iterator<Item = SequenceId> {
        self.owners.iter().zip(&self.given_up).filter(|(_, given_up)| given_up.is_none()).map(|(&id, _)| id)
    }
}

/// What an output token's text means. The caller says it of every token before the engine decides whether that was the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// A stop text is complete: the sequence ends with this token.
    pub stop: bool,
    /// The text ends inside the reasoning: what the thinking budget counts and closes.
    pub reasoning_open: bool,
}

/// Something that happened to a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceEvent {
    /// It has left the queue, or a part of its prompt is read, and nothing else is to be told of that.
    Progress {
        /// The sequence.
        id: SequenceId,
    },
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
    /// The last of a sequence, once for each that was not cancelled; its slot and blocks are free.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// Why.
        finish: Finish,
        /// Tokens in and out.
        usage: Usage,
        /// What the experts did for it; without arrays where it did not want them.
        routing: Box<RoutingCounts>,
    },
}

impl SequenceEvent {
    /// The sequence it happened to.
    pub fn id(&self) -> SequenceId {
        match self {
            Self::Progress { id } | Self::Token { id, .. } | Self::RawLogits { id, .. } | Self::Finished { id, .. } => *id,
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// A stop id came, or a stop text was heard.
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
    /// Output tokens; those said before, the one that ended it and those the thinking budget fed included.
    pub output_tokens: u32,
    /// Output tokens that came while the reasoning was open.
    pub reasoning_tokens: u32,
}
