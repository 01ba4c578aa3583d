//! [`Layout`]: what every layer of a step needs to know of its batch, computed once: who owns which rows, where their KV lies, and
//! the rotary angles of their positions.

use m1_engine::{Batch, ExecutorError, Tables};

/// Consecutive tokens of one sequence in the batch.
#[derive(Debug)]
pub(crate) struct Span {
    /// State slot.
    pub slot: usize,
    /// First row.
    pub start: usize,
    /// Rows.
    pub tokens: usize,
    /// Position of the first row's token.
    pub position: usize,
    /// Tokens of the sequence's prompt.
    pub prompt: usize,
    /// The sequence's KV blocks, in the order of its tokens.
    pub blocks: Vec<usize>,
}

/// A batch, prepared.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Rows of the batch.
    pub rows: usize,
    /// Every sequence.
    pub spans: Vec<Span>,
    /// Cosine and sine of every rotary angle, `[rows, rotary / 2]`.
    pub angles: Vec<(f32, f32)>,
}

impl Layout {
    /// Prepares a batch that was checked and whose tokens `tables` has admitted.
    pub fn new(batch: &Batch, tables: &Tables, inverse_frequencies: &[f32]) -> Result<Self, ExecutorError> {
        let rows = batch.ids.len();
        let mut layout = Layout { rows, spans: Vec::with_capacity(batch.segments.len()), angles: Vec::new() };
        layout.angles.reserve(rows * inverse_frequencies.len());
        for segment in &batch.segments {
            for position in (segment.position..).take(segment.tokens as usize) {
                // In fp32, as every reference has it: f64 would differ from them near position 1M.
                layout.angles.extend(inverse_frequencies.iter().map(|frequency| {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    (cosine, sine)
                }));
            }
            layout.spans.push(Span {
                slot: segment.slot.0 as usize,
                start: segment.start as usize,
                tokens: segment.tokens as usize,
                position: segment.position as usize,
                prompt: segment.prompt as usize,
                blocks: tables.blocks(segment.slot)?.iter().map(|block| *block as usize).collect(),
            });
        }
        Ok(layout)
    }
}
