//! The engine of one worker, without any IO: sequences, batching, sampling, stop rules, state and KV accounting,
//! routing counts, and the port behind which a device computes the model.
//!
//! It knows neither an async runtime nor a network nor a tensor library. One thread owns a [`Scheduler`] and an
//! [`Executor`] and turns the crank:
//!
//! ```text
//! submit / cancel
//! next_step(executor) -> Step -> executor.begin_step(step.batch)
//!     per layer: executor.attention -> route(step, layer, routing) -> experts -> executor.combine
//!     what some rows cannot have: step.give_up(row, failure)
//! executor.end_step(logits) -> complete(step, logits, hear) -> Outcomes        or fail(step, failure) -> Outcomes
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
pub use executor::{Assignment, Batch, Executor, ExecutorError, LayerRouting, Segment, SlotId, UNUSED};
pub use executor::{CacheSize, Held, KV_BLOCK_TOKENS, Slots, StepOrder, in_flight};
pub use executor::{check_assignment, check_batch, check_rows, choose_experts};
pub use routing::{RoutingCounts, RoutingError, RoutingShape, TallyId, apply_threshold};
pub use sampler::{Ids, SampleError, Sampler, Sampling, TokenLogprobs};
pub use scheduler::{Occupancy, Scheduler, SchedulerConfig, SchedulerError};
pub use spec::{Limits, MAX_TOP_LOGPROBS, SequenceRequest, SequenceSpec, SpecError, ThinkingBudget};
pub use step::{Failure, Finish, Heard, Outcome, SequenceId, Step, StepKind, Usage};
