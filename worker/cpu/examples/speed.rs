//! Tokens per second of one worker that holds a whole checkpoint: `speed DIR THREADS`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use m1_arch::ExpertSet;
use m1_cpu::CpuExecutor;
use m1_engine::{Assignment, Batch, CacheSize, Executor, LayerRouting, Segment, SlotId};
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
    let mut executor = CpuExecutor::load(&checkpoint, &all, CacheSize::for_tokens(32, 16_384), threads, &mut |read| bytes = read)?;
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

fn decode(executor: &mut CpuExecutor, sequences: usize) -> Result<f64> {
    let slots = (0..sequences).map(|_| executor.open_slot()).collect::<Result<Vec<_>, _>>()?;
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
    slots.into_iter().for_each(|slot| executor.close_slot(slot));
    Ok(rate)
}

fn prefill(executor: &mut CpuExecutor, tokens: usize) -> Result<f64> {
    let slot = executor.open_slot()?;
    let start = Instant::now();
    step(executor, &[(slot, 0, prompt(tokens, 5))])?;
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    executor.close_slot(slot);
    Ok(rate)
}

fn prompt(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i + 1) * (seed + 3) * 7919 % 31_000) as u32).collect()
}

/// One step; the logits of each sequence's last row.
fn step(executor: &mut CpuExecutor, turns: &[(SlotId, usize, Vec<u32>)]) -> Result<()> {
    let mut batch = Batch::default();
    for (slot, position, ids) in turns {
        let start = batch.ids.len() as u32;
        let (tokens, position) = (ids.len() as u32, *position as u32);
        batch.segments.push(Segment { slot: *slot, start, tokens, position, prompt: position + tokens });
        batch.ids.extend(ids);
        batch.logit_rows.push(batch.ids.len() as u32 - 1);
    }
    let rows: Vec<u32> = (0..batch.ids.len() as u32).collect();
    let mut routing = LayerRouting::default();
    executor.begin_step(&batch)?;
    for layer in executor.architecture().layer_ids() {
        executor.attention(layer, &mut routing)?;
        let assignment = Assignment { rows: &rows, slots: routing.top_k, experts: &routing.experts, weights: &routing.weights };
        executor.local(layer, &assignment)?;
        executor.combine(layer)?;
    }
    let mut logits = Vec::new();
    executor.end_step(&mut logits)?;
    ensure!(logits.iter().all(|logit| logit.is_finite()), "a logit is no number");
    Ok(())
}
