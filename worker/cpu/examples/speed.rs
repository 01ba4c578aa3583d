//! Tokens per second of one worker that holds a whole checkpoint: `speed DIR THREADS`. With `speed DIR THREADS TOKENS` a stream's gaps while a
//! prompt of so many tokens is read, and how fast that goes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use m1_arch::ExpertSet;
use m1_cpu::{CpuExecutor, CpuNetwork};
use m1_engine::{AllowedIds, Batch, CacheSize, Completion, Draw, Inline, Sampling, SlotId};
use m1_executor_suite::{Rig, Turn};
use m1_weights::Checkpoint;

/// Decode steps of one measurement.
const STEPS: usize = 32;
/// Prompt before the measured decode steps.
const PROMPT: usize = 64;
/// Chunks of a prompt that is read alone, and of one beside a stream, as the worker cuts them.
const WHOLE: usize = 512;
const BESIDE: usize = 128;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, threads, beside @ ..] = arguments.as_slice() else { anyhow::bail!("usage: speed DIR THREADS [TOKENS]") };
    let threads = threads.parse().context("THREADS is no number")?;
    let beside: Option<usize> = beside.first().map(|tokens| tokens.parse().context("TOKENS is no number")).transpose()?;
    let checkpoint = Checkpoint::open(Path::new(dir))?;
    let arch = checkpoint.architecture();
    let start = Instant::now();
    let all = ExpertSet::full(arch.layers.len(), arch.experts);
    let mut bytes = 0;
    let network = CpuNetwork::load(
        &checkpoint,
        &all,
        CacheSize::for_tokens(32, 16_384 + beside.unwrap_or(0) as u64),
        threads,
        &mut |read| bytes = read,
    )?;
    let mut executor = Rig::new(Inline::new(network), arch);
    println!("loaded {:.2} GB in {:.1} s, {}", bytes as f64 / 1e9, start.elapsed().as_secs_f64(), anonymous_memory()?);
    if let Some(tokens) = beside {
        return stream_beside(&mut executor, tokens);
    }
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

/// One stream decodes while a prompt is read in chunks, both in flight as the worker has them.
fn stream_beside(executor: &mut Rig<CpuExecutor>, tokens: usize) -> Result<()> {
    let (stream, reader) = (SlotId(0), SlotId(1));
    step(executor, &[(stream, 0, prompt(PROMPT, 1))])?;
    let mut said = PROMPT;
    let mut one = |executor: &mut Rig<CpuExecutor>| {
        said += 1;
        batch(executor, &[(stream, said - 1, prompt(1, said))])
    };
    let mut idle = Vec::new();
    for _ in 0..STEPS {
        let begun = Instant::now();
        let batch = one(executor);
        executor.run(None, batch)?;
        idle.push(begun.elapsed().as_secs_f64());
    }
    let begun = Instant::now();
    let ids = prompt(tokens, 5);
    let part = |from: usize, chunk: usize| Turn {
        slot: reader,
        position: from,
        ids: ids[from..tokens.min(from + chunk)].to_vec(),
        prompt: tokens,
    };
    for from in (0..tokens).step_by(WHOLE) {
        let mut batch = executor.pack(&[part(from, WHOLE)]);
        batch.logit_rows.clear();
        executor.run(None, batch)?;
    }
    let alone = tokens as f64 / begun.elapsed().as_secs_f64();
    let (mut gaps, mut read) = (Vec::new(), 0);
    let (begun, mut last) = (Instant::now(), Instant::now());
    let batch = one(executor);
    let mut decoding = executor.begin(batch);
    let mut reading = None;
    while read < tokens || reading.is_some() {
        if reading.is_none() {
            let mut batch = executor.pack(&[part(read, BESIDE)]);
            batch.logit_rows.clear();
            reading = Some(executor.begin_as(false, batch));
            read = tokens.min(read + BESIDE);
        }
        let Completion::Ended { step, .. } = executor.completion() else { anyhow::bail!("a step fails") };
        if step == decoding {
            gaps.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            let batch = one(executor);
            decoding = executor.begin(batch);
        } else {
            reading = None;
        }
    }
    let beside = tokens as f64 / begun.elapsed().as_secs_f64();
    let at = |times: &mut Vec<f64>, part: f64| {
        times.sort_by(f64::total_cmp);
        1e3 * times[((times.len() - 1) as f64 * part) as usize]
    };
    let step = at(&mut idle, 0.5);
    println!("a step of the stream alone {step:.1} ms; its gaps while {tokens} tokens are read:");
    for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("longest", 1.0)] {
        let gap = at(&mut gaps, part);
        println!("  {name} {gap:.1} ms, {:.1} of a step", gap / step);
    }
    println!(
        "prefill alone in chunks of {WHOLE}: {alone:.0} tok/s; beside the stream in chunks of {BESIDE}: {beside:.0} tok/s, {:.2} of it",
        beside / alone
    );
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
    let batch = batch(executor, turns);
    let outcome = executor.run(None, batch)?;
    ensure!(outcome.drawn.iter().all(|drawn| drawn.id.is_ok()), "a logit is no number");
    Ok(())
}

fn batch(executor: &mut Rig<CpuExecutor>, turns: &[(SlotId, usize, Vec<u32>)]) -> Batch {
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
