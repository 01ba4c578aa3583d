//! Every kernel beside a plain reference in f64, and the promise that bits do not depend on what is computed beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use m1_kernels::lightning::{self, BLOCK, Decays, Head};
use m1_kernels::likelihood::{self, Sizes};
use m1_kernels::product::{Product, products};
use m1_kernels::softmax::{self, KvTile, Queries, TILE};
use m1_kernels::{Dtype, Matrix, Path, Pool};
use proptest::prelude::*;

/// Numbers between -1 and 1 by a seed, the same on every machine.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// As a checkpoint stores them, and their values. One byte before them, so that nothing is aligned.
fn stored(values: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0xffu8];
    match dtype {
        Dtype::F32 => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        Dtype::Bf16 => values.iter().for_each(|x| bytes.extend(((x.to_bits() >> 16) as u16).to_le_bytes())),
    }
    let value = |x: &f32| if dtype == Dtype::F32 { *x } else { f32::from_bits(x.to_bits() & 0xffff_0000) };
    (bytes, values.iter().map(value).collect())
}

fn close(given: f32, right: f64, scale: f64, what: &str) {
    let error = (f64::from(given) - right).abs();
    assert!(error <= 3e-6 * (scale + 1e-3), "{what}: {given}, not {right} (off by {error:e} of {scale})");
}

fn paths() -> impl Iterator<Item = Path> {
    Path::all()
}

/// Results of one path after another: those with vector instructions have the same bits, as both round a sum of a product once.
#[derive(Default)]
struct Vectors(Option<Vec<u32>>);

