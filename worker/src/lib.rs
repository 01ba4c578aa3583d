//! One pod of a MiniMax-M1 replica group as a library: the device thread, the transport between pods and the gRPC services.
//! `main.rs` is the binary `m1-worker`.

pub mod config;
pub mod device;
pub mod drain;
pub mod metrics;
pub mod open;
pub mod probes;
pub mod pulses;
pub mod serve;
pub mod service;
pub mod status;
pub mod tallies;
pub mod text;
pub mod traffic;
pub mod transport;
pub mod watch;
