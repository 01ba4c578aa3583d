//! What every binary shares: logs, and the signal that ends it. Owns the environment variables `RUST_LOG` and `M1_LOG_FORMAT`; must not know any component.

pub mod logs;
pub mod shutdown;
