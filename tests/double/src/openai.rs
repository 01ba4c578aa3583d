//! Stands in for an engine that speaks OpenAI's API over HTTP, before which plain proxies and gateways are measured: one event a token, at the pace of the other
//! doubles. It always streams, whatever it is asked, and looks at nothing of a request but `max_tokens`.

use std::io;

use tokio::time::{Instant, sleep_until};

use crate::http::{Connection, Handler, Request};
use crate::script::Steady;

/// What the ids of [`crate::script::WORDS`] read as.
const TEXTS: [&str; 6] = [" the", " of", " in", " is", " as", " re"];
/// Tokens where a request names no bound.
const DEFAULT_TOKENS: u32 = 16;

/// The server.
#[derive(Clone, Debug)]
pub struct OpenAi {
    /// Its pace.
    pub steady: Steady,
    /// As it names its model.
    pub model: String,
}

impl Handler for OpenAi {
    async fn answer(&self, request: Request, connection: &mut Connection) -> io::Result<()> {
        let body = match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/chat/completions") => return self.stream(&request.body, connection).await,
            (_, "/health" | "/health_generate" | "/ready") => String::new(),
            (_, "/v1/models") => {
                let model = &self.model;
                format!(
                    r#"{{"object":"list","data":[{{"id":"{model}","object":"model","owned_by":"double","max_model_len":4096}}]}}"#
                )
            }
            (_, "/get_model_info" | "/model_info") => format!(r#"{{"model_path":"{}","is_generation":true}}"#, self.model),
            (_, "/get_server_info" | "/server_info") => {
                format!(r#"{{"model_path":"{0}","served_model_name":"{0}","dp_size":1}}"#, self.model)
            }
            (_, "/version") => r#"{"version":"0.0.0"}"#.to_owned(),
            _ => {
                connection.whole("404 Not Found", "application/json", b"{}");
                return Ok(());
            }
        };
        connection.whole("200 OK", "application/json", body.as_bytes());
        Ok(())
    }
}

impl OpenAi {
    async fn stream(&self, body: &[u8], connection: &mut Connection) -> io::Result<()> {
        let tokens = max_tokens(body).unwrap_or(DEFAULT_TOKENS).max(1);
        let mut due = Instant::now() + self.steady.first;
        connection.begin_chunks("text/event-stream");
        connection.chunk(self.event(r#"{"role":"assistant","content":""}"#, "null").as_bytes());
        for (nth, text) in (0..tokens).zip(TEXTS.iter().cycle()) {
            if self.steady.hold_after == Some(nth) {
                connection.flush().await?;
                std::future::pending::<()>().await;
            }
            if due > Instant::now() {
                connection.flush().await?;
                sleep_until(due).await;
            }
            connection.chunk(self.event(&format!(r#"{{"content":"{text}"}}"#), "null").as_bytes());
            due += self.steady.gap;
        }
        connection.chunk(self.event("{}", r#""length""#).as_bytes());
        connection.chunk(b"data: [DONE]\n\n");
        connection.chunk(b"");
        Ok(())
    }

    fn event(&self, delta: &str, finish: &str) -> String {
        format!(
            "data: {{\"id\":\"chatcmpl-0000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1764460800,\"model\":\"{}\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n",
            self.model
        )
    }
}

/// The number after `"max_tokens":`, without reading the rest: a stand-in must cost as little as it can.
fn max_tokens(body: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"\"max_tokens\":";
    let at = body.windows(KEY.len()).rposition(|window| window == KEY)? + KEY.len();
    let digits: Vec<u8> = body[at..].iter().copied().skip_while(|byte| *byte == b' ').take_while(u8::is_ascii_digit).collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_found() {
        assert_eq!(max_tokens(br#"{"messages":[],"max_tokens": 16,"stream":true}"#), Some(16));
        assert_eq!(max_tokens(br#"{"max_tokens":"16"}"#), None);
        assert_eq!(max_tokens(b"{}"), None);
    }

    #[test]
    fn events_are_json() {
        let server = OpenAi { steady: Steady::default(), model: "m".to_owned() };
        let event = server.event(r#"{"content":"x"}"#, "null");
        assert_eq!(event.matches('{').count(), event.matches('}').count());
        assert!(event.starts_with("data: {") && event.ends_with("}\n\n"));
    }
}
