//! Newtypes for ids and units. An id is an index from zero; a byte count prints in decimal units, as vendors and
//! Kubernetes node labels give memory.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

use serde::{Deserialize, Serialize};

/// Index of a layer, from 0, over lightning and softmax layers alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(pub u16);

impl LayerId {
    /// The id as an index into per-layer tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// In the place of an expert in a routing: the place is not used.
pub const UNUSED: u16 = u16::MAX;

/// Index of an expert within its layer, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpertId(pub u16);

impl ExpertId {
    /// The id as an index into per-expert tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ExpertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of bytes. Prints with one decimal in the largest decimal unit below it (`59.7 GB`, `339.7 MB`, `512 B`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// In GB of 10^9 bytes.
    pub fn gb(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// What is left after taking `other` away; zero where nothing is.
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            0..1_000 => format!("{} B", self.0),
            1_000..1_000_000 => format!("{:.1} kB", self.0 as f64 / 1e3),
            1_000_000..1_000_000_000 => format!("{:.1} MB", self.0 as f64 / 1e6),
            _ => format!("{:.1} GB", self.gb()),
        };
        f.pad(&text)
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Mul<u64> for Bytes {
    type Output = Bytes;
    fn mul(self, times: u64) -> Bytes {
        Bytes(self.0.saturating_mul(times))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes(0), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_print_in_decimal_units() {
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Bytes(40_960).to_string(), "41.0 kB");
        assert_eq!(Bytes(339_738_624).to_string(), "339.7 MB");
        assert_eq!(Bytes(59_725_000_000).to_string(), "59.7 GB");
        assert_eq!(format!("{:>10}", Bytes(7)), "       7 B");
    }

    #[test]
    fn sums_saturate() {
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!([Bytes(1), Bytes(2)].into_iter().sum::<Bytes>() * 3, Bytes(9));
        assert_eq!(Bytes(1).saturating_sub(Bytes(2)), Bytes(0));
    }
}
