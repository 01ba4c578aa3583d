//! What the router decides, without doing anything: which replica serves a request, who waits, who is refused, which worker is alive, and what the
//! experts have done. Knows no clock, socket or async runtime: `now` is the time since the router started, randomness is a seeded [`Rng`].

pub mod balancer;
pub mod choice;
pub mod experts;
pub mod health;
pub mod rng;
pub mod table;
pub mod topology;
pub mod worker;

pub use balancer::{Balancer, Entry, TicketId};
pub use choice::{Candidate, Choice, Decision, Reason, Request, choose};
pub use experts::{Counts, CountsError, Geometry, Ledger, copies, linear};
pub use health::{Backoff, Health};
pub use rng::Rng;
pub use table::{Changes, GroupView, PodView};
pub use topology::{GroupSpec, PodSpec, Revision, Topology};
pub use worker::{Phase, WorkerId, WorkerStats};
