//! The state of one running sequence: how far it is, what it says next, when it ends.

use std::sync::Arc;

use crate::allowed::AllowedIds;
use crate::executor::{Draw, SlotId, StepId};
use crate::reasoning::Reasoning;
use crate::routing::{RoutingCounts, RoutingShape};
use crate::sampler::SampleError;
use crate::spec::SequenceSpec;
use crate::step::{Failure, Finish, Heard, Outcome, SequenceId, Usage};

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) spec: SequenceSpec,
    /// None before it runs.
    pub(super) slot: Option<SlotId>,
    /// KV blocks, in the order of its tokens.
    pub(super) blocks: Vec<u32>,
    /// The step that it is part of.
    pub(super) step: Option<StepId>,
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
    pub(super) fn new(spec: SequenceSpec, slot: Option<SlotId>, shape: RoutingShape) -> Self {
        let routing = if spec.request().omit_routing { RoutingCounts::totals(shape) } else { RoutingCounts::new(shape) };
        let (outputs, reasoning) = (spec.request().said.len() as u32, spec.reasoning());
        let (blocks, step) = Default::default();
        Self { spec, slot, blocks, step, routing, begun: false, fed: 0, last: 0, outputs, reasoning }
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

    /// What is drawn from a row that ends at `position`. Who asks for raw logits draws from the whole vocabulary.
    pub(super) fn draw(&self, row: u32, position: u32, known: &Arc<AllowedIds>, every: &Arc<AllowedIds>) -> Draw {
        let request = self.spec.request();
        Draw {
            row,
            position,
            sampling: request.sampling,
            allowed: if request.raw_logits { every.clone() } else { known.clone() },
            bias: Vec::new(),
            forced: self.reasoning.forced(request.thinking.as_ref()),
            logprobs: request.logprobs,
        }
    }

    /// Takes the next output.
    pub(super) fn speak(&mut self, token: u32) {
        self.last = token;
        self.outputs += 1;
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
