//! The kernels' instructions stand in the kernels: none is a function that is called. An intrinsic that is not inlined costs a call and two trips through
//! memory for eight numbers, and shows only as time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use m1_kernels::lightning::{Decays, Head};
use m1_kernels::likelihood::{self, Sizes};
use m1_kernels::product::{Product, products};
use m1_kernels::softmax::{KvTile, Queries};
use m1_kernels::{Dtype, Matrix, Path, Pool, lightning, rms, sigmoid_gate, silu, silu_gate, softmax};

/// Names of the functions in an ELF file's table of symbols.
fn functions(elf: &[u8]) -> Vec<String> {
    let number = |at: usize, bytes: usize| (0..bytes).rev().fold(0usize, |all, byte| all << 8 | usize::from(elf[at + byte]));
    let (table, entry, count) = (number(40, 8), number(58, 2), number(60, 2));
    // Offset, size and the section that goes with it, of the table of symbols.
    let section = |index: usize| {
        let at = table + index * entry;
        (number(at + 4, 4), number(at + 24, 8), number(at + 32, 8), number(at + 40, 4))
    };
    let (_, symbols, size, names) = (0..count).map(section).find(|section| section.0 == 2).expect("a table of symbols");
    let names = section(names).1;
    let name = |at: usize| {
        let start = names + number(at, 4);
        let end = start + elf[start..].iter().position(|byte| *byte == 0).expect("an end");
        String::from_utf8_lossy(&elf[start..end]).into_owned()
    };
    (symbols..symbols + size).step_by(24).filter(|at| elf[at + 4] & 15 == 2).map(name).collect()
}

/// Calls every kernel, so that all of them are in this program.
fn call_all(path: Path) {
    let (mut pool, ones) = (Pool::new(1).unwrap(), [1.0f32; 64 * 16]);
    let stored = vec![0u8; 16 * 16 * 4];
    for (dtype, rows) in [(Dtype::F32, 3), (Dtype::Bf16, 3), (Dtype::F32, 64), (Dtype::Bf16, 64)] {
        let weights = Matrix::new(&stored[..16 * 16 * dtype.bytes()], dtype, 16, 16).unwrap();
        let mut out = vec![0.0; rows * 16];
        products(path, &mut pool, &mut [Product { x: &ones[..rows * 16], weights, out: &mut out }]);
    }
    let mut numbers = [0.5f32; 16];
    rms(path, &ones[..16], &ones[..16], 1e-5, &mut numbers);
    silu(path, &mut numbers);
    silu_gate(path, &mut numbers, &ones[..16]);
    sigmoid_gate(path, &mut numbers, &ones[..16]);
    let (qkv, mut state, mut out) = ([0.1f32; 4 * 24], [0.0f32; 64], [0.0f32; 32]);
    let (head, decays) = (Head { qkv: &qkv, stride: 24, dim: 8 }, Decays::of(0.1));
    lightning::step(path, head, &decays, &mut state, &mut out[..8]);
    lightning::block(path, (head, 4), &decays, &mut state, (&mut out, 8));
    let peak = likelihood::largest(path, &ones);
    likelihood::weigh(path, &ones[..16], (peak, 1.0), &mut numbers, &mut Sizes::default());
    let tile = KvTile { keys: &ones, values: &ones, stride: 8 };
    softmax::attend(path, Queries { rows: &ones[..32], dim: 8, group: 2, seen: 1 }, &[tile], &mut out);
}

#[test]
fn no_kernel_calls_its_instructions() {
    Path::all().for_each(call_all);
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let functions = functions(&program);
    assert!(functions.iter().any(|name| name.contains("with_avx2")), "the kernels are in this program");
    // Those of other crates deal in bytes.
    let called = functions
        .iter()
        .filter(|name| (name.contains("_mm256_") || name.contains("_mm512_")) && (name.contains("_ps") || name.contains("epi32")));
    assert_eq!(called.collect::<Vec<_>>(), Vec::<&String>::new(), "intrinsics that are functions: see `eights` in elementwise.rs");
}
