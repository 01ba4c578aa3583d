//! What this machine could do, without a network: memory, multipliers; and single kernels against that.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use m1_arch::{ExpertId, LayerId};
use m1_engine::{AllowedIds, Sampler, Sampling};
use m1_kernels::product::{Product, products};
use m1_kernels::{Dtype, Matrix, Path, Pool};
use m1_weights::{Checkpoint, ExpertPart, TensorName, TensorView};

use crate::Report;

/// Tries of each measurement; the best counts, as what slows one is other work.
const TRIES: usize = 5;
/// Memory that is read, beside the largest cache: what a cache keeps of it from one try to the next is little.
const CACHES: usize = 4;
const LEAST: usize = 512 << 20;
const MOST: usize = 2 << 30;
/// Rounds of multiplications of a try, some 0.1 s.
const ROUNDS: usize = 20_000_000;
/// Vectors that are summed side by side: more than two multipliers with a latency of four or five have in flight.
const SUMS: usize = 12;
/// Seconds of one try of a kernel.
const TRY: f64 = 0.1;
/// Rows of the products that are timed.
const ROWS: [usize; 2] = [128, 512];
/// MiniMax-M1's ids.
const VOCAB: usize = 200_064;

/// Memory bandwidth and the peak of multiplications of so many threads.
pub fn machine(threads: usize, report: &Report) -> Result<()> {
    let bytes = largest_cache().saturating_mul(CACHES).clamp(LEAST, MOST);
    let memory = vec![1u64; bytes / size_of::<u64>()];
    let share = memory.len().div_ceil(threads);
    let read = |thread: usize, streams: usize| {
        sum(&memory[(thread * share).min(memory.len())..((thread + 1) * share).min(memory.len())], streams)
    };
    let best =
        [1, 4].into_iter().map(|streams| fastest(threads, &|thread| _ = black_box(read(thread, streams)))).fold(f64::MAX, f64::min);
    // What multiplies on the path, and numbers of a vector there.
    let (multiply, numbers): (fn(f32) -> f32, usize) = match Path::detect().as_str() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path says so where the machine was found to have AVX-512.
        "avx512" => (|factor| unsafe { multiply_avx512(factor) }, 16),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path says so where the machine was found to have AVX2 and FMA.
        "avx2" => (|factor| unsafe { multiply_avx2(factor) }, 8),
        "portable" => (multiply_portable, 8),
        other => bail!("there is no loop of multiplications for the path {other}"),
    };
    let seconds = fastest(threads, &|_| _ = black_box(multiply(black_box(0.5))));
    let flop = (threads * ROUNDS * SUMS * numbers * 2) as f64;
    report.say("limits", &[("bytes_per_second", bytes as f64 / best), ("flop_per_second", flop / seconds)]);
    Ok(())
}

/// Seconds that `work` takes on all threads, the best of some tries.
fn fastest(threads: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let timed = |thread: usize| {
        barrier.wait();
        let begun = Instant::now();
        work(thread);
        barrier.wait();
        begun.elapsed().as_secs_f64()
    };
    let once = || {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || timed(thread))).collect();
            let own = timed(0);
            others.into_iter().filter_map(|other| other.join().ok()).fold(own, f64::max)
        })
    };
    (0..TRIES).map(|_| once()).fold(f64::MAX, f64::min)
}

/// Reads memory in some streams side by side.
fn sum(memory: &[u64], streams: usize) -> u64 {
    let length = memory.len() / streams;
    let parts: Vec<_> = memory.chunks_exact(length.max(1)).collect();
    let mut sums = [0u64; 32];
    for start in (0..length / 32 * 32).step_by(32) {
        for part in &parts {
            for (sum, word) in sums.iter_mut().zip(&part[start..start + 32]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Bytes of the largest cache that the machine tells of.
fn largest_cache() -> usize {
    let sizes =
        (0..8).filter_map(|index| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok());
    sizes.filter_map(|size| size.trim().strip_suffix('K')?.parse::<usize>().ok()).max().unwrap_or(0) << 10
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512(factor: f32) -> f32 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let factor = _mm512_set1_ps(factor);
    let mut sums = [factor; SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2(factor: f32) -> f32 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let factor = _mm256_set1_ps(factor);
    let mut sums = [factor; SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
}

fn multiply_portable(factor: f32) -> f32 {
    let mut sums = [[factor; 8]; SUMS];
    for _ in 0..ROUNDS {
        for number in sums.as_flattened_mut() {
            *number = *number * factor + factor;
        }
    }
    sums.as_flattened().iter().sum()
}

/// Products with the checkpoint's own matrices.
pub fn product(checkpoint: &Checkpoint, threads: usize, report: &Report) -> Result<()> {
    let mut pool = Pool::new(threads)?;
    let expert = |part| TensorName::Expert { layer: LayerId(0), expert: ExpertId(0), part };
    let names = [
        ("expert up", expert(ExpertPart::Up)),
        ("expert down", expert(ExpertPart::Down)),
        ("qkv", TensorName::LightningQkv(LayerId(0))),
        ("out", TensorName::LightningOut(LayerId(0))),
        ("head", TensorName::LmHead),
    ];
    for (name, tensor) in names {
        let Ok(TensorView { shape, data, .. }) = checkpoint.tensor(&tensor) else { continue };
        let [outputs, inputs] = shape[..] else { continue };
        let dtype = if data.len() == outputs * inputs * Dtype::F32.bytes() { Dtype::F32 } else { Dtype::Bf16 };
        let weights = Matrix::new(data, dtype, outputs, inputs)?;
        for rows in ROWS {
            let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect();
            let mut out = vec![0.0; rows * outputs];
            let seconds = repeated(|| products(Path::detect(), &mut pool, &mut [Product { x: &x, weights, out: &mut out }]));
            let flop = 2.0 * (rows * inputs * outputs) as f64;
            report.say(&format!("product {name} {inputs}x{outputs}, {rows} rows"), &[("flop_per_second", flop / seconds)]);
        }
    }
    Ok(())
}

/// Seconds of one call, the best of some tries.
fn repeated(mut call: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..TRIES {
        let (begun, mut calls) = (Instant::now(), 0.0);
        while begun.elapsed().as_secs_f64() < TRY {
            call();
            calls += 1.0;
        }
        best = best.min(begun.elapsed().as_secs_f64() / calls);
    }
    best
}

/// Draws at MiniMax-M1's vocabulary. Logits are normally distributed noise: with a standard deviation of 5 the nucleus of 0.95 has about a
/// hundred ids, as most steps of a language model have at most; with 3 some ten thousand.
pub fn sampling(report: &Report) -> Result<()> {
    let allowed = AllowedIds::all(VOCAB as u32);
    let mut sampler = Sampler::default();
    for (name, deviation) in [("sampling, few likely ids", 5.0), ("sampling, many likely ids", 3.0)] {
        let logits = noise(deviation);
        let mut position = 0;
        let mut failed = None;
        let seconds = repeated(|| {
            position += 1;
            let sampling = Sampling { temperature: 1.0, top_p: 0.95, seed: 1 };
            failed = sampler.choose(&logits, &sampling, position, &allowed).err();
        });
        failed.map_or(Ok(()), Err).context("an id is not drawn")?;
        report.say(name, &[("seconds", seconds)]);
    }
    Ok(())
}

/// Normally distributed numbers, by Box and Muller, the same in every run.
fn noise(deviation: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    (0..VOCAB).map(|_| deviation * (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()).collect()
}
