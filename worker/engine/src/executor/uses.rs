//! [`Uses`]: which rows need which experts, by expert, so that each expert runs once over all of its rows.

use super::UNUSED;

/// One use of an expert by a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Use {
    /// The expert.
    pub expert: u16,
    /// The row that needs it.
    pub row: u32,
    /// What its output counts there.
    pub weight: f32,
}

/// Places that are used.
pub(super) fn used(experts: &[u16]) -> usize {
    experts.iter().filter(|expert| **expert != UNUSED).count()
}

/// A list of uses, kept for its allocation.
#[derive(Debug, Default)]
pub(super) struct Uses(Vec<Use>);

impl Uses {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds the used places of these rows; `experts` and `weights` are `[rows, places]`.
    pub fn add(&mut self, rows: impl Iterator<Item = u32>, experts: &[u16], weights: &[f32], places: usize) {
        let of_rows = experts.chunks_exact(places.max(1)).zip(weights.chunks_exact(places.max(1)));
        for (row, (experts, weights)) in rows.zip(of_rows) {
            let used = experts.iter().zip(weights).filter(|(expert, _)| **expert != UNUSED);
            self.0.extend(used.map(|(expert, weight)| Use { expert: *expert, row, weight: *weight }));
        }
    }

    /// All, sorted by expert and row.
    pub fn sorted(&mut self) -> &[Use] {
        self.0.sort_unstable_by_key(|one| (one.expert, one.row));
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_sorted_by_expert_and_keep_their_weights() {
        let mut uses = Uses::default();
        uses.add([4, 2].into_iter(), &[3, UNUSED, 1, 3], &[1.0, 0.0, 0.25, 0.75], 2);
        let one = |expert, row, weight| Use { expert, row, weight };
        assert_eq!(uses.sorted(), [one(1, 2, 0.25), one(3, 2, 0.75), one(3, 4, 1.0)]);
        uses.clear();
        assert!(uses.sorted().is_empty());
        assert_eq!(used(&[3, UNUSED, 1, UNUSED]), 2);
    }
}
