//! [`DispatchTable`]: which pods hold which expert by one placement. Immutable; shared by `Arc`.

use std::fmt;

use m1_arch::{ExpertSet, LayerId};
use thiserror::Error;

use crate::ids::{MAX_PODS, PodId};

/// Orders placements: first the writer's lease, then its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TableVersion {
    /// How often the writer's lease changed hands.
    pub lease_transitions: u64,
    /// Grows with every change of the placement.
    pub epoch: u64,
}

impl fmt::Display for TableVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} of lease {}", self.epoch, self.lease_transitions)
    }
}

/// A placement that is no table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TableError {
    /// A pod id that does not fit a group.
    #[error("pod: {given} given, allowed: 0 to {}", MAX_PODS - 1)]
    Pod {
        /// The pod.
        given: u16,
    },
    /// A pod comes twice.
    #[error("pod {given} comes twice")]
    Twice {
        /// The pod.
        given: u16,
    },
    /// A pod's experts are of a model of another shape.
    #[error("pod {pod}: experts of {given_layers} x {given_experts} given, allowed: {layers} x {experts}")]
    Shape {
        /// The pod.
        pod: u16,
        /// Its layers.
        given_layers: usize,
        /// Its experts.
        given_experts: usize,
        /// The model's layers.
        layers: usize,
        /// The model's experts.
        experts: usize,
    },
}

impl TableError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pod { .. } | Self::Twice { .. } => "PodInvalid",
            Self::Shape { .. } => "ShapeMismatch",
        }
    }
}

/// A set of pods, one bit each.
pub(crate) type PodSet = u64;

pub(crate) fn bit(pod: PodId) -> PodSet {
    1 << (pod.0 as u32 % PodSet::BITS)
}

/// The pods of a set, ascending.
pub(crate) fn pods(set: PodSet) -> impl Iterator<Item = PodId> {
    let rest = std::iter::successors(Some(set), |set| Some(set & set.wrapping_sub(1)));
    rest.take_while(|set| *set != 0).map(|set| PodId(set.trailing_zeros() as u16))
}

/// Holders of every (layer, expert).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchTable {
    version: TableVersion,
    experts: usize,
    /// Holders, at `layer * experts + expert`.
    holders: Vec<PodSet>,
}

impl DispatchTable {
    /// The table of a placement; pods must be below [`MAX_PODS`] and all sets of one shape.
    pub fn new(version: TableVersion, layers: usize, experts: usize, held: &[(PodId, ExpertSet)]) -> Result<Self, TableError> {
        let mut table = Self { version, experts, holders: vec![0; layers * experts] };
        let mut seen: PodSet = 0;
        for (pod, set) in held {
            if pod.index() >= MAX_PODS {
                return Err(TableError::Pod { given: pod.0 });
            }
            if seen & bit(*pod) != 0 {
                return Err(TableError::Twice { given: pod.0 });
            }
            seen |= bit(*pod);
            if (set.layers(), set.experts()) != (layers, experts) {
                let (given_layers, given_experts) = (set.layers(), set.experts());
                return Err(TableError::Shape { pod: pod.0, given_layers, given_experts, layers, experts });
            }
            for (layer, expert) in set.iter() {
                table.holders[layer.index() * experts + expert.index()] |= bit(*pod);
            }
        }
        Ok(table)
    }

    /// A table without holders, older than any placement: what a pod starts with.
    pub fn empty(layers: usize, experts: usize) -> Self {
        Self { version: TableVersion::default(), experts, holders: vec![0; layers * experts] }
    }

    /// Its place among placements.
    pub fn version(&self) -> TableVersion {
        self.version
    }

    /// Who holds an expert, ascending.
    pub fn holders(&self, layer: LayerId, expert: u16) -> impl Iterator<Item = PodId> {
        pods(self.holder_set(layer, expert))
    }

    pub(crate) fn holder_set(&self, layer: LayerId, expert: u16) -> PodSet {
        let inside = usize::from(expert) < self.experts;
        inside.then(|| self.holders.get(layer.index() * self.experts + usize::from(expert)).copied()).flatten().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: usize, to: usize) -> ExpertSet {
        ExpertSet::from_range(2, 4, from..to)
    }

    #[test]
    fn holders_are_listed() {
        let version = TableVersion { lease_transitions: 1, epoch: 2 };
        let table = DispatchTable::new(version, 2, 4, &[(PodId(3), range(0, 2)), (PodId(1), range(1, 4))]).unwrap();
        let holders = |expert| table.holders(LayerId(1), expert).map(|pod| pod.0).collect::<Vec<_>>();
        assert_eq!((holders(0), holders(1), holders(3), holders(4)), (vec![3], vec![1, 3], vec![1], vec![]));
        assert_eq!(table.holders(LayerId(2), 0).count(), 0);
    }

    #[test]
    fn a_lease_beats_an_epoch() {
        let version = |lease_transitions, epoch| TableVersion { lease_transitions, epoch };
        assert!(version(2, 1) > version(1, 9) && version(1, 3) > version(1, 2));
    }

    #[test]
    fn wrong_placements_are_named() {
        let error = |held: &[(PodId, ExpertSet)]| DispatchTable::new(TableVersion::default(), 2, 4, held).unwrap_err().to_string();
        assert_eq!(error(&[(PodId(64), range(0, 1))]), "pod: 64 given, allowed: 0 to 63");
        assert_eq!(error(&[(PodId(1), range(0, 1)), (PodId(1), range(0, 1))]), "pod 1 comes twice");
        assert_eq!(error(&[(PodId(1), ExpertSet::empty(2, 5))]), "pod 1: experts of 2 x 5 given, allowed: 2 x 4");
    }
}
