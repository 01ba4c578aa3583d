//! Steps of decode and prefill, as a scheduler would ask for them.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use m1_cpu::CpuExecutor;
use m1_engine::{AllowedIds, Batch, Completion, Draw, RoutingCounts, RoutingShape, Sampling, SlotId};
use m1_executor_suite::{Rig, Turn};

/// Decode steps of one measurement.
pub const STEPS: usize = 32;
/// Prompt before the measured decode steps.
pub const PROMPT: usize = 64;

/// Where ids to feed come from.
pub struct Ids {
    given: Option<std::vec::IntoIter<u32>>,
    taken: usize,
}

impl Ids {
    /// The same ones in every run.
    pub fn made_up() -> Self {
        Self { given: None, taken: 0 }
    }

    /// Those of a file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let ids: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
        Ok(Self { given: Some(ids.with_context(|| format!("{}: not all are ids", path.display()))?.into_iter()), taken: 0 })
    }

    fn next(&mut self, count: usize) -> Result<Vec<u32>> {
        self.taken += count;
        match &mut self.given {
            None => Ok(prompt(count, self.taken)),
            Some(ids) => {
                let some: Vec<u32> = ids.by_ref().take(count).collect();
                ensure!(some.len() == count, "the file has fewer than {} ids", self.taken);
                Ok(some)
            }
        }
    }
}

/// What came of the steps of a decode.
pub struct Decoded {
    pub seconds: f64,
    /// Experts that had work, over all layers and steps.
    pub experts: f64,
}

/// `STEPS` steps of so many sequences, after prompts of `PROMPT` tokens.
pub fn decode(executor: &mut Rig<CpuExecutor>, sequences: usize, ids: &mut Ids) -> Result<Decoded> {
    let slots: Vec<SlotId> = (0..sequences as u32).map(SlotId).collect();
    let mut turns = Vec::new();
    for slot in &slots {
        turns.push((*slot, 0, ids.next(PROMPT)?));
    }
    step(executor, &turns)?;
    let shape = RoutingShape::of(&executor.arch);
    let mut decoded = Decoded { seconds: 0.0, experts: 0.0 };
    for count in 0..STEPS {
        for turn in &mut turns {
            *turn = (turn.0, PROMPT + count, ids.next(1)?);
        }
        let begun = Instant::now();
        let results = step(executor, &turns)?;
        decoded.seconds += begun.elapsed().as_secs_f64();
        let mut counts = RoutingCounts::without_weights(shape);
        results.routing.count(0..sequences, &mut counts);
        decoded.experts += counts.expert_tokens.iter().filter(|tokens| **tokens > 0).count() as f64;
    }
    slots.into_iter().for_each(|slot| executor.close(slot));
    Ok(decoded)
}

/// Seconds that a prompt takes in one step.
pub fn prefill(executor: &mut Rig<CpuExecutor>, tokens: usize) -> Result<f64> {
    let start = Instant::now();
    step(executor, &[(SlotId(0), 0, prompt(tokens, 5))])?;
    let seconds = start.elapsed().as_secs_f64();
    executor.close(SlotId(0));
    Ok(seconds)
}

/// Made-up ids.
pub fn prompt(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i + 1) * (seed + 3) * 7919 % 31_000) as u32).collect()
}

/// One step, which draws greedily after the last row of each sequence.
pub fn step(executor: &mut Rig<CpuExecutor>, turns: &[(SlotId, usize, Vec<u32>)]) -> Result<m1_engine::Results> {
    let batch = batch(executor, turns);
    executor.begin(batch);
    let results = match executor.completion() {
        Completion::Ended { results, .. } => results,
        Completion::Failed { error, .. } => return Err(error).context("a step fails"),
        other => bail!("a step does not end but says {other:?}"),
    };
    ensure!(results.drawn.iter().all(|drawn| drawn.id.is_ok()), "a logit is no number");
    Ok(results)
}

/// A step's input.
pub fn batch(executor: &mut Rig<CpuExecutor>, turns: &[(SlotId, usize, Vec<u32>)]) -> Batch {
    let turn = |(slot, position, ids): &(SlotId, usize, Vec<u32>)| {
        let prompt = position + ids.len();
        Turn { slot: *slot, position: *position, ids: ids.clone(), prompt }
    };
    let mut batch = executor.pack(&turns.iter().map(turn).collect::<Vec<_>>());
    batch.logit_rows.clear();
    let allowed = Arc::new(AllowedIds::all(executor.arch.vocab as u32));
    for segment in &batch.segments {
        batch.draws.push(Draw {
            row: segment.start + segment.tokens - 1,
            position: segment.position + segment.tokens,
            sampling: Sampling::GREEDY,
            allowed: allowed.clone(),
            bias: Vec::new(),
            forced: None,
            logprobs: 0,
        });
    }
    batch
}
