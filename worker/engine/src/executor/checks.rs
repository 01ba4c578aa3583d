//! What executors check before they compute, so that a refusal changes nothing.

use m1_arch::{ExpertId, ExpertSet, LayerId};

use super::{Batch, ExecutorError, UNUSED};

/// Refuses a batch whose ids, rows, blocks or draws do not fit.
///
/// # Errors
/// The first thing that does not fit.
pub(super) fn check_batch(batch: &Batch, vocabulary: usize) -> Result<(), ExecutorError> {
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
    let fresh: u64 = batch.segments.iter().map(|segment| u64::from(segment.fresh)).sum();
    if fresh != batch.blocks.len() as u64 {
        return refuse("blocks", batch.blocks.len() as u64, format!("{fresh}, the fresh ones of all segments"));
    }
    if let Some(draw) = batch.draws.iter().find(|draw| draw.allowed.vocab() as usize != vocabulary) {
        return refuse("allowed ids of a vocabulary", draw.allowed.vocab().into(), format!("{vocabulary}"));
    }
    check_rows("drawn row", batch.draws.iter().map(|draw| draw.row), batch.ids.len())?;
    check_rows("logit row", batch.logit_rows.iter().copied(), batch.ids.len())
}

/// Refuses rows beyond a batch's.
///
/// # Errors
/// The first row beyond.
pub(super) fn check_rows(what: &'static str, mut rows: impl Iterator<Item = u32>, allowed: usize) -> Result<(), ExecutorError> {
    match rows.find(|row| *row as usize >= allowed) {
        Some(row) => Err(ExecutorError::InvalidArgument { what, given: u64::from(row), allowed: format!("less than {allowed}") }),
        None => Ok(()),
    }
}

/// Refuses experts of `rows` rows that are not as many places as weights, or not held.
///
/// # Errors
/// The first thing that does not fit.
pub(super) fn check_experts(
    held: &ExpertSet,
    layer: LayerId,
    rows: usize,
    experts: &[u16],
    weights: &[f32],
) -> Result<(), ExecutorError> {
    if experts.len() != weights.len() || !experts.len().is_multiple_of(rows.max(1)) {
        let allowed = format!("as many as weights ({}), and as many for each of {rows} rows", weights.len());
        return Err(ExecutorError::InvalidArgument { what: "experts", given: experts.len() as u64, allowed });
    }
    let missing = |expert: &&u16| **expert != UNUSED && !held.contains(layer, ExpertId(**expert));
    match experts.iter().find(missing) {
        Some(expert) => Err(ExecutorError::NotHeld { layer, expert: ExpertId(*expert) }),
        None => Ok(()),
    }
}

/// Refuses bytes that are not `rows` rows of `width` numbers of `size` bytes.
///
/// # Errors
/// The size is another.
pub(super) fn check_bytes(what: &'static str, bytes: usize, rows: usize, width: usize, size: usize) -> Result<(), ExecutorError> {
    let wanted = rows * width * size;
    if bytes == wanted {
        return Ok(());
    }
    let allowed = format!("{wanted} bytes, {rows} rows x hidden x {size}");
    Err(ExecutorError::InvalidArgument { what, given: bytes as u64, allowed })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::executor::{Draw, Segment, SlotId};
    use crate::{AllowedIds, Sampling};

    fn good() -> Batch {
        let segment = |slot, start, tokens| Segment {
            slot: SlotId(slot),
            start,
            tokens,
            position: 0,
            prompt: tokens,
            fresh: 1,
            threshold: 1.0,
        };
        let draw = Draw {
            row: 2,
            position: 1,
            sampling: Sampling::GREEDY,
            allowed: Arc::new(AllowedIds::all(10)),
            bias: Vec::new(),
            forced: None,
            logprobs: 0,
        };
        let segments = vec![segment(4, 0, 2), segment(1, 2, 1)];
        Batch { ids: vec![1, 2, 3], segments, blocks: vec![0, 1], draws: vec![draw], logit_rows: vec![1, 2] }
    }

    fn refused(change: impl FnOnce(&mut Batch)) -> &'static str {
        let mut batch = good();
        change(&mut batch);
        match check_batch(&batch, 10) {
            Err(ExecutorError::InvalidArgument { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        assert!(check_batch(&good(), 10).is_ok());
        assert_eq!(refused(|b| b.ids[1] = 10), "id");
        assert_eq!(refused(|b| b.segments[1].start = 1), "segment start");
        assert_eq!(refused(|b| b.segments[1].tokens = 0), "segment start");
        assert_eq!(refused(|b| b.segments[1].slot = SlotId(4)), "segment slot");
        assert_eq!(refused(|b| b.ids.push(1)), "ids");
        assert_eq!(refused(|b| *b = Batch::default()), "ids");
        assert_eq!(refused(|b| b.logit_rows[1] = 3), "logit row");
        assert_eq!(refused(|b| b.draws[0].row = 3), "drawn row");
        assert_eq!(refused(|b| b.draws[0].allowed = Arc::new(AllowedIds::all(9))), "allowed ids of a vocabulary");
        assert_eq!(refused(|b| b.blocks.truncate(1)), "blocks");
    }
}
