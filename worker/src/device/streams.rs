//! One sequence towards whoever asked for it: where its events go, the rules that need its text, and whom it is counted for.
//! Its channel holds every event that must arrive, so the device thread never waits for a reader; signs of progress take what room is left.

use std::sync::Arc;

use bytes::Bytes;
use m1_engine::{Heard, TokenLogprobs};
use m1_proto::worker as pb;
use m1_proto::worker::generate_event::Event;
use tokio::sync::mpsc;
use tonic::Status;

use super::convert;
use super::inbox::SequenceKey;
use crate::tallies::Tally;
use crate::text::TextRules;

/// Where the events of a sequence go.
pub type Sink = mpsc::Sender<Result<pb::GenerateEvent, Status>>;

/// A sequence that was taken in and has not ended.
#[derive(Debug)]
pub(super) struct Open {
    pub key: SequenceKey,
    pub sink: Sink,
    pub text: Option<TextRules>,
    pub tally: Option<Arc<Tally>>,
    /// The stop string that is complete.
    pub stop: Option<String>,
    /// Events yet to come that must arrive, at most.
    pub must: usize,
}

impl Open {
    /// What the text of the next token means.
    pub fn hear(&mut self, id: u32) -> Heard {
        let Some(text) = &mut self.text else { return Heard::default() };
        let seen = text.push(id);
        self.stop = seen.stop;
        Heard { stop: self.stop.is_some(), reasoning_open: seen.reasoning_open }
    }

    /// Says that it is on its way, unless the reader has not taken what was said before.
    pub fn progress(&self) {
        if self.sink.capacity() > self.must {
            self.send(Event::Tokens(pb::Tokens::default()));
        }
    }

    /// Sends a token.
    pub fn token(&mut self, id: u32, logprobs: Option<&TokenLogprobs>) {
        let logprobs = logprobs.map(convert::logprobs).into_iter().collect();
        self.must = self.must.saturating_sub(1);
        self.send(Event::Tokens(pb::Tokens { ids: vec![id], logprobs }));
    }

    /// Sends raw logits, fp32 [rows, vocabulary].
    pub fn logits(&mut self, position: u32, rows: u32, values: &[f32]) {
        let mut bytes = Vec::with_capacity(std::mem::size_of_val(values));
        values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        self.must = self.must.saturating_sub(1);
        self.send(Event::RawLogits(pb::RawLogits { position, rows, values: Bytes::from(bytes) }));
    }

    /// Sends the end.
    pub fn finish(self, finished: pb::Finished) {
        self.send(Event::Finished(finished));
    }

    fn send(&self, event: Event) {
        // A reader that is gone cancels its sequence by itself.
        let _ = self.sink.try_send(Ok(pb::GenerateEvent { event: Some(event) }));
    }
}
