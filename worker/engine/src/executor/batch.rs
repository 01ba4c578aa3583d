//! One step's input and what comes of it.

use std::ops::Range;
use std::sync::Arc;

use crate::allowed::AllowedIds;
use crate::routing::{RoutingShape, StepRouting};
use crate::sampler::{SampleError, Sampling, TokenLogprobs};

pub use m1_arch::UNUSED;

/// A state slot: the lightning states of one sequence, and its list of KV blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// A step of one worker. Never used twice; larger ids came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// The tokens of one sequence within a packed batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// State slot of the sequence. At position 0 what an earlier sequence left in it is forgotten.
    pub slot: SlotId,
    /// Row of its first token in the packed batch.
    pub start: u32,
    /// Number of its tokens in this batch, at least 1.
    pub tokens: u32,
    /// Position of its first token in the sequence, from 0.
    pub position: u32,
    /// Tokens of its prompt. An executor may read the prompt in blocks from position 0; what was said comes one by one, also when an
    /// earlier attempt said it, so that a sequence goes on with the bits that it had.
    pub prompt: u32,
    /// KV blocks that it begins to use: the next so many of [`Batch::blocks`].
    pub fresh: u32,
    /// A token whose first expert weighs at least this uses that expert alone; 1 is exact.
    pub threshold: f32,
}

impl Segment {
    /// Its rows in the batch.
    pub fn rows(&self) -> Range<usize> {
        self.start as usize..(self.start + self.tokens) as usize
    }
}

/// An id to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// The row whose logits it is drawn from.
    pub row: u32,
    /// Position that the drawn id will have.
    pub position: u32,
    /// How.
    pub sampling: Sampling,
    /// Ids that may be drawn: what the tokenizer knows, or a grammar allows.
    pub allowed: Arc<AllowedIds>,
    /// Added to the logits of these ids first. No request asks for any yet.
    pub bias: Vec<(u32, f32)>,
    /// The id is not drawn but this one.
    pub forced: Option<u32>,
    /// Log-probabilities: 0 none, 1 of the chosen id, n + 1 also of the n most probable ones.
    pub logprobs: u32,
}

/// One step's input: sequences packed one after another, without padding.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Token ids, one per row.
    pub ids: Vec<u32>,
    /// Who owns which rows; they cover `0..ids.len()` in order, and no slot comes twice.
    pub segments: Vec<Segment>,
    /// KV blocks that segments begin to use, in the order of segments.
    pub blocks: Vec<u32>,
    /// Ids to draw, rows ascending.
    pub draws: Vec<Draw>,
    /// Rows whose whole logits come back, ascending.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.segments.clear();
        self.blocks.clear();
        self.draws.clear();
        self.logit_rows.clear();
    }
}

/// Rows whose logits a step needs, each once, ascending; kept for its allocation.
#[derive(Debug, Default)]
pub struct HeadRows(Vec<u32>);

impl HeadRows {
    /// Those of a batch.
    pub fn of(&mut self, batch: &Batch) -> &[u32] {
        self.0.clear();
        self.0.extend(batch.logit_rows.iter().copied().chain(batch.draws.iter().map(|draw| draw.row)));
        self.0.sort_unstable();
        self.0.dedup();
        &self.0
    }

    /// One of these rows' logits among all of theirs, `[rows, vocab]`.
    pub fn logits<'a>(&self, all: &'a [f32], vocab: usize, row: u32) -> &'a [f32] {
        let place = self.0.partition_point(|other| *other < row);
        &all[place * vocab..(place + 1) * vocab]
    }
}

/// What came of one [`Draw`].
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The id, or why there is none.
    pub id: Result<u32, SampleError>,
    /// Where they were asked for.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// What comes of a step. Its memory goes in with the step's beginning and comes back with its end.
#[derive(Debug)]
pub struct Results {
    /// One for each of [`Batch::draws`].
    pub drawn: Vec<Drawn>,
    /// fp32 `[logit_rows, vocabulary]`.
    pub logits: Vec<f32>,
    /// Which experts every row went to.
    pub routing: StepRouting,
}

impl Results {
    /// Of no step yet.
    pub fn new(shape: RoutingShape) -> Self {
        Self { drawn: Vec::new(), logits: Vec::new(), routing: StepRouting::new(shape) }
    }

    /// Begins a step of so many rows.
    pub fn begin(&mut self, rows: usize) {
        self.drawn.clear();
        self.logits.clear();
        self.routing.begin(rows);
    }
}

/// Routing of one layer for a packed batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerRouting {
    /// Rows of the batch.
    pub tokens: usize,
    /// Experts per token.
    pub top_k: usize,
    /// `[tokens, top_k]`, most probable first; [`UNUSED`] where the place is empty.
    pub experts: Vec<u16>,
    /// `[tokens, top_k]`, normalised: the used places of a row sum to 1.
    pub weights: Vec<f32>,
}

impl LayerRouting {
    /// Makes room for `tokens` rows of `top_k` places, all unused, keeping the allocation.
    pub fn reset(&mut self, tokens: usize, top_k: usize) {
        self.tokens = tokens;
        self.top_k = top_k;
        self.experts.clear();
        self.experts.resize(tokens * top_k, UNUSED);
        self.weights.clear();
        self.weights.resize(tokens * top_k, 0.0);
    }
}
