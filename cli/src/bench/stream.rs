//! One request: streamed, and timed by what the client sees.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::{self, Client, HttpError};

/// Where requests go and what they ask for.
#[derive(Debug, Clone)]
pub struct Target {
    /// The connections.
    pub client: Client,
    /// Address of `/v1/completions`.
    pub url: String,
    /// Model name.
    pub model: String,
    /// Longest answer.
    pub output_tokens: u32,
}

/// What one request took. Times are in seconds since it should have been sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// When it was sent.
    pub late: f64,
    /// When each piece of text came.
    pub pieces: Vec<f64>,
    /// When the answer ended.
    pub whole: f64,
    /// Prompt tokens by the server's count.
    pub input_tokens: u32,
    /// Answer tokens by the server's count.
    pub output_tokens: u32,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The stream carried an error.
    #[error("error in the stream: {0}")]
    Stream(String),
    /// The stream ended before `[DONE]` or had no usage.
    #[error("the stream ended without {0}")]
    Short(&'static str),
}

/// Sends one request, which was `due` at a time that may have passed, and reads its answer to the end.
///
/// # Errors
/// No answer, or not a whole one.
pub async fn request(target: &Target, prompt: String, due: Instant) -> Result<Sample, RequestError> {
    let body = json!({
        "model": target.model,
        "prompt": prompt,
        "max_tokens": target.output_tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let mut sample = Sample { late: due.elapsed().as_secs_f64(), ..Sample::default() };
    let mut answer = target.client.post(&target.url, body.to_string()).await?;
    let mut events = SseBuffer::default();
    let (mut usage, mut done) = (false, false);
    while let Some(bytes) = http::next(&mut answer).await? {
        let now = due.elapsed().as_secs_f64();
        events.push(&bytes);
        while let Some(event) = events.next() {
            match read(&event) {
                Seen::Text => sample.pieces.push(now),
                Seen::Usage(input, output) => {
                    (sample.input_tokens, sample.output_tokens) = (input, output);
                    usage = true;
                }
                Seen::Done => done = true,
                Seen::Error(message) => return Err(RequestError::Stream(message)),
                Seen::Nothing => {}
            }
        }
    }
    sample.whole = due.elapsed().as_secs_f64();
    match (usage, done) {
        (_, false) => Err(RequestError::Short("[DONE]")),
        (false, true) => Err(RequestError::Short("usage")),
        (true, true) => Ok(sample),
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Text,
    Usage(u32, u32),
    Done,
    Error(String),
    Nothing,
}

fn read(event: &str) -> Seen {
    if event == "[DONE]" {
        return Seen::Done;
    }
    let Ok(value) = serde_json::from_str::<Value>(event) else { return Seen::Error(format!("no JSON: {event}")) };
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str);
        return Seen::Error(message.map_or_else(|| error.to_string(), str::to_owned));
    }
    if let Some(usage) = value.get("usage").filter(|usage| !usage.is_null()) {
        let count = |name: &str| usage.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        return Seen::Usage(count("prompt_tokens"), count("completion_tokens"));
    }
    match value.pointer("/choices/0/text").and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Seen::Text,
        _ => Seen::Nothing,
    }
}

/// Cuts a stream of server-sent events into their data.
#[derive(Debug, Default)]
struct SseBuffer {
    bytes: Vec<u8>,
}

impl SseBuffer {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The data of the next `data:` line, once it is whole. Servers of this API send one such line per event.
    fn next(&mut self) -> Option<String> {
        loop {
            let end = self.bytes.iter().position(|&byte| byte == b'\n')?;
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                return Some(data.trim_start().to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_wherever_the_bytes_are() {
        let mut events = SseBuffer::default();
        events.push(b": comment\r\nda");
        assert_eq!(events.next(), None);
        events.push(b"ta: {\"a\":1}\r\n\r\ndata: [DO");
        assert_eq!(events.next().as_deref(), Some("{\"a\":1}"));
        assert_eq!(events.next(), None);
        events.push(b"NE]\n");
        assert_eq!(events.next().as_deref(), Some("[DONE]"));
    }

    #[test]
    fn an_event_is_text_usage_end_or_error() {
        assert_eq!(read("[DONE]"), Seen::Done);
        assert_eq!(read(r#"{"choices":[{"text":"a"}],"usage":null}"#), Seen::Text);
        assert_eq!(read(r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#), Seen::Nothing);
        assert_eq!(read(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#), Seen::Usage(3, 4));
        assert_eq!(read(r#"{"error":{"message":"no slot"}}"#), Seen::Error("no slot".into()));
        assert!(matches!(read("junk"), Seen::Error(_)));
    }
}
