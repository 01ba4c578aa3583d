//! One connection to a router, and what is asked over it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::answer::Answer;

/// Longest wait for an answer: a router that hangs must not hang the benchmark.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What is asked: about as long as people's questions.
const QUESTION: &str = "A deployment of ours has three replicas, and one of them is restarted by the kubelet again and again. The events say that its liveness \
    probe fails, but when I open a shell in the container the endpoint answers at once. The node is not short of memory and the others are well. What should I look \
    at first, and in which order, before I change the timeouts of the probe?";

/// Where and what.
#[derive(Clone, Debug)]
pub struct Target {
    /// HOST:PORT.
    pub address: String,
    /// The model's name there.
    pub model: String,
    /// Ask for usage with every token: smg, which gathers the tokens of a chat otherwise, sends them one by one then.
    pub every_token: bool,
}

impl Target {
    /// A streamed chat of so many tokens, as bytes.
    pub fn chat(&self, tokens: u32) -> Vec<u8> {
        let mut body = serde_json::json!({
            "model": self.model, "messages": [{"role": "user", "content": QUESTION}], "stream": true, "max_tokens": tokens, "temperature": 0,
        });
        if self.every_token {
            body["stream_options"] = serde_json::json!({"include_usage": true, "continuous_usage_stats": true});
        }
        self.post("/v1/chat/completions", body.to_string().as_bytes())
    }

    /// Any request with a body.
    pub fn post(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        request
    }

    /// A connection.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn connect(&self) -> Result<TcpStream> {
        let stream = timeout(PATIENCE, TcpStream::connect(&self.address)).await.context("connecting takes too long")?;
        let stream = stream.with_context(|| format!("connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// How an answer went.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the first byte sent until the first text was there.
    pub first: Duration,
    /// Until the end.
    pub total: Duration,
    /// Events.
    pub events: u32,
}

/// Asks and reads the whole stream.
///
/// # Errors
/// It is no stream that ends as it should.
pub async fn stream(connection: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Result<Timing> {
    let started = Instant::now();
    let (answer, first) = read_until(connection, request, buffer, started, Answer::is_whole).await?;
    if !answer.is_finished_stream() {
        bail!("status {}, {} events, and no end", answer.status, answer.events);
    }
    let first = first.context("no text came")?;
    Ok(Timing { first, total: started.elapsed(), events: answer.events })
}

/// Asks and reads until the first text is there; the stream stays open.
///
/// # Errors
/// None comes.
pub async fn open(connection: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Result<()> {
    let (answer, _) = read_until(connection, request, buffer, Instant::now(), |answer| answer.text || answer.is_whole()).await?;
    if answer.text && !answer.is_whole() { Ok(()) } else { bail!("status {}, and the stream does not stay open", answer.status) }
}

async fn read_until(
    connection: &mut TcpStream,
    request: &[u8],
    buffer: &mut [u8],
    started: Instant,
    mut over: impl FnMut(&Answer) -> bool,
) -> Result<(Answer, Option<Duration>)> {
    connection.write_all(request).await.context("send the request")?;
    let (mut answer, mut first) = (Answer::default(), None);
    while !over(&answer) {
        // A timer for each read would cost more than the read.
        let count = connection.read(buffer).await.context("read the answer")?;
        if count == 0 {
            bail!("the connection closed in the middle of an answer");
        }
        answer.feed(&buffer[..count])?;
        if answer.text && first.is_none() {
            first = Some(started.elapsed());
        }
    }
    Ok((answer, first))
}

/// What a request with a long body came to.
#[derive(Clone, Copy, Debug)]
pub struct Long {
    /// The answer's status.
    pub status: u16,
    /// From the first byte sent until the answer's head was there.
    pub from_first_byte: Duration,
    /// From the last body byte handed to the kernel until the head was there; zero where the answer came before.
    pub from_last_byte: Duration,
}

/// Sends a long request while it reads: the answer may come before all is sent.
///
/// # Errors
/// No answer.
pub async fn long(target: &Target, request: &[u8]) -> Result<Long> {
    let connection = target.connect().await?;
    let (mut reader, mut writer) = connection.into_split();
    let started = Instant::now();
    let sending = async {
        // A router that has refused need not read on: that is no error.
        let _ = writer.write_all(request).await;
        let sent = Instant::now();
        (writer, sent)
    };
    let reading = async {
        let (mut answer, mut buffer, mut head) = (Answer::default(), vec![0; 64 << 10], None);
        while !answer.is_whole() {
            let count = reader.read(&mut buffer).await.context("read the answer")?;
            if count == 0 {
                break;
            }
            answer.feed(&buffer[..count])?;
            if answer.status > 0 && head.is_none() {
                head = Some(Instant::now());
            }
        }
        head.map(|head| (answer.status, head)).context("the connection closed without an answer")
    };
    let ((_writer, sent), read) = timeout(PATIENCE, async { tokio::join!(sending, reading) }).await.context("no answer in time")?;
    let (status, head) = read?;
    Ok(Long { status, from_first_byte: head - started, from_last_byte: head.saturating_duration_since(sent) })
}
