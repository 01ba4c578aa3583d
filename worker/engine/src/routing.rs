//! Which experts the tokens went to, counted where it is decided.
//!
//! Every place of a token's routing ends as executed, skipped (by the threshold) or lost (nobody holds the expert), so
//! `executed + skipped + lost = tokens x top_k x layers`. An executor stages a step layer by layer in [`StepRouting`]; it is counted
//! only when it is complete, so a step that fails leaves no half-counted tokens. Nothing is allocated per token.

use std::ops::Range;

use m1_arch::{Architecture, ExpertId, LayerId};

use crate::executor::{LayerRouting, Segment, UNUSED};

/// The geometry that counts are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingShape {
    /// Layers of the model.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
}

impl RoutingShape {
    /// The shape of a model.
    pub fn of(architecture: &Architecture) -> Self {
        Self { layers: architecture.layers.len(), experts: architecture.experts, top_k: architecture.top_k }
    }
}

/// Whom some sequences are counted for, beside the worker: the caller's number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TallyId(pub u64);

/// What the experts did, for one sequence or for a worker. Arrays are `[layers, experts]`, layer first, or empty where they
/// are not kept: 80 layers of 32 experts take 80 KB.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingCounts {
    /// Geometry of the arrays.
    pub shape: RoutingShape,
    /// Tokens that passed through all layers.
    pub tokens: u64,
    /// Places whose expert computed.
    pub executed: u64,
    /// Places the threshold left out.
    pub skipped: u64,
    /// Places whose expert nobody held.
    pub lost: u64,
    /// Tokens each expert computed.
    pub expert_tokens: Vec<u64>,
    /// Sum of the weights it was applied with.
    pub expert_weight: Vec<f64>,
    /// Tokens the threshold kept from it.
    pub expert_skipped: Vec<u64>,
    /// Tokens that would have gone to it had somebody held it.
    pub expert_lost: Vec<u64>,
}

impl RoutingCounts {
    /// All zero.
    pub fn new(shape: RoutingShape) -> Self {
        let cells = shape.layers * shape.experts;
        Self { expert_weight: vec![0.0; cells], ..Self::without_weights(shape) }
    }

    /// All zero; the weights are not kept.
    pub fn without_weights(shape: RoutingShape) -> Self {
        let cells = shape.layers * shape.experts;
        let (expert_tokens, expert_skipped, expert_lost) = (vec![0; cells], vec![0; cells], vec![0; cells]);
        Self { expert_tokens, expert_skipped, expert_lost, ..Self::totals(shape) }
    }

    /// All zero; no array is kept.
    pub fn totals(shape: RoutingShape) -> Self {
        let (expert_tokens, expert_weight, expert_skipped, expert_lost) = Default::default();
        Self { shape, tokens: 0, executed: 0, skipped: 0, lost: 0, expert_tokens, expert_weight, expert_skipped, expert_lost }
    }

    fn count(&mut self, cell: usize, place: Place, weight: f32) {
        let (total, cells) = match place {
            Place::Executed => (&mut self.executed, &mut self.expert_tokens),
            Place::Skipped => (&mut self.skipped, &mut self.expert_skipped),
            Place::Lost => (&mut self.lost, &mut self.expert_lost),
        };
        *total += 1;
        if let Some(count) = cells.get_mut(cell) {
            *count += 1;
        }
        if let (Place::Executed, Some(sum)) = (place, self.expert_weight.get_mut(cell)) {
            *sum += f64::from(weight);
        }
    }
}

/// Leaves rows whose first expert weighs at least `threshold` to that expert alone, with weight 1; their other places
/// become [`UNUSED`]. At 1 the rule is off, also for a first expert that weighs exactly 1.
pub fn apply_threshold(routing: &mut LayerRouting, rows: Range<usize>, threshold: f32) {
    let top_k = routing.top_k;
    if threshold >= 1.0 || top_k < 2 {
        return;
    }
    let places = rows.start * top_k..rows.end * top_k;
    let (Some(experts), Some(weights)) = (routing.experts.get_mut(places.clone()), routing.weights.get_mut(places)) else {
        return;
    };
    for (experts, weights) in experts.chunks_exact_mut(top_k).zip(weights.chunks_exact_mut(top_k)) {
        if weights[0] >= threshold {
            experts[1..].fill(UNUSED);
            weights[1..].fill(0.0);
            weights[0] = 1.0;
        }
    }
}

/// What became of one place of a token's routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Executed,
    Skipped,
    Lost,
}

/// The routing of a step in flight, `[layers, rows, top_k]`, before it is counted.
#[derive(Debug)]
pub struct StepRouting {
    shape: RoutingShape,
    rows: usize,
    booked: Vec<bool>,
    experts: Vec<u16>,
    weights: Vec<f32>,
    places: Vec<Place>,
}

impl StepRouting {
    /// Of no step yet.
    pub fn new(shape: RoutingShape) -> Self {
        let (experts, weights, places) = (Vec::new(), Vec::new(), Vec::new());
        Self { shape, rows: 0, booked: vec![false; shape.layers], experts, weights, places }
    }

    /// Starts a step of so many rows. Memory only grows.
    pub fn begin(&mut self, rows: usize) {
        self.rows = rows;
        self.booked.fill(false);
        let places = self.shape.layers * rows * self.shape.top_k;
        if self.experts.len() < places {
            self.experts.resize(places, UNUSED);
            self.weights.resize(places, 0.0);
            self.places.resize(places, Place::Executed);
        }
    }

