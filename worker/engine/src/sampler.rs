//! Picks the next id from one row of logits.
//!
//! A draw depends on the logits, the sampling parameters and (seed, position) only: not on the batch, not on what was
//! drawn before. So a sequence that is resumed elsewhere, its prompt extended by what was said, goes on as it would have.
//! Greedy takes the largest logit, the lowest id among equals. Nothing is allocated per token; only log-probabilities
//! that were asked for are.

use crate::allowed::AllowedIds;
use crate::executor::{Draw, Drawn};

/// How many of the most probable ids the nucleus looks at first; grows eightfold while they do not reach `top_p`.
/// Large enough for nearly every step of a language model, small enough that sorting it costs less than the scan.
const FIRST_NUCLEUS: usize = 256;

/// How ids are drawn. Checked by [`crate::SequenceSpec`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; otherwise logits are divided by it. Finite, not negative.
    pub temperature: f32,
    /// Only the most probable ids whose probabilities sum to at least this are drawn. Within (0, 1]; 1 draws from all.
    pub top_p: f32,
    /// Key of the draws, together with the position.
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable id.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, seed: 0 };
}

/// Log-probabilities of one token, at temperature 1, over the ids that may be drawn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenLogprobs {
    /// Of the chosen id.
    pub logprob: f32,
    /// The most probable ids, best first, the lowest id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Why no id could be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN, or the largest is infinite.
    #[error("the logits at position {position} are not finite")]
    NonFiniteLogits {
        /// Position of the token that was to be drawn.
        position: u32,
    },
}

impl SampleError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NonFiniteLogits { .. } => "NonFiniteLogits",
        }
    }
}

/// An id and its unnormalised probability.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    weight: f32,
}

/// Draws ids; owns the scratch memory this takes.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
    biased: Vec<f32>,
}

impl Sampler {
    /// What this draw gives, from the logits `[vocab]` of its row.
    pub fn draw(&mut self, logits: &[f32], draw: &Draw) -> Drawn {
        if draw.bias.is_empty() {
            return self.from(logits, draw);
        }
        let mut biased = std::mem::take(&mut self.biased);
        biased.clear();
        biased.extend_from_slice(logits);
        for &(id, bias) in &draw.bias {
            if let Some(logit) = biased.get_mut(id as usize) {
                *logit += bias;
            }
        }
        let drawn = self.from(&biased, draw);
        self.biased = biased;
        drawn
    }

    fn from(&mut self, logits: &[f32], draw: &Draw) -> Drawn {
        let id = match draw.forced {
            Some(id) => Ok(id),
            None => self.choose(logits, &draw.sampling, draw.position, &draw.allowed),
        };
        let logprobs = match (draw.logprobs.checked_sub(1), id) {
            (Some(top), Ok(id)) => logprobs(logits, id, top as usize, &draw.allowed).map(Box::new),
            _ => None,
        };
        Drawn { id, logprobs }
    }

    /// The id for `position`, from the logits `[vocab]` of the position before it.
    ///
    /// # Errors
    /// A logit is NaN, or the largest is infinite.
    pub fn choose(&mut self, logits: &[f32], sampling: &Sampling, position: u32, allowed: &AllowedIds) -> Result<u32, SampleError> {
        let (best, peak) = peak(logits, allowed).ok_or(SampleError::NonFiniteLogits { position })?;
        if sampling.temperature == 0.0 {
            return Ok(best);
        }
        let total = self.weigh(logits, peak, sampling.temperature, allowed);
        let draw = uniform(sampling.seed, position);
        if sampling.top_p >= 1.0 {
            return Ok(pick(&self.candidates, draw * total).unwrap_or(best));
        }
        let (kept, sum) = nucleus(&mut self.candidates, f64::from(sampling.top_p) * total);
        Ok(pick(&self.candidates[..kept], draw * sum).unwrap_or(best))
    }

    /// Fills the candidates with `exp((logit - peak) / temperature)` in id order; their sum.
    fn weigh(&mut self, logits: &[f32], peak: f32, temperature: f32, allowed: &AllowedIds) -> f64 {
        let candidates = &mut self.candidates;
        candidates.clear();
        let mut total = 0.0f64;
        allowed.for_each(logits, |id, logit| {
            // Divided, not multiplied by the inverse: the inverse of a tiny temperature is infinite, and 0 * inf is NaN.
            let weight = ((logit - peak) / temperature).exp();
            if weight > 0.0 {
                total += f64::from(weight);
                candidates.push(Candidate { id, weight });
            }
        });
        total
    }
}

/// Log-probabilities of `chosen` and of the `top` most probable ids; `None` where the logits are not finite.
pub fn logprobs(logits: &[f32], chosen: u32, top: usize, allowed: &AllowedIds) -> Option<TokenLogprobs> {
    let (_, peak) = peak(logits, allowed)?;
    let mut sum = 0.0f64;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    allowed.for_each(logits, |id, logit| {
        sum += f64::from((logit - peak).exp());
        if best.len() < top || best.last().is_some_and(|&(_, least)| logit > least) {
            let place = best.partition_point(|&(_, other)| other >= logit);
            best.insert(place, (id, logit));
            best.truncate(top);
        }
    });
    let log_sum = f64::from(peak) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let chosen = logits.get(chosen as usize).copied()?;
    best.iter_mut().for_each(|(_, logit)| *logit = logprob(*logit));
    Some(TokenLogprobs { logprob: logprob(chosen), top: best })
}

/// The largest logit and its lowest id; `None` where one is NaN or the largest is infinite.
fn peak(logits: &[f32], allowed: &AllowedIds) -> Option<(u32, f32)> {
    let (mut best, mut peak, mut nan) = (0, f32::NEG_INFINITY, false);
    allowed.for_each(logits, |id, logit| {
        nan |= logit.is_nan();
        if logit > peak {
            (best, peak) = (id, logit);
        }
    });
    (!nan && peak.is_finite()).then_some((best, peak))
}

/// Moves the most probable candidates that together weigh at least `needed` to the front, sorted; their number and sum.
fn nucleus(candidates: &mut [Candidate], needed: f64) -> (usize, f64) {
    let order = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id));
    let mut look = FIRST_NUCLEUS;
    loop {
        let looked = look.min(candidates.len());
        if looked < candidates.len() {
            candidates.select_nth_unstable_by(looked, order);
        }
        candidates[..looked].sort_unstable_by(order);
        let mut sum = 0.0;
        for (index, candidate) in candidates[..looked].iter().enumerate() {
            sum += f64::from(candidate.weight);
            if sum >= needed {
                return (index + 1, sum);
            }
        }
        if looked == candidates.len() {
            return (looked, sum);
        }
        look = look.saturating_mul(8);
    }
}

/// The candidate in whose share of the running sum `target` falls; the last one where rounding leaves none.
fn pick(candidates: &[Candidate], target: f64) -> Option<u32> {
    let mut sum = 0.0;
    for candidate in candidates {
        sum += f64::from(candidate.weight);
        if target < sum {
            return Some(candidate.id);
        }
    }
    candidates.last().map(|candidate| candidate.id)
}

/// A number in [0, 1) that depends on the key alone: two rounds of the splitmix64 finaliser.
fn uniform(seed: u64, position: u32) -> f64 {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let key = mix(seed.wrapping_add(STEP)) ^ u64::from(position).wrapping_add(1).wrapping_mul(STEP);
    // The upper 53 bits are what an f64 holds exactly.
    (mix(key) >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
