//! The gRPC stand-in without a router before it: what its routers add to.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use m1_proto::worker::generate_event::Event;
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{GenerateRequest, Sampling};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// Ids of the question that routers are asked, about.
const PROMPT: u32 = 110;

/// A connection to a worker.
pub struct Direct {
    client: WorkerClient<Channel>,
    tokens: u32,
    asked: u64,
}

impl Direct {
    /// Connects; sequences shall have so many tokens.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn connect(address: &str, tokens: u32) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        let channel = endpoint.connect().await.with_context(|| format!("connect to {address}"))?;
        Ok(Self { client: WorkerClient::new(channel), tokens, asked: 0 })
    }

    /// Runs a sequence to its end: until its first token was there.
    ///
    /// # Errors
    /// It does not end as it should.
    pub async fn first(&mut self) -> Result<Duration> {
        self.asked += 1;
        let request = GenerateRequest {
            request_id: format!("direct-{}", self.asked),
            attempt: 1,
            prompt: (1..=PROMPT).collect(),
            max_tokens: self.tokens,
            sampling: Some(Sampling { temperature: 0.0, top_p: 1.0, seed: 0 }),
            expert_threshold: 1.0,
            omit_routing: true,
            ..GenerateRequest::default()
        };
        let started = Instant::now();
        let mut stream = self.client.generate(request).await?.into_inner();
        let mut first = None;
        while let Some(event) = stream.message().await? {
            match event.event {
                Some(Event::Tokens(tokens)) if !tokens.ids.is_empty() => {
                    first.get_or_insert_with(|| started.elapsed());
                }
                Some(Event::Finished(_)) => return first.context("no token came"),
                _ => {}
            }
        }
        bail!("the stream ended early")
    }
}
