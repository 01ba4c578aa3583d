//! Picks the next id from one row of logits.
//!
//! A draw depends on the logits, the sampling parameters and (seed, position) only: not on the batch, not on what was
//! drawn before. So a sequence that is resumed elsewhere, its prompt extended by what was said, goes on as it would have.
//! Greedy takes the largest logit, the lowest id among equals. Nothing is allocated per token; only log-probabilities
//! that were asked for are.

use m1_kernels::Path;
use m1_kernels::likelihood::{self, SizeClass, Sizes};

use crate::allowed::AllowedIds;
use crate::executor::{Draw, Drawn};

/// Numbers that are looked through at once.
const PIECE: usize = 64;

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

/// An id and its likelihood, an unnormalised probability.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    likelihood: f32,
}

/// Draws ids; owns the scratch memory this takes.
#[derive(Debug)]
pub struct Sampler {
    path: Path,
    likelihoods: Vec<f32>,
    sizes: Sizes,
    candidates: Vec<Candidate>,
    biased: Vec<f32>,
}

impl Default for Sampler {
    fn default() -> Self {
        let (likelihoods, candidates, biased) = (Vec::new(), Vec::new(), Vec::new());
        Self { path: Path::detect(), likelihoods, sizes: Sizes::default(), candidates, biased }
    }
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
            (Some(top), Ok(id)) => self.logprobs(logits, id, top as usize, &draw.allowed).map(Box::new),
            _ => None,
        };
        Drawn { id, logprobs }
    }

    /// The id for `position`, from the logits `[vocab]` of the position before it.
    ///
    /// # Errors
    /// A logit is NaN, or the largest is infinite.
    pub fn choose(&mut self, logits: &[f32], sampling: &Sampling, position: u32, allowed: &AllowedIds) -> Result<u32, SampleError> {
        let peak = self.peak(logits, allowed).ok_or(SampleError::NonFiniteLogits { position })?;
        if sampling.temperature == 0.0 {
            return first(logits, peak, allowed).ok_or(SampleError::NonFiniteLogits { position });
        }
        let total = self.weigh(logits, peak, sampling.temperature, allowed);
        let kept = match sampling.top_p {
            top_p if top_p < 1.0 => self.reach(f64::from(top_p) * total, |sum, needed| sum >= needed).map(|(_, sum)| sum),
            _ => Some(total),
        };
        let drawn = uniform(sampling.seed, position) * kept.unwrap_or(total);
        let drawn = self.reach(drawn, |sum, target| sum > target).map(|(id, _)| id);
        drawn.or_else(|| first(logits, peak, allowed)).ok_or(SampleError::NonFiniteLogits { position })
    }

    /// Log-probabilities of `chosen` and of the `top` most probable ids; `None` where the logits are not finite.
    pub fn logprobs(&mut self, logits: &[f32], chosen: u32, top: usize, allowed: &AllowedIds) -> Option<TokenLogprobs> {
        let peak = self.peak(logits, allowed)?;
        let log_sum = f64::from(peak) + self.weigh(logits, peak, 1.0, allowed).ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
        for (id, logit) in allowed.runs().flatten().filter_map(|id| Some((id as u32, *logits.get(id)?))) {
            if best.len() < top || best.last().is_some_and(|&(_, least)| logit > least) {
                let place = best.partition_point(|&(_, other)| other >= logit);
                best.insert(place, (id, logit));
                best.truncate(top);
            }
        }
        best.iter_mut().for_each(|(_, logit)| *logit = logprob(*logit));
        Some(TokenLogprobs { logprob: logprob(*logits.get(chosen as usize)?), top: best })
    }

    /// The largest logit; `None` where one is NaN or the largest is infinite.
    fn peak(&self, logits: &[f32], allowed: &AllowedIds) -> Option<f32> {
        let mut peak = f32::NEG_INFINITY;
        for run in allowed.runs() {
            let largest = likelihood::largest(self.path, logits.get(run)?);
            if largest.is_nan() {
                return None;
            }
            peak = peak.max(largest);
        }
        peak.is_finite().then_some(peak)
    }

    /// Likelihoods, `e^((logit - peak) / temperature)`, in id order, 0 for what is not allowed; their sum.
    fn weigh(&mut self, logits: &[f32], peak: f32, temperature: f32, allowed: &AllowedIds) -> f64 {
        self.likelihoods.resize(logits.len(), 0.0);
        self.sizes.clear();
        let mut end = 0;
        for run in allowed.runs() {
            self.likelihoods[end..run.start].fill(0.0);
            end = run.end;
            let (logits, likelihoods) = (&logits[run.clone()], &mut self.likelihoods[run]);
            likelihood::weigh(self.path, logits, (peak, temperature), likelihoods, &mut self.sizes);
        }
        self.likelihoods[end..].fill(0.0);
        self.sizes.descending().map(|(_, sum)| sum).sum()
    }

    /// Goes through the candidates, the most likely first and the lowest id among equals, until `enough(sum so far, goal)`: that candidate and the
    /// sum. The last one where rounding leaves none. Only those of one size are looked at one by one.
    fn reach(&mut self, goal: f64, enough: impl Fn(f64, f64) -> bool) -> Option<(u32, f64)> {
        let (mut before, mut last) = (0.0, None);
        for (class, sum) in self.sizes.descending() {
            last = Some((class, before));
            if enough(before + sum, goal) {
                break;
            }
            before += sum;
        }
        let (class, mut sum) = last?;
        self.gather(class);
        self.candidates.sort_unstable_by(|a, b| b.likelihood.total_cmp(&a.likelihood).then(a.id.cmp(&b.id)));
        for candidate in &self.candidates {
            sum += f64::from(candidate.likelihood);
            if enough(sum, goal) {
                return Some((candidate.id, sum));
            }
        }
        self.candidates.last().map(|candidate| (candidate.id, sum))
    }

    /// Fills the candidates with those of one size, in id order.
    fn gather(&mut self, class: SizeClass) {
        self.candidates.clear();
        for (index, piece) in self.likelihoods.chunks(PIECE).enumerate() {
            // Most pieces have none, and without a branch within them they are looked through many numbers at a time.
            if !piece.iter().fold(false, |any, likelihood| any | class.has(*likelihood)) {
                continue;
            }
            for (at, &likelihood) in piece.iter().enumerate().filter(|(_, likelihood)| class.has(**likelihood)) {
                self.candidates.push(Candidate { id: (index * PIECE + at) as u32, likelihood });
            }
        }
    }
}

/// The lowest allowed id with this logit.
fn first(logits: &[f32], logit: f32, allowed: &AllowedIds) -> Option<u32> {
    allowed.runs().find_map(|run| {
        let at = logits.get(run.clone())?.iter().position(|other| *other == logit)?;
        Some((run.start + at) as u32)
    })
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
