//! [`ExpertSet`]: which (layer, expert) pairs somebody holds, as a bitmap, and its text form.
//!
//! Text: per layer `ceil(experts / 4)` hex digits, layers one after the other; the lowest expert is the highest bit of the
//! layer's first digit. For M1 that is 640 characters. Bits beyond the last expert are zero.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

use crate::units::{ExpertId, LayerId};

/// A text that is no set of this shape.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExpertSetError {
    /// The number of characters does not fit the model.
    #[error("expert bitmap has {given} characters: allowed are {allowed} ({layers} layers x {digits} hex digits)")]
    Length {
        /// Characters given.
        given: usize,
        /// Characters wanted.
        allowed: usize,
        /// Layers of the model.
        layers: usize,
        /// Digits of one layer.
        digits: usize,
    },
    /// A character is no hex digit.
    #[error("expert bitmap has {given:?} at position {at}: allowed are 0-9 and a-f")]
    Digit {
        /// Position, from 0.
        at: usize,
        /// The character there.
        given: char,
    },
    /// A bit stands for an expert that the model lacks.
    #[error("expert bitmap names expert {given} in layer {layer}: allowed are 0 to {last}")]
    Beyond {
        /// The layer.
        layer: usize,
        /// The expert it names.
        given: usize,
        /// The model's last expert.
        last: usize,
    },
}

impl ExpertSetError {
    /// One CamelCase word for logs, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ExpertSetError::Length { .. } => "BitmapLength",
            ExpertSetError::Digit { .. } => "BitmapDigit",
            ExpertSetError::Beyond { .. } => "BitmapBeyondExperts",
        }
    }
}

/// A set of (layer, expert) pairs of a model with `layers` x `experts` of them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ExpertSet {
    layers: usize,
    experts: usize,
    /// Bit `layer * experts + expert`, lowest bit first; bits beyond the last pair are zero.
    words: Vec<u64>,
}

impl ExpertSet {
    /// No pair at all.
    pub fn empty(layers: usize, experts: usize) -> Self {
        ExpertSet { layers, experts, words: vec![0; (layers * experts).div_ceil(64)] }
    }

    /// Every pair.
    pub fn full(layers: usize, experts: usize) -> Self {
        Self::from_range(layers, experts, 0..experts)
    }

    /// The same run of experts in every layer; what lies beyond `experts` is left out.
    pub fn from_range(layers: usize, experts: usize, range: Range<usize>) -> Self {
        let mut set = Self::empty(layers, experts);
        for layer in 0..layers {
            for expert in range.start..range.end.min(experts) {
                set.set_bit(layer * experts + expert);
            }
        }
        set
    }

    /// Number of layers of the model.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of experts in one layer of the model.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Adds a pair; false if the set has it already or the model lacks it.
    pub fn insert(&mut self, layer: LayerId, expert: ExpertId) -> bool {
        let Some(bit) = self.bit(layer, expert) else { return false };
        let new = !self.has_bit(bit);
        self.set_bit(bit);
        new
    }

    /// Takes a pair out; false if the set did not have it.
    pub fn remove(&mut self, layer: LayerId, expert: ExpertId) -> bool {
        let Some(bit) = self.bit(layer, expert).filter(|bit| self.has_bit(*bit)) else { return false };
        self.words[bit / 64] &= !(1 << (bit % 64));
        true
    }

    /// Whether the set has this pair.
    pub fn contains(&self, layer: LayerId, expert: ExpertId) -> bool {
        self.bit(layer, expert).is_some_and(|bit| self.has_bit(bit))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Its pairs, by layer, then expert.
    pub fn iter(&self) -> impl Iterator<Item = (LayerId, ExpertId)> + '_ {
        (0..self.layers as u16).map(LayerId).flat_map(|layer| self.experts_of(layer).map(move |expert| (layer, expert)))
    }

    /// Its experts of one layer, in order.
    pub fn experts_of(&self, layer: LayerId) -> impl Iterator<Item = ExpertId> + '_ {
        (0..self.experts as u16).map(ExpertId).filter(move |expert| self.contains(layer, *expert))
    }

    /// Pairs of either. Pairs of `other` that this model lacks are left out.
    pub fn union(&self, other: &ExpertSet) -> ExpertSet {
        let mut set = self.clone();
        for (layer, expert) in other.iter() {
            set.insert(layer, expert);
        }
        set
    }

    /// Pairs of this one that `other` lacks.
    pub fn difference(&self, other: &ExpertSet) -> ExpertSet {
        let mut set = self.clone();
        for (layer, expert) in other.iter() {
            set.remove(layer, expert);
        }
        set
    }

    /// Pairs of both.
    pub fn intersection(&self, other: &ExpertSet) -> ExpertSet {
        self.difference(&self.difference(other))
    }

    /// Whether `other` has every pair of this one.
    pub fn is_subset(&self, other: &ExpertSet) -> bool {
        self.iter().all(|(layer, expert)| other.contains(layer, expert))
    }

    /// Whether it has every pair of its model.
    pub fn is_full(&self) -> bool {
        self.len() == self.layers * self.experts
    }

    /// Its text form; see the head of this file.
    pub fn to_hex(&self) -> String {
        let digits = self.experts.div_ceil(4);
        let mut text = String::with_capacity(self.layers * digits);
        for layer in 0..self.layers {
            for first in (0..digits).map(|digit| digit * 4) {
                let experts = first..(first + 4).min(self.experts);
                let held = experts.filter(|expert| self.has_bit(layer * self.experts + expert));
                let digit = held.fold(0, |digit, expert| digit | (8 >> (expert - first)));
                text.extend(char::from_digit(digit, 16));
            }
        }
        text
    }

    /// Reads the text form of a set of a model with `layers` x `experts` pairs; upper case is read too.
    pub fn from_hex(layers: usize, experts: usize, text: &str) -> Result<Self, ExpertSetError> {
        let digits = experts.div_ceil(4);
        let (given, allowed) = (text.chars().count(), layers * digits);
        if given != allowed {
            return Err(ExpertSetError::Length { given, allowed, layers, digits });
        }
        let mut set = Self::empty(layers, experts);
        for (at, given) in text.chars().enumerate() {
            let value = given.to_digit(16).ok_or(ExpertSetError::Digit { at, given })?;
            let (layer, first) = (at / digits, at % digits * 4);
            for expert in (0..4).filter(|bit| value & (8 >> bit) != 0).map(|bit| first + bit) {
                if expert >= experts {
                    return Err(ExpertSetError::Beyond { layer, given: expert, last: experts - 1 });
                }
                set.set_bit(layer * experts + expert);
            }
        }
        Ok(set)
    }

    fn bit(&self, layer: LayerId, expert: ExpertId) -> Option<usize> {
        let inside = layer.index() < self.layers && expert.index() < self.experts;
        inside.then(|| layer.index() * self.experts + expert.index())
    }

    fn has_bit(&self, bit: usize) -> bool {
        self.words[bit / 64] >> (bit % 64) & 1 == 1
    }

    fn set_bit(&mut self, bit: usize) {
        self.words[bit / 64] |= 1 << (bit % 64);
    }
}

impl fmt::Debug for ExpertSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExpertSet({} of {} x {}: {})", self.len(), self.layers, self.experts, self.to_hex())
    }
}
