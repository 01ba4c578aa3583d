//! Expert dispatch between the pods of a group, as a pure state machine: (state, event, now) -> actions.
//!
//! It decides who computes which (row, place) of an own step's routing, and in which order peers are served. It knows no
//! clock, no network, no device and no payload: the caller holds the bytes and carries the actions out.
//!
//! ```text
//! let mut exchange = Exchange::new(config, table)?;
//! loop {
//!     exchange.handle(event, now, &mut actions);          // every event, at least a Tick every 100 ms
//!     for action in actions.drain(..) { .. }              // in order
//!     while let Some(serve) = exchange.next_request(Lane::Bulk) {   // between two events, as the device is free
//!         ..compute the kept payload..; exchange.handle(Event::Served { .. }, now, &mut actions);
//!     }
//! }
//! ```
//!
//! What holds, whatever comes in whatever order:
//! - of an open step every (row, place) is handed out as `Local` or taken by `Accept` exactly once before `Complete`, but for
//!   the rows that `GivenUp` names;
//! - every open step ends in `Complete`, `Failed` or `Abort`, given ticks and a network that answers or drops its links;
//! - no more frames are open on a link than its server granted; what has no credit waits as row numbers in its step;
//! - a peer that breaks the protocol loses that connection, and nothing else suffers.

mod action;
mod config;
mod error;
mod event;
mod exchange;
mod ids;
mod pulse;
mod table;

pub use action::{Action, Serve};
pub use config::{Config, ConfigError};
pub use error::ExchangeError;
pub use event::Event;
pub use exchange::{Exchange, Health};
pub use ids::{Lane, MAX_FRAME_BYTES, MAX_PODS, Micros, PodId, RequestId, StepId, UNUSED};
pub use pulse::{Beat, HEARTBEAT, LONG_TURN, LONGEST_ANNOUNCED, Life, Listening, Pulse};
pub use table::{DispatchTable, TableError, TableVersion};
