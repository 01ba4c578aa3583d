//! MiniMax-M1's arithmetic on a CPU: products with weights as they are stored, norms, lightning and softmax attention, and the
//! threads that share the work. Knows no model, no checkpoint and no sequence: slices in, slices out.
//!
//! **The same bits.** On one [`Path`], every result depends on its own inputs only: not on how many rows are computed with it, in
//! which tile it lies, nor on the number of threads. So every sum here has one order:
//!
//! * products add along K in eight lanes, lane `k mod 8`, ascending, and the lanes in a fixed tree at the end ([`product`]);
//! * sums over keys, tokens or channels whose terms are vectors go term by term, ascending ([`lightning`], [`softmax`]);
//! * softmax attention goes in tiles of [`softmax::TILE`] tokens at absolute multiples, merged in order.
//!
//! Each kernel is written once over eight lanes and pairs of them (`lanes.rs`): AVX-512, AVX2 with FMA, or plain Rust. Which one is asked of the
//! machine once, and no kernel is called that it lacks. AVX-512 and AVX2 give the same bits.

mod dispatch;
mod elementwise;
mod lanes;
pub mod lightning;
pub mod likelihood;
mod matrix;
mod outer;
mod path;
mod pool;
pub mod product;
pub mod softmax;
mod tile;

pub use elementwise::{rms, sigmoid_gate, silu, silu_gate};
pub use matrix::{Dtype, Matrix, MatrixError};
pub use path::Path;
pub use pool::{Pool, Shared};
