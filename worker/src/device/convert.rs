//! The engine's results as the wire says them.

use m1_engine::{Finish, RoutingCounts, TokenLogprobs, Usage};
use m1_proto::worker as pb;

/// Counts as the wire has them, without arrays.
pub fn totals(counts: &RoutingCounts) -> pb::Routing {
    pb::Routing {
        tokens: counts.tokens,
        layers: counts.shape.layers as u32,
        experts: counts.shape.experts as u32,
        top_k: counts.shape.top_k as u32,
        executed: counts.executed,
        skipped: counts.skipped,
        lost: counts.lost,
        ..pb::Routing::default()
    }
}

/// Counts as the wire has them.
pub fn routing(counts: &RoutingCounts) -> pb::Routing {
    pb::Routing {
        expert_tokens: counts.expert_tokens.clone(),
        expert_weight: counts.expert_weight.iter().map(|w| *w as f32).collect(),
        expert_skipped: counts.expert_skipped.clone(),
        expert_lost: counts.expert_lost.clone(),
        ..totals(counts)
    }
}

/// Log-probabilities as the wire has them.
pub fn logprobs(logprobs: &TokenLogprobs) -> pb::TokenLogprobs {
    pb::TokenLogprobs::new(logprobs.logprob, logprobs.top.iter().copied())
}

/// The end of a sequence as the wire has it, of which no tally knows.
pub fn finished(finish: &Finish, usage: &Usage, counts: &RoutingCounts, stop_string: String) -> pb::Finished {
    let reason = match finish {
        Finish::Stop => pb::FinishReason::FinishStop,
        Finish::Length => pb::FinishReason::FinishLength,
        Finish::Failed(_) => pb::FinishReason::FinishError,
    };
    let (error_reason, error_message) = match finish {
        Finish::Failed(failure) => (failure.reason.to_owned(), failure.message.clone()),
        Finish::Stop | Finish::Length => Default::default(),
    };
    pb::Finished {
        reason: reason.into(),
        stop_string,
        prompt_tokens: usage.prompt_tokens,
        output_tokens: usage.output_tokens,
        routing: Some(routing(counts)),
        error_reason,
        error_message,
        counted: 0,
    }
}
