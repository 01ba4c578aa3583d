//! A stream's gaps while a prompt is read, and how fast that goes.

use std::time::Instant;

use anyhow::Result;
use m1_cpu::CpuExecutor;
use m1_engine::{Completion, SlotId};
use m1_executor_suite::{Rig, Turn};

use crate::steps::{PROMPT, STEPS, batch, prompt, step};

/// Chunks of a prompt that is read alone, and of one beside a stream, as the worker cuts them.
const WHOLE: usize = 512;
const BESIDE: usize = 128;

/// One stream decodes while a prompt is read in chunks, both in flight as the worker has them.
pub fn stream_beside(executor: &mut Rig<CpuExecutor>, tokens: usize) -> Result<()> {
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
