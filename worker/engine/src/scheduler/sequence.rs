//! The state of one running sequence: how far it is, what it says next, when it ends.

use crate::executor::SlotId;
use crate::reasoning::Reasoning;
use crate::routing::{RoutingCounts, RoutingShape};
use crate::sampler::{Ids, SampleError, Sampler, TokenLogprobs};
use crate::spec::SequenceSpec;
use crate::step::{Failure, Finish, Heard, Outcome, SequenceId, Usage};

/// What a sequence says next.
pub(super) struct Spoken {
    pub(super) token: u32,
    /// Fed by the thinking budget.
    pub(super) forced: bool,
    pub(super) logprobs: Option<Box<TokenLogprobs>>,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) spec: SequenceSpec,
    pub(super) slot: Option<SlotId>,
    pub(super) routing: RoutingCounts,
    /// It has been part of a step.
    begun: bool,
    /// Tokens that passed through the layers; also the position of the next one.
    fed: u32,
    /// The last output: what a decode step feeds.
    last: u32,
    /// Those said before among them.
    outputs: u32,
    reasoning: Reasoning,
}

impl Sequence {
    pub(super) fn new(spec: SequenceSpec, shape: RoutingShape) -> Self {
        let routing = if spec.request().omit_routing { RoutingCounts::totals(shape) } else { RoutingCounts::new(shape) };
        let (outputs, reasoning) = (spec.request().said.len() as u32, spec.reasoning());
        Self { spec, slot: None, routing, begun: false, fed: 0, last: 0, outputs, reasoning }
    }

    /// Notes that it is part of a step; true for the first one.
    pub(super) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    pub(super) fn position(&self) -> u32 {
        self.fed
    }

    /// Tokens of the prompt, and of what was said before, that have not passed through the layers.
    pub(super) fn prompt_left(&self) -> u32 {
        self.spec.given_tokens().saturating_sub(self.fed)
    }

    /// Ids that may be drawn.
    fn ids(&self) -> Ids {
        if self.spec.request().raw_logits { Ids::Every } else { Ids::Known }
    }

    /// Appends the next `tokens` inputs: of the prompt and what was said before, or the last output.
    pub(super) fn inputs(&self, tokens: u32, into: &mut Vec<u32>) {
        if self.prompt_left() == 0 {
            return into.push(self.last);
        }
        let request = self.spec.request();
        into.extend(request.prompt.iter().chain(&request.said).skip(self.fed as usize).take(tokens as usize));
    }

    pub(super) fn passed(&mut self, tokens: u32) {
        self.fed += tokens;
    }

    /// The next output, from the logits after the last token that was fed.
    pub(super) fn speak(&mut self, sampler: &mut Sampler, logits: &[f32]) -> Result<Spoken, SampleError> {
        let ids = self.ids();
        let request = self.spec.request();
        let forced = self.reasoning.forced(request.thinking.as_ref());
        let token = match forced {
            Some(token) => token,
            None => sampler.choose(logits, &request.sampling, self.fed, ids)?,
        };
        let logprobs = match request.logprobs.checked_sub(1) {
            Some(top) => sampler.logprobs(logits, token, top as usize, ids).map(Box::new),
            None => None,
        };
        self.last = token;
        self.outputs += 1;
        Ok(Spoken { token, forced: forced.is_some(), logprobs })
    }

    /// Takes what the last output's text means; how the sequence ends, if that was its last. The text counts first: what it
    /// completes is the caller's own wish, while a stop id or the length would only cut it off.
    pub(super) fn heard(&mut self, heard: Heard) -> Option<Finish> {
        let request = self.spec.request();
        self.reasoning.said(self.last, heard.reasoning_open, request.thinking.as_ref());
        if heard.stop || request.stop_ids.contains(&self.last) {
            Some(Finish::Stop)
        } else if self.outputs >= request.max_tokens {
            Some(Finish::Length)
        } else {
            None
        }
    }

    /// The sequence's last word.
    pub(super) fn finished(self, id: SequenceId, finish: Finish) -> Outcome {
        let usage = Usage {
            prompt_tokens: self.spec.prompt_tokens(),
            output_tokens: self.outputs,
            reasoning_tokens: self.reasoning.tokens(),
        };
        Outcome::Finished { id, finish, usage, routing: Box::new(self.routing) }
    }
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}
