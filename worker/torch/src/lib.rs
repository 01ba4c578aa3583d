//! MiniMax-M1 on libtorch: the device behind the executor port of `m1-engine`.
//!
//! [`TorchExecutor`] owns weights, lightning states and KV blocks, and computes packed batches layer by layer in fp32,
//! whatever the checkpoint stores. It decides nothing: which sequences run, who computes which expert and what is sampled
//! is decided elsewhere. It opens no socket and starts no thread of its own; one thread owns it.
//!
//! | file | owns |
//! |---|---|
//! | `executor.rs` | the port's calls, in order |
//! | `load.rs` | checkpoint -> fp32 tensors |
//! | `mixer/` | lightning and softmax attention with their caches |
//! | `experts.rs` | held experts, rows grouped by expert |
//! | `layout.rs` | which rows are whose, and where their states and KV blocks lie |

mod error;
mod executor;
mod experts;
mod layout;
mod load;
mod mixer;
mod model;
mod ops;
mod rows;
mod step;

pub use error::TorchError;
pub use executor::TorchExecutor;

/// Number of threads that one operation may use, for the whole process.
pub fn set_threads(threads: u16) {
    tch::set_num_threads(i32::from(threads.max(1)));
}
