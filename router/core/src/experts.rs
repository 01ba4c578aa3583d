//! The routing log: what the experts did, per answer and in all. Invariant, checked on every booking and in every layer:
//! `executed + skipped + lost = tokens x top_k x layers`. Arrays are `[layers, experts]`, layer first.

mod cumulative;

use std::sync::Arc;

use m1_arch::ExpertSet;

pub use cumulative::Cumulative;

/// The shape of a model's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Layers with experts.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts a token uses in a layer.
    pub top_k: usize,
}

impl std::fmt::Display for Geometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layers, experts, top_k } = self;
        write!(f, "{layers} layers of {experts} experts, {top_k} for each token")
    }
}

impl Geometry {
    /// (layer, expert) pairs.
    pub fn pairs(&self) -> usize {
        self.layers * self.experts
    }
}

/// What the experts did, as a worker counted it: for one sequence, or in all.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts {
    /// The model's shape.
    pub geometry: Geometry,
    /// Tokens that passed through the layers.
    pub tokens: u64,
    /// Sum of `expert_tokens`.
    pub executed: u64,
    /// Sum of `expert_skipped`.
    pub skipped: u64,
    /// Sum of `expert_lost`.
    pub lost: u64,
    /// Tokens each expert computed.
    pub expert_tokens: Vec<u64>,
    /// Sum of the routing weights of those tokens; empty where nobody counted them, as in all.
    pub expert_weight: Vec<f32>,
    /// Tokens that the expert threshold spared it.
    pub expert_skipped: Vec<u64>,
    /// Tokens it should have computed while nobody held it.
    pub expert_lost: Vec<u64>,
}

/// Why counts cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountsError {
    /// An array is not `[layers, experts]`.
    #[error("routing counts: {array} has {given} numbers, layers x experts is {wanted}")]
    Shape {
        /// Which.
        array: &'static str,
        /// Its length.
        given: usize,
        /// What it must be.
        wanted: usize,
    },
    /// A layer, or the whole, does not add up.
    #[error("routing counts: {what} add up to {given}, not to {wanted}")]
    Sum {
        /// Which numbers.
        what: String,
        /// Their sum.
        given: u64,
        /// What it must be.
        wanted: u64,
    },
    /// Another model's counts.
    #[error("routing counts are of {given}, the model has {wanted}")]
    Geometry {
        /// Theirs.
        given: Geometry,
        /// Ours.
        wanted: Geometry,
    },
}

impl CountsError {
    /// The word for logs and answers.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Shape { .. } => "RoutingShape",
            Self::Sum { .. } => "RoutingSum",
            Self::Geometry { .. } => "RoutingGeometry",
        }
    }
}

impl Counts {
    /// Holds the numbers against each other.
    ///
    /// # Errors
    /// The first array or sum that is wrong.
    pub fn check(&self) -> Result<(), CountsError> {
        let weights = if self.expert_weight.is_empty() { self.geometry.pairs() } else { self.expert_weight.len() };
        let lengths = [
            ("expert_tokens", self.expert_tokens.len()),
            ("expert_weight", weights),
            ("expert_skipped", self.expert_skipped.len()),
            ("expert_lost", self.expert_lost.len()),
        ];
        let wanted = self.geometry.pairs();
        if let Some((array, given)) = lengths.into_iter().find(|(_, length)| *length != wanted) {
            return Err(CountsError::Shape { array, given, wanted });
        }
        equal(|| "expert_tokens".to_owned(), total(&self.expert_tokens), self.executed)?;
        equal(|| "expert_skipped".to_owned(), total(&self.expert_skipped), self.skipped)?;
        equal(|| "expert_lost".to_owned(), total(&self.expert_lost), self.lost)?;
        let per_layer = self.tokens.saturating_mul(self.geometry.top_k as u64);
        for layer in 0..self.geometry.layers {
            let sum = [&self.expert_tokens, &self.expert_skipped, &self.expert_lost].map(|array| total(self.layer(array, layer)));
            equal(|| format!("executed, skipped and lost of layer {layer}"), total(&sum), per_layer)?;
        }
        Ok(())
    }

    /// One layer's part of an array.
    pub fn layer<'a, T>(&self, array: &'a [T], layer: usize) -> &'a [T] {
        let experts = self.geometry.experts;
        array.get(layer * experts..(layer + 1) * experts).unwrap_or(&[])
    }

    /// Mean routing weight of the tokens each expert of a layer computed; 0 where there was none, nothing where weights were not counted.
    pub fn mean_weight(&self, layer: usize) -> Vec<f64> {
        let tokens = self.layer(&self.expert_tokens, layer).iter();
        let weights = self.layer(&self.expert_weight, layer).iter();
        let mean = |(tokens, weight): (&u64, &f32)| if *tokens == 0 { 0.0 } else { f64::from(*weight) / *tokens as f64 };
        tokens.zip(weights).map(mean).collect()
    }
}

