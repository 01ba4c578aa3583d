//! What the router decides, without doing anything: which replica serves a request, who waits, who is refused, which worker is alive and which is trusted,
//! what may be tried again, and what the experts have done. Knows no clock, socket or async runtime: `now` is the time since the router started, randomness is a seeded [`Rng`].

pub mod balancer;
pub mod choice;
pub mod deadlines;
pub mod experts;
pub mod health;
pub mod outcome;
pub mod retry;
pub mod rng;
pub mod standing;
pub mod table;
pub mod topology;
pub mod worker;

pub use balancer::{Balancer, Entry, TicketId};
pub use choice::{Candidate, Choice, Decision, MOST_WORKERS, Reason, Request, Share, Turn, choose};
pub use deadlines::Deadlines;
pub use experts::{Counts, CountsError, Cumulative, Geometry, Ledger, copies, linear};
pub use health::{Backoff, Health};
pub use outcome::{Next, Outcome, Seat};
pub use retry::RetryBudget;
pub use rng::Rng;
pub use standing::Standing;
pub use table::{Changes, GroupView, Load, PodView};
pub use topology::{GroupSpec, PodSpec, Revision, Topology};
pub use worker::{Phase, WorkerId, WorkerStats};
