//! What the exchange never sees: hidden states, weights and sums, as numbers that show every loss and every double. A
//! place's share is its weight times a value of (layer, expert, row), in wrapping arithmetic, so that equal sums mean equal
//! places; besides, each sum names its places.

use m1_arch::LayerId;
use m1_exchange::UNUSED;

use super::rng::{Rng, mix};

/// One row of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sum {
    pub value: u64,
    pub places: u16,
}

/// One row of a request: its hidden state, the routing's weights, and the experts asked for.
#[derive(Debug, Clone)]
pub struct AskedRow {
    pub hidden: u64,
    pub weights: Vec<u64>,
    pub experts: Vec<u16>,
}

impl AskedRow {
    pub fn compute(&self, layer: LayerId) -> Sum {
        let used = self.experts.iter().enumerate().filter(|(_, expert)| **expert != UNUSED);
        used.fold(Sum { value: 0, places: 0 }, |sum, (place, expert)| {
            let output = mix(self.hidden ^ (u64::from(layer.0) << 32) ^ (u64::from(*expert) << 48));
            Sum { value: sum.value.wrapping_add(self.weights[place].wrapping_mul(output)), places: sum.places | 1 << place }
        })
    }
}

/// One own step at one layer, with its accumulator.
#[derive(Debug)]
pub struct StepRun {
    pub layer: LayerId,
    pub last_layer: u16,
    pub rows: Vec<AskedRow>,
    pub sums: Vec<Sum>,
    pub parked: bool,
    /// Rows that count no more.
    pub given_up: Vec<bool>,
}

impl StepRun {
    pub fn new(rng: &mut Rng, layer: u16, last_layer: u16, rows: usize, (experts, top_k): (usize, usize)) -> Self {
        let row = |rng: &mut Rng| AskedRow {
            hidden: rng.bits(),
            weights: (0..top_k).map(|_| rng.bits()).collect(),
            experts: (0..top_k).map(|_| if rng.percent(10) { UNUSED } else { rng.index(experts) as u16 }).collect(),
        };
        let rows: Vec<AskedRow> = (0..rows).map(|_| row(rng)).collect();
        let sums = vec![Sum { value: 0, places: 0 }; rows.len()];
        let given_up = vec![false; rows.len()];
        Self { layer: LayerId(layer), last_layer, rows, sums, parked: false, given_up }
    }

    pub fn routing(&self) -> Vec<u16> {
        self.rows.iter().flat_map(|row| row.experts.iter().copied()).collect()
    }

    /// Rows of a `Send` or `Local` with their payload. Each place is the routing's, there is one in each row, and none of
    /// them is accounted for already.
    pub fn gather(&self, rows: &[u32], experts: &[u16]) -> Vec<AskedRow> {
        let top_k = experts.len() / rows.len();
        let places = experts.chunks_exact(top_k);
        assert_eq!(places.len(), rows.len());
        let asked = rows.iter().zip(places).map(|(row, experts)| {
            let own = &self.rows[*row as usize];
            assert!(!self.given_up[*row as usize], "row {row} is asked after it was given up");
            let asked = AskedRow { experts: experts.to_vec(), ..own.clone() };
            assert!(experts.iter().zip(&own.experts).all(|(asked, own)| *asked == UNUSED || asked == own));
            let places = asked.compute(self.layer).places;
            assert_ne!(places, 0, "row {row} asks for nothing");
            assert_eq!(places & self.sums[*row as usize].places, 0, "row {row} is asked again after it came");
            asked
        });
        let asked: Vec<AskedRow> = asked.collect();
        let mut unique = rows.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), rows.len(), "a row twice in one list");
        asked
    }

    pub fn add(&mut self, row: u32, sum: Sum) {
        assert!(!self.given_up[row as usize], "row {row} counts after it was given up");
        let total = &mut self.sums[row as usize];
        assert_ne!(sum.places, 0);
        assert_eq!(total.places & sum.places, 0, "row {row} counts a place twice");
        *total = Sum { value: total.value.wrapping_add(sum.value), places: total.places | sum.places };
    }

    pub fn check_complete(&self) {
        for (row, (sum, truth)) in self.sums.iter().zip(self.rows.iter().map(|row| row.compute(self.layer))).enumerate() {
            assert!(*sum == truth || self.given_up[row], "row {row} of a complete step: {sum:?} instead of {truth:?}");
            assert_eq!(sum.places == truth.places, !self.given_up[row], "row {row} of a complete step");
        }
    }
}