impl Vectors {
    fn hold(&mut self, path: Path, results: &[f32]) {
        if path != Path::PORTABLE {
            assert_eq!(self.0.get_or_insert_with(|| bits(results)), &bits(results), "bits of {}", path.as_str());
        }
    }
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// A product is right, and each of its numbers has the same bits alone, in any batch, and on any number of threads.
    #[test]
    fn products_are_right_and_the_same_bits_in_any_company(
        (rows, outputs, inputs) in (1usize..40, 1usize..60, 1usize..90),
        tall in prop::option::weighted(0.2, 100usize..300),
        deep in prop::option::weighted(0.2, 500usize..1300),
        threads in 1usize..4,
        dtype in dtype(),
        seed: u64,
    ) {
        let (rows, inputs) = (tall.unwrap_or(rows), deep.unwrap_or(inputs));
        let x = numbers(seed, rows * inputs);
        let (bytes, weights) = stored(&numbers(seed ^ 1, outputs * inputs), dtype);
        let matrix = Matrix::new(&bytes[1..], dtype, outputs, inputs).unwrap();
        let mut vectors = Vectors::default();
        for path in paths() {
            let mut pool = Pool::new(threads).unwrap();
            let mut out = vec![f32::NAN; rows * outputs];
            // Another one beside it, so that panels do not begin with the first thread.
            let (first, mut beside) = (Matrix::new(&bytes[1..], dtype, 1, outputs * inputs).unwrap(), [0.0]);
            let beside = Product { x: &weights, weights: first, out: &mut beside };
            products(path, &mut pool, &mut [beside, Product { x: &x, weights: matrix, out: &mut out }]);
            vectors.hold(path, &out);
            let mut alone = vec![f32::NAN; outputs];
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                let given = &out[row * outputs..(row + 1) * outputs];
                for (n, given) in given.iter().enumerate() {
                    let terms = || x.iter().zip(&weights[n * inputs..]).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    close(*given, terms().sum(), terms().map(f64::abs).sum(), path.as_str());
                }
                if row % 7 == 0 {
                    products(path, &mut Pool::new(1).unwrap(), &mut [Product { x, weights: matrix, out: &mut alone }]);
                    prop_assert_eq!(bits(given), bits(&alone), "row {} of {} on {}", row, rows, path.as_str());
                }
            }
        }
    }

    #[test]
    fn norms_and_gates_are_right(rows in 1usize..4, width in 1usize..200, seed: u64) {
        let (x, weight) = (numbers(seed, rows * width), numbers(seed ^ 1, width));
        for path in paths() {
            let mut out = vec![f32::NAN; rows * width];
            m1_kernels::rms(path, &x, &weight, 1e-5, &mut out);
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(width)) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for ((x, w), given) in x.iter().zip(&weight).zip(out) {
                    let right = f64::from(*w) * f64::from(*x) / (mean + 1e-5).sqrt();
                    close(*given, right, right.abs(), path.as_str());
                }
            }
            let (a, b) = (numbers(seed ^ 2, width), numbers(seed ^ 3, width));
            let wide = |x: f32| f64::from(x) * 40.0;
            let a: Vec<f32> = a.iter().map(|x| wide(*x) as f32).collect();
            let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
            let (mut silu, mut gated, mut sigmoided) = (a.clone(), a.clone(), b.clone());
            m1_kernels::silu(path, &mut silu);
            m1_kernels::silu_gate(path, &mut gated, &b);
            m1_kernels::sigmoid_gate(path, &mut sigmoided, &a);
            for at in 0..width {
                let right = f64::from(a[at]) * sigmoid(a[at]);
                close(silu[at], right, right.abs(), "silu");
                close(gated[at], right * f64::from(b[at]), right.abs(), "silu_gate");
                close(sigmoided[at], f64::from(b[at]) * sigmoid(a[at]), 1.0, "sigmoid_gate");
            }
        }
    }

    /// Likelihoods are right, and each is counted in the class of its size; what is as good as 0 in none.
    #[test]
    fn likelihoods_and_their_sizes(count in 1usize..300, (wide, temperature) in (0.1f32..200.0, 0.1f32..4.0), seed: u64) {
        let logits: Vec<f32> = numbers(seed, count).iter().map(|x| x * wide).collect();
        for path in paths() {
            let peak = likelihood::largest(path, &logits);
            prop_assert_eq!(peak, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let (mut given, mut sizes) = (vec![f32::NAN; count], Sizes::default());
            likelihood::weigh(path, &logits, (peak, temperature), &mut given, &mut sizes);
            for (logit, given) in logits.iter().zip(&given) {
                let x = f64::from(*logit - peak) / f64::from(temperature);
                close(*given, x.max(-87.3).exp(), x.max(-87.3).exp() * (1.0 - x), path.as_str());
            }
            let (mut classes, mut largest) = (0, f32::INFINITY);
            for (class, sum) in sizes.descending() {
                let of_class: Vec<f32> = given.iter().copied().filter(|x| class.has(*x)).collect();
                prop_assert!(of_class.iter().all(|x| *x < largest), "classes descend");
                largest = of_class.iter().copied().fold(f32::INFINITY, f32::min);
                prop_assert!((of_class.iter().map(|x| f64::from(*x)).sum::<f64>() - sum).abs() <= 1e-12 * sum);
                classes += of_class.len();
            }
            prop_assert_eq!(classes, given.iter().filter(|x| **x >= 2f32.powi(-125)).count());
        }
    }

    /// Blocks and the recurrence are both the recurrence in f64, whatever the lengths.
    #[test]
    fn lightning_is_the_recurrence(tokens in 1usize..150, dim in 1usize..70, gap in 0usize..5, slope in 1e-4f32..0.95, seed: u64) {
        let stride = 3 * dim + gap;
        let qkv = numbers(seed, tokens * stride);
        let part = |t: usize, which: usize, c: usize| f64::from(qkv[t * stride + which * dim + c]);
        let (mut state, mut right) = (vec![0f64; dim * dim], Vec::new());
        let (mut size, mut sizes) = (vec![0f64; dim * dim], Vec::new());
        for t in 0..tokens {
            for i in 0..dim {
                for j in 0..dim {
                    let (decay, new) = ((-f64::from(slope)).exp(), part(t, 1, i) * part(t, 2, j));
                    state[i * dim + j] = decay * state[i * dim + j] + new;
                    size[i * dim + j] = decay * size[i * dim + j] + new.abs();
                }
            }
            for j in 0..dim {
                right.push((0..dim).map(|i| part(t, 0, i) * state[i * dim + j]).sum::<f64>());
                sizes.push((0..dim).map(|i| part(t, 0, i).abs() * size[i * dim + j]).sum::<f64>());
            }
        }
        let mut vectors = [Vectors::default(), Vectors::default(), Vectors::default()];
        for path in paths() {
            let decays = Decays::of(slope);
            let (mut stepped, mut blocked) = (vec![0f32; dim * dim], vec![0f32; dim * dim]);
            let (mut out, mut out_blocked) = (vec![f32::NAN; tokens * dim], vec![f32::NAN; tokens * dim]);
            for t in 0..tokens {
                let head = Head { qkv: &qkv[t * stride..], stride, dim };
                lightning::step(path, head, &decays, &mut stepped, &mut out[t * dim..(t + 1) * dim]);
            }
            for first in (0..tokens).step_by(BLOCK) {
                let count = BLOCK.min(tokens - first);
                let head = Head { qkv: &qkv[first * stride..], stride, dim };
                let out = &mut out_blocked[first * dim..(first + count) * dim];
                lightning::block(path, (head, count), &decays, &mut blocked, (out, dim));
            }
            for (vectors, results) in vectors.iter_mut().zip([&out, &out_blocked, &blocked]) {
                vectors.hold(path, results);
            }
            for at in 0..tokens * dim {
                close(out[at], right[at], sizes[at], "step");
                close(out_blocked[at], right[at], sizes[at], "block");
            }
            for at in 0..dim * dim {
                close(stepped[at], state[at], size[at], "state by steps");
                close(blocked[at], state[at], size[at], "state by blocks");
            }
        }
    }

    /// Attention is right, and a token's result has the same bits alone and among the tokens around it.
    #[test]
    fn attention_is_right_and_the_same_bits_in_any_company(
        (before, tokens) in (0usize..200, 1usize..80),
        (dim, group, gap) in (1usize..40, 1usize..5, 0usize..3),
        sharp in 0.1f32..20.0,
        seed: u64,
    ) {
        let (context, stride) = (before + tokens, dim + gap);
        let rows: Vec<f32> = numbers(seed, tokens * group * dim).iter().map(|x| x * sharp).collect();
        let (keys, values) = (numbers(seed ^ 1, context * stride), numbers(seed ^ 2, context * stride));
        let tiles: Vec<KvTile<'_>> = (0..context.div_ceil(TILE))
            .map(|t| KvTile { keys: &keys[t * TILE * stride..], values: &values[t * TILE * stride..], stride })
            .collect();
        let mut vectors = Vectors::default();
        for path in paths() {
            let mut out = vec![f32::NAN; rows.len()];
            softmax::attend(path, Queries { rows: &rows, dim, group, seen: before + 1 }, &tiles, &mut out);
            vectors.hold(path, &out);
            for row in 0..tokens * group {
                let (query, seen) = (&rows[row * dim..(row + 1) * dim], before + 1 + row / group);
                let score = |i: usize| query.iter().zip(&keys[i * stride..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let whole: f64 = weights.iter().sum();
                for c in 0..dim {
                    let right = weights.iter().enumerate().map(|(i, w)| w * f64::from(values[i * stride + c])).sum::<f64>() / whole;
                    // A score of 20 x dim is known to some millionths of itself only, and weighs by its exponential.
                    let scale = 1.0 + f64::from(sharp) * dim as f64;
                    close(out[row * dim + c], right, scale, path.as_str());
                }
            }
            let token = seed as usize % tokens;
            let mut alone = vec![f32::NAN; group * dim];
            let own = &rows[token * group * dim..(token + 1) * group * dim];
            let queries = Queries { rows: own, dim, group, seen: before + token + 1 };
            softmax::attend(path, queries, &tiles, &mut alone);
            prop_assert_eq!(bits(&alone), bits(&out[token * group * dim..(token + 1) * group * dim]));
        }
    }
}

/// One logit that is no number is found wherever it stands, beside infinities too.
#[test]
fn logits_that_are_no_numbers_are_found() {
    for path in paths() {
        for at in [0, 7, 63, 64, 130] {
            let mut logits = vec![1.0; 131];
            assert_eq!(likelihood::largest(path, &logits), 1.0);
            logits[(at + 9) % 131] = f32::NEG_INFINITY;
            assert_eq!(likelihood::largest(path, &logits), 1.0);
            logits[at] = f32::NAN;
            assert!(likelihood::largest(path, &logits).is_nan(), "{at} on {}", path.as_str());
            logits[at] = f32::INFINITY;
            assert_eq!(likelihood::largest(path, &logits), f32::INFINITY);
        }
        assert_eq!(likelihood::largest(path, &[]), f32::NEG_INFINITY);
    }
}

/// Whole blocks make the same bits wherever the cuts at multiples of the block are.
#[test]
fn cuts_at_blocks_change_nothing() {
    let (dim, tokens) = (48, 3 * BLOCK);
    let qkv = numbers(5, tokens * 3 * dim);
    let decays = Decays::of(0.02);
    let run = |groups: &[usize]| {
        let (mut state, mut out, mut first) = (vec![0f32; dim * dim], vec![0f32; tokens * dim], 0);
        for blocks in groups {
            for _ in 0..*blocks {
                let head = Head { qkv: &qkv[first * 3 * dim..], stride: 3 * dim, dim };
                let out = &mut out[first * dim..(first + BLOCK) * dim];
                lightning::block(Path::detect(), (head, BLOCK), &decays, &mut state, (out, dim));
                first += BLOCK;
            }
        }
        (bits(&state), bits(&out))
    };
    assert_eq!(run(&[3]), run(&[1, 2]));
    assert_eq!(run(&[3]), run(&[1, 1, 1]));
}

/// What lies behind the tokens that a query sees is never read: a cache holds rests of other sequences there.
#[test]
fn what_is_not_seen_does_not_count() {
    let (dim, seen) = (8, 70);
    let (mut keys, mut values) = (numbers(1, 128 * dim), numbers(2, 128 * dim));
    let rows = numbers(3, 2 * dim);
    let mut results = Vec::new();
    for _ in 0..2 {
        let tile = |t: usize| KvTile { keys: &keys[t * TILE * dim..], values: &values[t * TILE * dim..], stride: dim };
        let mut out = vec![0.0; 2 * dim];
        let queries = Queries { rows: &rows, dim, group: 2, seen };
        softmax::attend(Path::detect(), queries, &[tile(0), tile(1)], &mut out);
        results.push(bits(&out));
        keys[seen * dim..].fill(f32::NAN);
        values[seen * dim..].fill(f32::NAN);
    }
    assert_eq!(results[0], results[1]);
}
