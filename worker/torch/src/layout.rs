//! [`Layout`]: what every layer of a step needs to know of its batch, computed once: who owns which rows, where their KV
//! lies, and the rotary angles of their positions.

use m1_engine::{Batch, ExecutorError};
use tch::{Kind, TchError, Tensor};

use crate::error::TorchError;
use crate::rows::Rows;
use crate::slots::{KV_BLOCK_TOKENS, Slots};

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
    /// Prepares a batch that [`check`] passed and whose tokens `slots` has admitted.
    pub fn new(batch: &Batch, slots: &Slots, inverse_frequencies: &Tensor) -> Result<Self, TorchError> {
        let mut spans = Vec::with_capacity(batch.segments.len());
        let (mut single_rows, mut single_slots) = (Vec::new(), Vec::new());
        let (mut kv_rows, mut positions) = (Vec::with_capacity(batch.ids.len()), Vec::with_capacity(batch.ids.len()));
        for segment in &batch.segments {
            let blocks = slots.blocks(segment.slot)?;
            for position in (segment.position..).take(segment.tokens as usize) {
                let (block, offset) = (position as usize / KV_BLOCK_TOKENS, position as usize % KV_BLOCK_TOKENS);
                let block = blocks.get(block).copied().unwrap_or_default() as usize;
                kv_rows.push((block * KV_BLOCK_TOKENS + offset) as i64);
                positions.push(position as f32);
            }
            if segment.tokens == 1 {
                single_rows.push(i64::from(segment.start));
                single_slots.push(i64::from(segment.slot.0));
            }
            spans.push(Span {
                slot: segment.slot.0.into(),
                start: segment.start.into(),
                tokens: segment.tokens.into(),
                position: segment.position.into(),
                blocks: Rows::new(&blocks.iter().map(|block| i64::from(*block)).collect::<Vec<_>>())?,
            });
        }
        let (cos, sin) = angles(&positions, inverse_frequencies)?;
        Ok(Layout {
            rows: batch.ids.len() as i64,
            spans,
            singles: single_rows.len() as i64,
            single_rows: Rows::new(&single_rows)?,
            single_slots: Rows::new(&single_slots)?,
            kv_rows: Rows::new(&kv_rows)?,
            cos,
            sin,
        })
    }

    /// Whether every sequence brings one token, so that batch rows are sequences.
    pub fn is_decode(&self) -> bool {
        self.singles == self.rows
    }
}

/// `theta^(-2i / rotary)`, rounded to fp32.
pub(crate) fn inverse_frequencies(theta: f64, rotary_dim: usize) -> Result<Tensor, TchError> {
    let exponent = |i: usize| (2 * i) as f64 / rotary_dim as f64;
    let values: Vec<f32> = (0..rotary_dim / 2).map(|i| theta.powf(-exponent(i)) as f32).collect();
    Tensor::f_from_slice(&values)
}

/// The angle is `position * inverse frequency` in fp32, as every reference has it: f64 would differ from them near
/// position 1M.
fn angles(positions: &[f32], inverse_frequencies: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let positions = Tensor::f_from_slice(positions)?.f_view([-1, 1, 1])?;
    let angle = positions.f_mul(&inverse_frequencies.f_to_kind(Kind::Float)?)?;
    Ok((angle.f_cos()?, angle.f_sin()?))
}

/// Refuses a batch whose ids, rows or logit rows do not fit.
pub(crate) fn check(batch: &Batch, vocabulary: usize) -> Result<(), ExecutorError> {
    let refuse = |what, given: u64, allowed: String| Err(ExecutorError::InvalidArgument { what, given, allowed });
    if let Some(id) = batch.ids.iter().find(|id| **id as usize >= vocabulary) {
        return refuse("id", u64::from(*id), format!("0 to {}", vocabulary.saturating_sub(1)));
    }
    let mut next = 0;
    for (index, segment) in batch.segments.iter().enumerate() {
        if u64::from(segment.start) != next || segment.tokens == 0 {
            return refuse("segment start", segment.start.into(), format!("{next}, with at least one token"));
        }
        if batch.segments[..index].iter().any(|other| other.slot == segment.slot) {
            return refuse("segment slot", segment.slot.0.into(), "each slot once".into());
        }
        next += u64::from(segment.tokens);
    }
    if next != batch.ids.len() as u64 || next == 0 {
        return refuse("ids", batch.ids.len() as u64, format!("{next}, the tokens of all segments, at least 1"));
    }
    check_rows("logit row", &batch.logit_rows, batch.ids.len())
}

/// Refuses rows beyond a batch's.
pub(crate) fn check_rows(what: &'static str, rows: &[u32], allowed: usize) -> Result<(), ExecutorError> {
    match rows.iter().find(|row| **row as usize >= allowed) {
        Some(row) => Err(ExecutorError::InvalidArgument { what, given: u64::from(*row), allowed: format!("less than {allowed}") }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m1_engine::{Segment, SlotId};

    fn good() -> Batch {
        let segment = |slot, start, tokens| Segment { slot: SlotId(slot), start, tokens, position: 0 };
        Batch { ids: vec![1, 2, 3], segments: vec![segment(4, 0, 2), segment(1, 2, 1)], logit_rows: vec![1, 2] }
    }

    fn refused(change: impl FnOnce(&mut Batch)) -> &'static str {
        let mut batch = good();
        change(&mut batch);
        match check(&batch, 10) {
            Err(ExecutorError::InvalidArgument { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        assert!(check(&good(), 10).is_ok());
        assert_eq!(refused(|b| b.ids[1] = 10), "id");
        assert_eq!(refused(|b| b.segments[1].start = 1), "segment start");
        assert_eq!(refused(|b| b.segments[1].tokens = 0), "segment start");
        assert_eq!(refused(|b| b.segments[1].slot = SlotId(4)), "segment slot");
        assert_eq!(refused(|b| b.ids.push(1)), "ids");
        assert_eq!(refused(|b| *b = Batch::default()), "ids");
        assert_eq!(refused(|b| b.logit_rows[1] = 3), "logit row");
    }

    #[test]
    fn frequencies_fall_from_one() -> Result<(), TchError> {
        let values = Vec::<f32>::try_from(&inverse_frequencies(1e7, 64)?)?;
        assert_eq!((values.len(), values[0]), (32, 1.0));
        assert!((f64::from(values[31]) / 1e7f64.powf(-62.0 / 64.0) - 1.0).abs() < 1e-6);
        Ok(())
    }
}
