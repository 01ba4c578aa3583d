//! MiniMax-M1 on libtorch: the device behind the executor port of `m1-engine`.
//!
//! [`TorchNetwork`] owns weights, lightning states and KV blocks, and computes packed batches layer by layer in fp32, whatever the
//! checkpoint stores. It decides nothing: which sequences run and who computes which expert is decided elsewhere. It opens no socket and
//! starts no thread of its own; one thread owns it, and experts may be read on another.
//!
//! | file | owns |
//! |---|---|
//! | `network.rs` | the calls of a step, one after another; states in and out |
//! | `load.rs` | checkpoint -> fp32 tensors |
//! | `mixer/` | lightning and softmax attention with their caches |
//! | `experts.rs` | held experts, rows grouped by expert |
//! | `layout.rs` | which rows are whose, and where their states and KV blocks lie |

mod error;
mod experts;
mod layout;
mod load;
mod mixer;
mod model;
mod network;
mod ops;
mod rows;

pub use error::TorchError;
pub use experts::Expert;
pub use network::{InFlight, TorchExecutor, TorchNetwork};

/// Number of threads that one operation may use, for the whole process.
pub fn set_threads(threads: u16) {
    tch::set_num_threads(i32::from(threads.max(1)));
}
