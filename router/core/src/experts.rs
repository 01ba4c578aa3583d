//! The routing log: what the experts did, per answer and in all. Invariant, checked on every booking and in every layer:
//! `executed + skipped + lost = tokens x top_k x layers`. Arrays are `[layers, experts]`, layer first.

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

impl Geometry {
    /// (layer, expert) pairs.
    pub fn pairs(&self) -> usize {
        self.layers * self.experts
    }
}

/// What the experts did for one sequence, as its worker counted it.
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
    pub expert_tokens: Vec<u32>,
    /// Sum of the routing weights of those tokens.
    pub expert_weight: Vec<f32>,
    /// Tokens that the expert threshold spared it.
    pub expert_skipped: Vec<u32>,
    /// Tokens it should have computed while nobody held it.
    pub expert_lost: Vec<u32>,
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
    #[error("routing counts are of {given:?}, the model is {wanted:?}")]
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
        let lengths = [
            ("expert_tokens", self.expert_tokens.len()),
            ("expert_weight", self.expert_weight.len()),
            ("expert_skipped", self.expert_skipped.len()),
            ("expert_lost", self.expert_lost.len()),
        ];
        let wanted = self.geometry.pairs();
        if let Some((array, given)) = lengths.into_iter().find(|(_, length)| *length != wanted) {
            return Err(CountsError::Shape { array, given, wanted });
        }
        equal("expert_tokens".to_owned(), total(&self.expert_tokens), self.executed)?;
        equal("expert_skipped".to_owned(), total(&self.expert_skipped), self.skipped)?;
        equal("expert_lost".to_owned(), total(&self.expert_lost), self.lost)?;
        let per_layer = self.tokens.saturating_mul(self.geometry.top_k as u64);
        for layer in 0..self.geometry.layers {
            let sum = [&self.expert_tokens, &self.expert_skipped, &self.expert_lost].map(|array| total(self.layer(array, layer)));
            equal(format!("executed, skipped and lost of layer {layer}"), sum.iter().sum(), per_layer)?;
        }
        Ok(())
    }

    /// One layer's part of an array.
    pub fn layer<'a, T>(&self, array: &'a [T], layer: usize) -> &'a [T] {
        let experts = self.geometry.experts;
        array.get(layer * experts..(layer + 1) * experts).unwrap_or(&[])
    }

    /// Mean routing weight of the tokens each expert of a layer computed; 0 where there was none.
    pub fn mean_weight(&self, layer: usize) -> Vec<f64> {
        let tokens = self.layer(&self.expert_tokens, layer).iter();
        let weights = self.layer(&self.expert_weight, layer).iter();
        let mean = |(tokens, weight): (&u32, &f32)| if *tokens == 0 { 0.0 } else { f64::from(*weight) / f64::from(*tokens) };
        tokens.zip(weights).map(mean).collect()
    }
}

fn total(numbers: &[u32]) -> u64 {
    numbers.iter().map(|n| u64::from(*n)).sum()
}

fn equal(what: String, given: u64, wanted: u64) -> Result<(), CountsError> {
    if given == wanted { Ok(()) } else { Err(CountsError::Sum { what, given, wanted }) }
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

    /// Adds one answer's counts, all or nothing.
    ///
    /// # Errors
    /// Counts that do not add up, or of another shape.
    pub fn book(&mut self, counts: &Counts) -> Result<(), CountsError> {
        if counts.geometry != self.geometry {
            return Err(CountsError::Geometry { given: counts.geometry, wanted: self.geometry });
        }
        counts.check()?;
        self.tokens += counts.tokens;
        for (sum, tokens) in self.executed.iter_mut().zip(&counts.expert_tokens) {
            *sum += u64::from(*tokens);
        }
        Ok(())
    }

    /// Share of tokens that used an expert, times experts / top_k: 1 is an even load. Layer first.
    pub fn utilization(&self) -> impl Iterator<Item = f64> {
        let even = (self.tokens as f64 * self.geometry.top_k as f64 / self.geometry.experts as f64).max(1e-9);
        self.executed.iter().map(move |tokens| *tokens as f64 / even)
    }

    /// Per layer: mean over pods / max over pods of the tokens their experts computed, experts held linearly by `pods` pods. 1 where nothing was computed.
    pub fn balancedness(&self, pods: usize) -> Vec<f64> {
        let pods = pods.max(1);
        self.executed.chunks(self.geometry.experts.max(1)).map(|layer| balance(layer, pods)).collect()
    }
}

fn balance(layer: &[u64], pods: usize) -> f64 {
    let mut loads = vec![0u64; pods];
    for (expert, tokens) in layer.iter().enumerate() {
        if let Some(load) = loads.get_mut(holder(expert, layer.len(), pods)) {
            *load += tokens;
        }
    }
    match loads.iter().max() {
        Some(most) if *most > 0 => loads.iter().sum::<u64>() as f64 / pods as f64 / *most as f64,
        _ => 1.0,
    }
}

/// The pod that holds an expert in a linear placement of `experts` experts on `pods` pods.
pub fn holder(expert: usize, experts: usize, pods: usize) -> usize {
    (0..pods).find(|pod| m1_arch::linear_share(experts, pods, *pod).contains(&expert)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
