//! The real router in front of engine doubles, driven over HTTP. One binary, because each would compile and link all that the others do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

mod clients;
mod drain;
mod faults;
mod groups;
mod kubernetes;
mod limits;
mod m1;
mod metrics;
mod openai;
mod refusals;
