//! The shape of a MiniMax-M1 network: read from `config.json` in all its spellings, checked once, and every byte and
//! FLOP formula that follows from it. Planner, engine, router and command line share these numbers.
//!
//! Pure: no files, no clock, no network. A value of [`Architecture`] that came out of [`Architecture::from_json`] is
//! consistent, so what is built on it need not check again.

mod architecture;
mod bytes;
mod config;
mod experts;
mod flops;
mod parameters;
mod rotary;
mod sharding;
mod slopes;
mod units;

pub use architecture::{Architecture, AttentionKind, LIGHTNING_NORM_EPS, Residual};
pub use bytes::Storage;
pub use config::ConfigError;
pub use experts::{ExpertSet, ExpertSetError};
pub use rotary::rotary_frequencies;
pub use sharding::{GpuShare, GpuWeights, ShardError, linear_share};
pub use slopes::slopes;
pub use units::{Bytes, ExpertId, LayerId, UNUSED};
