//! MiniMax-M1 on a CPU, on kernels of our own: the default device behind the executor port of `m1-engine`.
//!
//! [`CpuNetwork`] uses weights where a checkpoint's files are mapped, in the dtype that they are stored in (bf16, fp32), so that the
//! workers of a machine share them; it owns lightning states, KV blocks and compute threads. It decides nothing and opens no socket.
//!
//! **The same bits.** With experts here or on a peer, the logits at a position depend on the ids up to it and on the prompt's length
//! only: the prompt goes through lightning attention in blocks of 64 from position 0, its rest and what was said token by token. What
//! else is in the batch, threads, pods and the order of answers have no influence, nor have cuts at multiples of 64.
//!
//! | file | owns |
//! |---|---|
//! | `network.rs` | the calls of a step, one after another |
//! | `weights.rs` | a tensor as it is stored, or widened where kernels cannot read it |
//! | `lightning.rs`, `softmax.rs` | attention with its caches |
//! | `experts.rs` | held experts, rows grouped by expert |
//! | `layout.rs` | which rows are whose, and where their KV lies |

mod compute;
mod error;
mod experts;
mod layout;
mod lightning;
mod model;
mod network;
mod softmax;
mod weights;

pub use error::CpuError;
pub use experts::Expert;
pub use network::{CpuExecutor, CpuNetwork, InFlight};