    /// Applies each segment's threshold to a layer's routing and stages the outcome. Staging a layer again replaces it.
    ///
    /// # Errors
    /// Routing that does not fit the step or the model; the step should be failed.
    pub fn book(&mut self, layer: LayerId, routing: &mut LayerRouting, segments: &[Segment]) -> Result<(), RoutingError> {
        self.check(layer, routing)?;
        let staged = self.layer(layer);
        self.experts[staged.clone()].copy_from_slice(&routing.experts);
        for segment in segments {
            apply_threshold(routing, segment.rows(), segment.threshold);
        }
        self.weights[staged.clone()].copy_from_slice(&routing.weights);
        for (place, &expert) in self.places[staged].iter_mut().zip(&routing.experts) {
            *place = if expert == UNUSED { Place::Skipped } else { Place::Executed };
        }
        self.booked[usize::from(layer.0)] = true;
        Ok(())
    }

    /// Stages that a row went without an expert; the weights of its other executed experts are scaled to sum to 1.
    ///
    /// # Errors
    /// A row that was not routed to this expert, or has lost it already.
    pub fn lose(&mut self, layer: LayerId, row: u32, expert: ExpertId) -> Result<(), RoutingError> {
        let unrouted = RoutingError::NotRouted { layer, row, expert };
        let row = row as usize;
        if row >= self.rows || !self.booked.get(usize::from(layer.0)).is_some_and(|&booked| booked) {
            return Err(unrouted);
        }
        let start = self.layer(layer).start + row * self.shape.top_k;
        let staged = start..start + self.shape.top_k;
        let place = staged.clone().find(|&at| self.experts[at] == expert.0 && self.places[at] == Place::Executed);
        self.places[place.ok_or(unrouted)?] = Place::Lost;
        let executed = || staged.clone().filter(|&at| self.places[at] == Place::Executed);
        let left: f32 = executed().map(|at| self.weights[at]).sum();
        if left > 0.0 {
            for at in staged.filter(|&at| self.places[at] == Place::Executed) {
                self.weights[at] /= left;
            }
        }
        Ok(())
    }

    /// The first layer that was not staged.
    pub(crate) fn missing(&self) -> Option<usize> {
        self.booked.iter().position(|&booked| !booked)
    }

    /// Counts the staged rows.
    pub fn count(&self, rows: Range<usize>, counts: &mut RoutingCounts) {
        let RoutingShape { layers, experts, top_k } = self.shape;
        counts.tokens += rows.len() as u64;
        for layer in 0..layers {
            let base = layer * self.rows * top_k;
            for at in base + rows.start * top_k..base + rows.end * top_k {
                counts.count(layer * experts + usize::from(self.experts[at]), self.places[at], self.weights[at]);
            }
        }
    }

    fn layer(&self, layer: LayerId) -> Range<usize> {
        let places = self.rows * self.shape.top_k;
        let start = usize::from(layer.0) * places;
        start..start + places
    }

    fn check(&self, layer: LayerId, routing: &LayerRouting) -> Result<(), RoutingError> {
        let places = self.rows * self.shape.top_k;
        let sizes = [
            ("tokens", routing.tokens, self.rows),
            ("top_k", routing.top_k, self.shape.top_k),
            ("experts", routing.experts.len(), places),
            ("weights", routing.weights.len(), places),
        ];
        if usize::from(layer.0) >= self.shape.layers {
            return Err(RoutingError::NoSuchLayer { layer, layers: self.shape.layers });
        }
        if let Some(&(what, given, needed)) = sizes.iter().find(|(_, given, needed)| given != needed) {
            return Err(RoutingError::Size { layer, what, given, needed });
        }
        match routing.experts.iter().find(|&&expert| usize::from(expert) >= self.shape.experts) {
            Some(&expert) => Err(RoutingError::NoSuchExpert { layer, expert, experts: self.shape.experts }),
            None => Ok(()),
        }
    }
}

/// Why a layer's routing could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// A layer the model lacks.
    #[error("layer is {}; the model has {layers} layers", .layer.0)]
    NoSuchLayer {
        /// The layer given.
        layer: LayerId,
        /// Layers of the model.
        layers: usize,
    },
    /// Arrays that do not fit the step.
    #[error("layer {}: the routing's {what} is {given}; the step needs {needed}", .layer.0)]
    Size {
        /// Layer of the routing.
        layer: LayerId,
        /// Field of the routing.
        what: &'static str,
        /// Its value or length.
        given: usize,
        /// What the step needs.
        needed: usize,
    },
    /// An expert the model lacks.
    #[error("layer {}: the routing names expert {expert}; the model has {experts} experts", .layer.0)]
    NoSuchExpert {
        /// Layer of the routing.
        layer: LayerId,
        /// The expert given.
        expert: u16,
        /// Experts per layer.
        experts: usize,
    },
    /// A loss of what was not routed.
    #[error("layer {} row {row} was not routed to expert {}", .layer.0, .expert.0)]
    NotRouted {
        /// Layer given.
        layer: LayerId,
        /// Row given.
        row: u32,
        /// Expert given.
        expert: ExpertId,
    },
}

impl RoutingError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchLayer { .. } => "NoSuchLayer",
            Self::Size { .. } => "RoutingSize",
            Self::NoSuchExpert { .. } => "NoSuchExpert",
            Self::NotRouted { .. } => "NotRouted",
        }
    }
}

#[cfg(test)]
mod tests;
