//! An engine double: speaks `m1.worker.v1` as a worker does, holds no model, and does for each sequence what a [`Script`] says. It counts, stops, leases slots and
//! routes as a worker must, so a router cannot tell; with [`Steady`] it is cheap enough to measure a router with. A [`Double`] has a thread and a runtime of its own,
//! so that it can die like a process: every connection at once. [`openai`] and [`vllm`] do the same for the routers of others.

pub mod board;
pub mod deal;
mod double;
pub mod http;
pub mod openai;
mod play;
pub mod script;
mod service;
mod status;
pub mod vllm;

pub use board::Tally;
pub use double::{Control, Double, StartError, serve};
pub use script::{Act, Acts, Fixed, Reply, Script, ScriptError, Steady};

use m1_runtime::member::Member;

/// What a double says that it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its number in the group.
    pub pod: u32,
    /// Who it is; calls that mean somebody else are refused by name. None: it was not told.
    pub member: Option<Member>,
    /// Layers of the model.
    pub layers: u32,
    /// Experts of a layer.
    pub experts: u32,
    /// Experts of a token.
    pub top_k: u32,
    /// Sequences that fit.
    pub slots: u32,
    /// Tokens of prompt and output together.
    pub max_context: u32,
    /// Tokens of one KV block.
    pub kv_block_tokens: u32,
    /// KV blocks; 0: as many as the slots can ever need, so that slots alone bound it.
    pub kv_blocks: u32,
}

impl Default for Settings {
    /// M1's own geometry, with room for more than anybody asks.
    fn default() -> Self {
        Self {
            pod: 0,
            member: None,
            layers: 80,
            experts: 32,
            top_k: 2,
            slots: 20_000,
            max_context: 4096,
            kv_block_tokens: 16,
            kv_blocks: 0,
        }
    }
}

impl Settings {
    /// KV blocks in all.
    pub fn kv_total(&self) -> u32 {
        if self.kv_blocks > 0 { self.kv_blocks } else { self.blocks(self.max_context).saturating_mul(self.slots) }
    }

    /// KV blocks of so many tokens.
    pub fn blocks(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.kv_block_tokens.max(1))
    }
}
