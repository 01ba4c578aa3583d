//! The state of one running sequence: how far it is, what it says next, when it ends.

use crate::executor::SlotId;
use crate::routing::RoutingCounts;
use crate::sampler::{Ids, SampleError, Sampler};
use crate::spec::SequenceSpec;
use crate::step::{Failure, Finish, Outcome, SequenceId, Usage};

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) spec: SequenceSpec,
    pub(super) slot: Option<SlotId>,
    pub(super) routing: RoutingCounts,
    /// Tokens that passed through the layers; also the position of the next one.
    fed: u32,
    /// The last output: what a decode step feeds.
    last: u32,
    outputs: u32,
    reasoning_open: bool,
    reasoning_tokens: u32,
    /// Close ids fed so far.
    closed: usize,
}

impl Sequence {
    pub(super) fn new(spec: SequenceSpec, routing: RoutingCounts) -> Self {
        Self { spec, slot: None, routing, fed: 0, last: 0, outputs: 0, reasoning_open: false, reasoning_tokens: 0, closed: 0 }
    }

    pub(super) fn position(&self) -> u32 {
        self.fed
    }

    /// Prompt tokens that have not passed through the layers.
    pub(super) fn prompt_left(&self) -> u32 {
        self.spec.prompt_tokens().saturating_sub(self.fed)
    }

    /// Ids that may be drawn.
    fn ids(&self) -> Ids {
        if self.spec.request().raw_logits { Ids::Every } else { Ids::Known }
    }

    /// Appends the next `tokens` inputs: of the prompt, or the last output.
    pub(super) fn inputs(&self, tokens: u32, into: &mut Vec<u32>) {
        let from = self.fed as usize;
        match self.spec.request().prompt.get(from..from + tokens as usize) {
            Some(chunk) => into.extend_from_slice(chunk),
            None => into.push(self.last),
        }
    }

    pub(super) fn passed(&mut self, tokens: u32) {
        self.fed += tokens;
    }

    pub(super) fn set_reasoning_open(&mut self, open: bool) {
        self.reasoning_open = open;
        let close = self.spec.request().thinking.as_ref().map_or(0, |thinking| thinking.close_ids.len());
        if !open && self.closed == close {
            // Should the model begin to reason again, it is closed again.
            self.closed = 0;
        }
    }

    /// Takes the next output from the logits after the last token that was fed.
    pub(super) fn speak(&mut self, id: SequenceId, sampler: &mut Sampler, logits: &[f32]) -> Result<Outcome, SampleError> {
        let forced = self.forced();
        let ids = self.ids();
        let request = self.spec.request();
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
        self.reasoning_tokens += u32::from(self.reasoning_open);
        Ok(Outcome::Token { id, token, forced: forced.is_some(), logprobs })
    }

    /// The close id that the thinking budget puts in place of a drawn one.
    fn forced(&mut self) -> Option<u32> {
        let thinking = self.spec.request().thinking.as_ref()?;
        let spent = self.reasoning_open && self.reasoning_tokens >= thinking.tokens;
        if self.closed == 0 && !spent {
            return None;
        }
        let id = thinking.close_ids.get(self.closed).copied()?;
        self.closed += 1;
        Some(id)
    }

    /// Whether the last output ends the sequence.
    pub(super) fn verdict(&self) -> Option<Finish> {
        let request = self.spec.request();
        if request.stop_ids.contains(&self.last) {
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
            reasoning_tokens: self.reasoning_tokens,
        };
        Outcome::Finished { id, finish, usage, routing: Box::new(self.routing) }
    }
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}
