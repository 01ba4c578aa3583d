//! The state of one running sequence: how far it is, what it says next, when it ends.

use std::sync::Arc;

use crate::allowed::AllowedIds;
use crate::executor::{Draw, SlotId, StepId};
use crate::reasoning::Reasoning;
use crate::routing::{RoutingCounts, RoutingShape};
use crate::sampler::SampleError;
use crate::spec::{Priority, SequenceSpec};
use crate::step::{Failure, Finish, Heard, SequenceEvent, SequenceId, Usage};

/// What a running sequence is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    /// Nothing.
    Free,
    Step(StepId),
    /// Its state is on its way to host memory.
    Leaving,
    /// Its state is on its way back.
    Arriving,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) spec: SequenceSpec,
    /// None before it runs.
    pub(super) slot: Option<SlotId>,
    /// KV blocks, in the order of its tokens.
    pub(super) blocks: Vec<u32>,
    pub(super) busy: Busy,
    pub(super) routing: RoutingCounts,
    /// It has been part of a step.
    begun: bool,
    /// Tokens that passed through the layers; also the position of the next one.
    fed: u32,
    /// Tokens whose experts were counted: more than `fed` while what was lost is read again.
    counted: u32,
    /// Outputs of this attempt. A decode step feeds the last.
    spoken: Vec<u32>,
    reasoning: Reasoning,
}

impl Sequence {
    pub(super) fn new(spec: SequenceSpec, slot: Option<SlotId>, shape: RoutingShape) -> Self {
        let routing = if spec.request().omit_routing { RoutingCounts::totals(shape) } else { RoutingCounts::new(shape) };
        let (reasoning, blocks, spoken) = (spec.reasoning(), Vec::new(), Vec::new());
        Self { spec, slot, blocks, busy: Busy::Free, routing, begun: false, fed: 0, counted: 0, spoken, reasoning }
    }

    pub(super) fn priority(&self) -> Priority {
        self.spec.request().priority
    }

    /// Notes that it is part of a step; true for the first one.
    pub(super) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    pub(super) fn position(&self) -> u32 {
        self.fed
    }

    /// Tokens that are there: the prompt, what was said before, and what it has said itself.
    pub(super) fn known(&self) -> u32 {
        self.spec.given_tokens() + self.spoken.len() as u32
    }

    /// Tokens to read before it can say the next, or feed its last output.
    pub(super) fn prompt_left(&self) -> u32 {
        let read = self.known() - u32::from(!self.spoken.is_empty());
        read.saturating_sub(self.fed)
    }

    /// Whether a decode step can take it.
    pub(super) fn is_ready(&self) -> bool {
        self.busy == Busy::Free && self.prompt_left() == 0
    }

    /// Whether an id is drawn after its next `tokens`.
    pub(super) fn draws_after(&self, tokens: u32) -> bool {
        self.fed + tokens >= self.known()
    }

    /// Of its next `tokens` those that were counted before.
    pub(super) fn counted_of(&self, tokens: u32) -> u32 {
        self.counted.saturating_sub(self.fed).min(tokens)
    }

    /// Its state is lost: all that it knows is read again.
    pub(super) fn begin_again(&mut self) {
        self.fed = 0;
    }

    /// Appends the next `tokens` inputs.
    pub(super) fn inputs(&self, tokens: u32, into: &mut Vec<u32>) {
        let request = self.spec.request();
        let known = request.prompt.iter().chain(&request.said).chain(&self.spoken);
        into.extend(known.skip(self.fed as usize).take(tokens as usize));
    }

    pub(super) fn passed(&mut self, tokens: u32) {
        self.fed += tokens;
        self.counted = self.counted.max(self.fed);
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
        self.spoken.push(token);
    }

    /// Takes what the last output's text means; how the sequence ends, if that was its last. The text counts first: what it
    /// completes is the caller's own wish, while a stop id or the length would only cut it off.
    pub(super) fn heard(&mut self, heard: Heard) -> Option<Finish> {
        let (request, last) = (self.spec.request(), *self.spoken.last()?);
        self.reasoning.said(last, heard.reasoning_open, request.thinking.as_ref());
        if heard.stop || request.stop_ids.contains(&last) {
            Some(Finish::Stop)
        } else if self.outputs() >= request.max_tokens {
            Some(Finish::Length)
        } else {
            None
        }
    }

    /// Outputs, those said before among them.
    fn outputs(&self) -> u32 {
        self.spec.request().said.len() as u32 + self.spoken.len() as u32
    }

    /// The sequence's last word.
    pub(super) fn finished(self, id: SequenceId, finish: Finish) -> SequenceEvent {
        let usage = Usage {
            prompt_tokens: self.spec.prompt_tokens(),
            output_tokens: self.outputs(),
            reasoning_tokens: self.reasoning.tokens(),
        };
        SequenceEvent::Finished { id, finish, usage, routing: Box::new(self.routing) }
    }
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}
