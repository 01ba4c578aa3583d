//! What executors check before they compute, so that a refusal changes nothing.

use m1_arch::{ExpertId, ExpertSet, LayerId};

use super::{Assignment, Batch, ExecutorError, UNUSED};

/// Refuses a batch whose ids, rows or logit rows do not fit.
///
/// # Errors
/// The first thing that does not fit.
pub fn check_batch(batch: &Batch, vocabulary: usize) -> Result<(), ExecutorError> {
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
///
/// # Errors
/// The first row beyond.
pub fn check_rows(what: &'static str, rows: &[u32], allowed: usize) -> Result<(), ExecutorError> {
    match rows.iter().find(|row| **row as usize >= allowed) {
        Some(row) => Err(ExecutorError::InvalidArgument { what, given: u64::from(*row), allowed: format!("less than {allowed}") }),
        None => Ok(()),
    }
}

/// Refuses an assignment that does not fit `rows` rows or names an expert that is not held.
///
/// # Errors
/// The first thing that does not fit.
pub fn check_assignment(held: &ExpertSet, layer: LayerId, assignment: &Assignment<'_>, rows: usize) -> Result<(), ExecutorError> {
    let places = assignment.rows.len() * assignment.slots;
    for (what, given) in [("experts", assignment.experts.len()), ("weights", assignment.weights.len())] {
        if given != places {
            let allowed = format!("{places}, rows x slots");
            return Err(ExecutorError::InvalidArgument { what, given: given as u64, allowed });
        }
    }
    check_rows("assigned row", assignment.rows, rows)?;
    let missing = |expert: &&u16| **expert != UNUSED && !held.contains(layer, ExpertId(**expert));
    match assignment.experts.iter().find(missing) {
        Some(expert) => Err(ExecutorError::NotHeld { layer, expert: ExpertId(*expert) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{Segment, SlotId};

    fn good() -> Batch {
        let segment = |slot, start, tokens| Segment { slot: SlotId(slot), start, tokens, position: 0, prompt: tokens };
        Batch { ids: vec![1, 2, 3], segments: vec![segment(4, 0, 2), segment(1, 2, 1)], logit_rows: vec![1, 2] }
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
    }
}
