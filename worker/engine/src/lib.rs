//! The engine of one worker, without any IO: sequences, batching, sampling, stop rules, state and KV accounting,
//! routing counts, and the port behind which a device computes the model.
//!
//! It knows neither an async runtime nor a network nor a tensor library. One thread owns a [`Scheduler`] and an
//! [`Executor`] and turns the crank:
//!
//! ```text
//! submit / cancel / finish
//! next_step(executor) -> Step -> executor.begin_step(step.batch)
//!     per layer: executor.attention -> route(step, layer, routing) -> experts -> executor.combine
//! executor.end_step(logits) -> complete(step, logits) -> Outcomes        or fail(step, failure) -> Outcomes
//! per token of the outcomes: set_reasoning_open, finish (a stop text), before the next step
//! ```

mod allowed;
mod executor;
mod routing;
mod sampler;
mod scheduler;
mod spec;
mod step;

pub use allowed::AllowedIds;
pub use executor::{Assignment, Batch, Executor, ExecutorError, LayerRouting, Segment, SlotId, UNUSED};
pub use routing::{RoutingCounts, RoutingError, RoutingShape, apply_threshold};
pub use sampler::{Ids, SampleError, Sampler, Sampling, TokenLogprobs};
pub use scheduler::{Occupancy, Scheduler, SchedulerConfig, SchedulerError};
pub use spec::{Limits, MAX_TOP_LOGPROBS, SequenceRequest, SequenceSpec, SpecError, ThinkingBudget};
pub use step::{Failure, Finish, Outcome, SequenceId, Step, StepKind, Usage};
