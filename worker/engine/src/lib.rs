//! The engine of one worker, without any IO: sequences, batching, sampling, stop rules, state and KV accounting,
//! routing counts, and the port behind which a device computes the model.
//!
//! It knows neither an async runtime nor a network nor a tensor library. One thread owns a [`Scheduler`] and an
//! [`Executor`] and turns the crank:
//!
//! ```text
//! submit / cancel
//! next_step() -> Step -> executor.submit(Begin { batch, results })
//!     executor.turn() -> Routed, at layers whose experts are elsewhere: Gather, Local, Accumulate, Combine
//!     what some rows cannot have: step.give_up(row, failure)
//! executor.turn() -> Ended { results } -> complete(step, results, hear, events)      or fail(step, failure, events)
//! ```
//!
//! Every sequence that is submitted ends in exactly one `Finished`, or is cancelled: whatever meets in one step, the engine
//! alone decides. So what a token's text means (a stop text, the reasoning) is asked of the caller while it decides, never
//! told afterwards.

mod allowed;
mod executor;
mod reasoning;
mod routing;
mod sampler;
mod scheduler;
mod spec;
mod step;

pub use allowed::AllowedIds;
pub use executor::{
    Batch, Brought, CacheSize, Capabilities, Command, Completion, Draw, Drawn, Due, Executor, ExecutorError, HeadRows, Held, Inline,
};
pub use executor::{
    KV_BLOCK_TOKENS, LayerRouting, Move, Network, Piece, Progress, Request, RequestKey, Results, Segment, SequenceState,
};
pub use executor::{SlotId, StepId, Tables, Turn, UNUSED, Use, Work, choose_experts, cut};
pub use routing::{RoutingCounts, RoutingError, RoutingShape, StepRouting, TallyId, apply_threshold};
pub use sampler::{SampleError, Sampler, Sampling, TokenLogprobs};
pub use scheduler::{Occupancy, Scheduler, SchedulerConfig, SchedulerError};
pub use spec::{Limits, MAX_TOP_LOGPROBS, Priority, SequenceRequest, SequenceSpec, SpecError, ThinkingBudget};
pub use step::{Failure, Finish, Heard, SequenceEvent, SequenceId, Step, StepKind, Usage};
