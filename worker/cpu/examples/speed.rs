//! Tokens per second of one worker that holds a whole checkpoint: `speed DIR THREADS`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use m1_arch::ExpertSet;
use m1_cpu::{CpuExecutor, CpuNetwork};
use m1_engine::{AllowedIds, CacheSize, Draw, Inline, Sampling, SlotId};
use m1_executor_suite::{Rig, Turn};
use m1_weights::Checkpoint;

/// Decode steps of one measurement.
const STEPS: usize = 32;
/// Prompt before the measured decode steps.
const PROMPT: usize = 64;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, threads] = arguments.as_slice() else { anyhow::bail!("usage: speed DIR THREADS") };
    let threads = threads.parse().context("THREADS is no number")?;
    let checkpoint = Checkpoint::open(Path::new(dir))?;
    let arch = checkpoint.architecture();
    let start = Instant::now();
    let all = ExpertSet::full(arch.layers.len(), arch.experts);
    let mut bytes = 0;
    let network = CpuNetwork::load(&checkpoint, &all, CacheSize::for_tokens(32, 16_384), threads, &mut |read| bytes = read)?;
    let mut executor = Rig::new(Inline::new(network), arch);
    println!("loaded {:.2} GB in {:.1} s, {}", bytes as f64 / 1e9, start.elapsed().as_secs_f64(), anonymous_memory()?);
    for sequences in [1, 8, 32] {
        let rate = decode(&mut executor, sequences)?;
        println!("decode batch {sequences}: {rate:.1} tok/s, {:.1} ms a step", 1e3 * sequences as f64 / rate);
    }
    for tokens in [512, 4096] {
        let rates = [prefill(&mut executor, tokens)?, prefill(&mut executor, tokens)?];
        println!("prefill {tokens}: {:.0} {:.0} tok/s", rates[0], rates[1]);
    }
    println!("at the end {}", anonymous_memory()?);
    Ok(())
}

/// What the process itself has allocated; mapped files are not in it.
fn anonymous_memory() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon")).context("no RssAnon")?;
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn decode(executor: &mut Rig<CpuExecutor>, sequences: usize) -> Result<f64> {
    let slots: Vec<SlotId> = (0..sequences as u32).map(SlotId).collect();
    for (index, slot) in slots.iter().enumerate() {
        step(executor, &[(*slot, 0, prompt(PROMPT, index))])?;
    }
    let mut start = Instant::now();
    for count in 0..STEPS + 4 {
        if count == 4 {
            start = Instant::now();
        }
        let turns: Vec<_> = slots.iter().enumerate().map(|(i, slot)| (*slot, PROMPT + count, prompt(1, 77 * i + count))).collect();
        step(executor, &turns)?;
    }
    let rate = (STEPS * sequences) as f64 / start.elapsed().as_secs_f64();
    slots.into_iter().for_each(|slot| executor.close(slot));
    Ok(rate)
}

fn prefill(executor: &mut Rig<CpuExecutor>, tokens: usize) -> Result<f64> {
    let start = Instant::now();
    step(executor, &[(SlotId(0), 0, prompt(tokens, 5))])?;
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    executor.close(SlotId(0));
    Ok(rate)
}

fn prompt(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i + 1) * (seed + 3) * 7919 % 31_000) as u32).collect()
}

/// One step, which draws greedily after the last row of each sequence.
fn step(executor: &mut Rig<CpuExecutor>, turns: &[(SlotId, usize, Vec<u32>)]) -> Result<()> {
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
    let outcome = executor.run(None, batch)?;
    ensure!(outcome.drawn.iter().all(|drawn| drawn.id.is_ok()), "a logit is no number");
    Ok(())
}
