//! Where the events of running sequences go, and the rules that need their text. A stream holds every event its sequence can
//! produce, so the device thread never waits for a reader; a reader that is gone shows as a closed stream.

use std::collections::HashMap;

use bytes::Bytes;
use m1_proto::worker as pb;
use tokio::sync::mpsc;
use tonic::Status;

use super::inbox::SequenceKey;
use crate::text::{Seen, TextRules};

type Sink = mpsc::Sender<Result<pb::GenerateEvent, Status>>;

/// The streams of one worker.
#[derive(Debug, Default)]
pub struct Streams {
    open: HashMap<SequenceKey, Stream>,
}

#[derive(Debug)]
struct Stream {
    sink: Sink,
    text: Option<TextRules>,
}

impl Streams {
    /// Opens a stream.
    pub fn open(&mut self, key: SequenceKey, sink: Sink, text: Option<TextRules>) {
        self.open.insert(key, Stream { sink, text });
    }

    /// Sends a token. Returns what its text changed, where the sequence has text rules.
    pub fn token(&mut self, key: SequenceKey, id: u32, logprobs: Option<pb::TokenLogprobs>) -> Option<Seen> {
        let stream = self.open.get_mut(&key)?;
        let tokens = pb::Tokens { ids: vec![id], logprobs: logprobs.into_iter().collect() };
        send(&stream.sink, pb::generate_event::Event::Tokens(tokens));
        stream.text.as_mut().map(|text| text.push(id))
    }

    /// Sends raw logits, fp32 [rows, vocabulary].
    pub fn logits(&self, key: SequenceKey, position: u32, rows: u32, values: &[f32]) {
        if let Some(stream) = self.open.get(&key) {
            let mut bytes = Vec::with_capacity(values.len() * 4);
            values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
            let logits = pb::RawLogits { position, rows, values: Bytes::from(bytes) };
            send(&stream.sink, pb::generate_event::Event::RawLogits(logits));
        }
    }

    /// Sends the end and closes the stream.
    pub fn finish(&mut self, key: SequenceKey, finished: pb::Finished) {
        if let Some(stream) = self.open.remove(&key) {
            send(&stream.sink, pb::generate_event::Event::Finished(finished));
        }
    }

    /// Refuses a sequence that was not admitted.
    pub fn refuse(sink: &Sink, status: Status) {
        // A reader that is gone needs no answer.
        let _ = sink.try_send(Err(status));
    }

    /// Forgets a sequence that nobody reads.
    pub fn close(&mut self, key: SequenceKey) {
        self.open.remove(&key);
    }
}

fn send(sink: &Sink, event: pb::generate_event::Event) {
    // A reader that is gone cancels its sequence by itself.
    let _ = sink.try_send(Ok(pb::GenerateEvent { event: Some(event) }));
}
