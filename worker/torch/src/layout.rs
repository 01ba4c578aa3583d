//! [`Layout`]: what every layer of a step needs to know of its batch, computed once: who owns which rows, where their KV
//! lies, and the rotary angles of their positions.

use m1_engine::{Batch, KV_BLOCK_TOKENS, Tables};
use tch::{TchError, Tensor};

use crate::error::TorchError;
use crate::rows::Rows;

/// Consecutive tokens of one sequence in the batch.
#[derive(Debug)]
pub(crate) struct Span {
    /// State slot.
    pub slot: i64,
    /// First row.
    pub start: i64,
    /// Rows.
    pub tokens: i64,
    /// Position of the first row's token.
    pub position: i64,
    /// The sequence's KV blocks, as rows of a pool of blocks.
    pub blocks: Rows,
}

impl Span {
    /// Tokens of the sequence once the span is in.
    pub fn context(&self) -> i64 {
        self.position + self.tokens
    }
}

/// A batch, prepared.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Rows of the batch.
    pub rows: i64,
    /// Every sequence.
    pub spans: Vec<Span>,
    /// Rows of the sequences that bring one token, in order of `spans`.
    pub single_rows: Rows,
    /// Their state slots.
    pub single_slots: Rows,
    /// How many they are.
    pub singles: i64,
    /// Pool row of every batch row's key and value.
    pub kv_rows: Rows,
    /// Cosines of the rotary angles, `[rows, 1, rotary / 2]`.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Layout {
    /// Prepares a batch that was checked and whose tokens `tables` has admitted, for the device that these frequencies lie on.
    pub fn new(batch: &Batch, tables: &Tables, inverse_frequencies: &Tensor) -> Result<Self, TorchError> {
        let device = inverse_frequencies.device();
        let mut spans = Vec::with_capacity(batch.segments.len());
        let (mut single_rows, mut single_slots) = (Vec::new(), Vec::new());
        let (mut kv_rows, mut positions) = (Vec::with_capacity(batch.ids.len()), Vec::with_capacity(batch.ids.len()));
        for segment in &batch.segments {
            let blocks = tables.blocks(segment.slot)?;
            for position in (segment.position..).take(segment.tokens as usize) {
                let (block, offset) = (position as usize / KV_BLOCK_TOKENS, position as usize % KV_BLOCK_TOKENS);
                let block = blocks.get(block).copied().unwrap_or_default() as usize;
                kv_rows.push((block * KV_BLOCK_TOKENS + offset) as i64);
                positions.push(position as f32);
            }
            if segment.tokens == 1 {
                single_rows.push(segment.start);
                single_slots.push(segment.slot.0);
            }
            spans.push(Span {
                slot: segment.slot.0.into(),
                start: segment.start.into(),
                tokens: segment.tokens.into(),
                position: segment.position.into(),
                blocks: Rows::new(blocks.iter().copied(), device)?,
            });
        }
        let (cos, sin) = angles(&positions, inverse_frequencies)?;
        Ok(Layout {
            rows: batch.ids.len() as i64,
            spans,
            singles: single_rows.len() as i64,
            single_rows: Rows::new(single_rows, device)?,
            single_slots: Rows::new(single_slots, device)?,
            kv_rows: Rows::new(kv_rows, device)?,
            cos,
            sin,
        })
    }

    /// Whether every sequence brings one token, so that batch rows are sequences.
    pub fn is_decode(&self) -> bool {
        self.singles == self.rows
    }
}

/// The angle is `position * inverse frequency` in fp32, as every reference has it: f64 would differ from them near
/// position 1M.
fn angles(positions: &[f32], inverse_frequencies: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let positions = Tensor::f_from_slice(positions)?.f_view([-1, 1, 1])?.f_to(inverse_frequencies.device())?;
    let angle = positions.f_mul(inverse_frequencies)?;
    Ok((angle.f_cos()?, angle.f_sin()?))
}
