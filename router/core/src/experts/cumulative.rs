//! Workers count for each router from their start, and say how much it is by now; here that becomes what is new. Invariant: what was given for a worker
//! adds up to the last numbers of each of its incarnations, however often it restarts, connects anew or repeats itself.
//!
//! A stream keeps its order, so numbers of one incarnation that went backwards mean that the worker began to count anew. Those of an incarnation that was
//! seen before are held against its own last ones, because the last word of a process may come after the first one of the next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{Counts, CountsError};

/// Incarnations of one address that are remembered. Words of a process are at most seconds late, and a restart takes as long.
const INCARNATIONS: usize = 4;
/// Addresses that are remembered, the longest silent one goes first: more than the workers of any deployment, 61 KB each for 80 x 32 experts.
const ADDRESSES: usize = 1024;

#[derive(Clone, Debug)]
struct Last {
    incarnation: u64,
    counts: Counts,
}

#[derive(Clone, Debug, Default)]
struct Told {
    /// The latest to speak is last.
    by: VecDeque<Last>,
    /// When it was last spoken of.
    turn: u64,
}

/// What each worker has counted by now. Known by address, which outlives a topology that drops a worker and takes it back.
#[derive(Clone, Debug, Default)]
pub struct Cumulative {
    workers: BTreeMap<Arc<str>, Told>,
    turn: u64,
}

impl Cumulative {
    /// Nobody has said anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a worker's numbers since `incarnation`; gives what is to be booked, nothing where nothing is new.
    ///
    /// # Errors
    /// Numbers that do not add up; they are as if not said.
    pub fn take(&mut self, address: &Arc<str>, incarnation: u64, counts: &Counts) -> Result<Option<Counts>, CountsError> {
        counts.check()?;
        self.turn += 1;
        let told = self.workers.entry(Arc::clone(address)).or_default();
        told.turn = self.turn;
        let known = told.by.iter().position(|last| last.incarnation == incarnation).and_then(|at| told.by.remove(at));
        let new = match &known {
            Some(last) => since(&last.counts, counts),
            None => Counts { expert_weight: Vec::new(), ..counts.clone() },
        };
        let last = match known {
            Some(mut last) => {
                last.counts.clone_from(counts);
                last
            }
            None => Last { incarnation, counts: counts.clone() },
        };
        told.by.push_back(last);
        if told.by.len() > INCARNATIONS {
            told.by.pop_front();
        }
        self.bound();
        Ok((new.tokens > 0).then_some(new))
    }

    /// The tokens that whoever spoke last at this address has counted. A sequence whose end says `counted` is booked once this has reached it.
    pub fn tokens(&self, address: &str) -> u64 {
        self.workers.get(address).and_then(|told| told.by.back()).map_or(0, |last| last.counts.tokens)
    }

    fn bound(&mut self) {
        if self.workers.len() <= ADDRESSES {
            return;
        }
        let silent = self.workers.iter().min_by_key(|(_, told)| told.turn).map(|(address, _)| Arc::clone(address));
        if let Some(address) = silent {
            self.workers.remove(&address);
        }
    }
}

/// What came between two words of one incarnation; all of the second where it does not follow from the first.
fn since(before: &Counts, now: &Counts) -> Counts {
    let less = |now: &[u64], before: &[u64]| -> Option<Vec<u64>> {
        now.iter().zip(before).map(|(now, before)| now.checked_sub(*before)).collect()
    };
    let difference = || {
        Some(Counts {
            geometry: now.geometry,
            tokens: now.tokens.checked_sub(before.tokens)?,
            executed: now.executed.checked_sub(before.executed)?,
            skipped: now.skipped.checked_sub(before.skipped)?,
            lost: now.lost.checked_sub(before.lost)?,
            expert_tokens: less(&now.expert_tokens, &before.expert_tokens)?,
            expert_weight: Vec::new(),
            expert_skipped: less(&now.expert_skipped, &before.expert_skipped)?,
            expert_lost: less(&now.expert_lost, &before.expert_lost)?,
        })
    };
    let follows = now.geometry == before.geometry;
    follows.then(difference).flatten().unwrap_or_else(|| Counts { expert_weight: Vec::new(), ..now.clone() })
}

#[cfg(test)]
mod tests;
