//! What every binary shares: logs, the signals that end it, the admin server that a kubelet and Prometheus read, sockets that are handed down, and what the
//! process itself uses, TLS between members. Owns the environment variables `RUST_LOG` and `M1_LOG_FORMAT`; must not know any component.

pub mod admin;
pub mod listener;
pub mod logs;
pub mod member;
pub mod process;
pub mod shutdown;
pub mod tls;