fn total(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |sum, n| sum.saturating_add(*n))
}

/// `what` is only put in words where it is wrong: this runs for every layer of every status.
fn equal(what: impl FnOnce() -> String, given: u64, wanted: u64) -> Result<(), CountsError> {
    if given == wanted { Ok(()) } else { Err(CountsError::Sum { what: what(), given, wanted }) }
}

/// What the experts have done since the router started.
#[derive(Clone, Debug)]
pub struct Ledger {
    geometry: Geometry,
    tokens: u64,
    executed: Vec<u64>,
}

impl Ledger {
    /// Nothing done.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, tokens: 0, executed: vec![0; geometry.pairs()] }
    }

    /// The model's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Adds counts, all or nothing: one answer's, or what a [`Cumulative`] gave.
    ///
    /// # Errors
    /// Counts that do not add up, or of another shape.
    pub fn book(&mut self, counts: &Counts) -> Result<(), CountsError> {
        if counts.geometry != self.geometry {
            return Err(CountsError::Geometry { given: counts.geometry, wanted: self.geometry });
        }
        counts.check()?;
        // Saturating: what workers say is not ours to bound.
        self.tokens = self.tokens.saturating_add(counts.tokens);
        for (sum, tokens) in self.executed.iter_mut().zip(&counts.expert_tokens) {
            *sum = sum.saturating_add(*tokens);
        }
        Ok(())
    }

    /// Share of tokens that used an expert, times experts / top_k: 1 is an even load. Layer first.
    pub fn utilization(&self) -> impl Iterator<Item = f64> {
        let even = (self.tokens as f64 * self.geometry.top_k as f64 / self.geometry.experts as f64).max(1e-9);
        self.executed.iter().map(move |tokens| *tokens as f64 / even)
    }

    /// Per layer: mean over pods / max over pods of the tokens their experts computed, by what each of `pods` holds. An expert's tokens count for its
    /// holders in equal parts; those of an expert that nobody holds any more for none. 1 where nothing was computed.
    pub fn balancedness(&self, pods: &[Arc<ExpertSet>]) -> Vec<f64> {
        let copies = copies(self.geometry, pods);
        let mut loads = vec![vec![0.0; pods.len()]; self.geometry.layers];
        for (pod, held) in pods.iter().enumerate() {
            for (layer, pair) in pairs(self.geometry, held) {
                let tokens = self.executed.get(pair).copied().unwrap_or(0) as f64;
                let holders = copies.get(pair).copied().unwrap_or(0).max(1);
                if let Some(load) = loads.get_mut(layer).and_then(|layer| layer.get_mut(pod)) {
                    *load += tokens / f64::from(holders);
                }
            }
        }
        loads.iter().map(|loads| balance(loads)).collect()
    }
}

fn balance(loads: &[f64]) -> f64 {
    let most = loads.iter().copied().fold(0.0, f64::max);
    if most > 0.0 { loads.iter().sum::<f64>() / loads.len() as f64 / most } else { 1.0 }
}

/// How many of `pods` hold each (layer, expert) of the model. Layer first.
pub fn copies(geometry: Geometry, pods: &[Arc<ExpertSet>]) -> Vec<u32> {
    let mut copies = vec![0u32; geometry.pairs()];
    for (_, pair) in pods.iter().flat_map(|held| pairs(geometry, held)) {
        if let Some(copies) = copies.get_mut(pair) {
            *copies += 1;
        }
    }
    copies
}

/// What each of `pods` pods holds in a linear placement: where nobody says what a pod holds.
pub fn linear(geometry: Geometry, pods: usize) -> Vec<Arc<ExpertSet>> {
    let share = |pod| m1_arch::linear_share(geometry.experts, pods, pod);
    (0..pods).map(|pod| Arc::new(ExpertSet::from_range(geometry.layers, geometry.experts, share(pod)))).collect()
}

/// Layer and place in a layer-first array of every pair of a set; pairs of another shape than the model's are left out.
fn pairs(geometry: Geometry, held: &ExpertSet) -> impl Iterator<Item = (usize, usize)> {
    let ids = held.iter().map(|(layer, expert)| (layer.index(), expert.index()));
    ids.filter(move |(layer, expert)| *layer < geometry.layers && *expert < geometry.experts)
        .map(move |(layer, expert)| (layer, layer * geometry.experts + expert))
}

#[cfg(test)]
mod tests;
