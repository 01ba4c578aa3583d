//! Decode over gRPC, of a fixed number of sequences spread over some workers:
//!
//!     workers SEQUENCES HOST:PORT [HOST:PORT ..]
//!
//! Prints the tokens per second that all sequences got together from the moment when each had its first one. The same sequences come to the
//! same ids whoever computes them, so two runs do the same work.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use m1_proto::worker::generate_event::Event;
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{FinishReason, GenerateRequest, Sampling};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Tokens of a prompt, and of an answer.
const PROMPT: u32 = 64;
const ANSWER: u32 = 65;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sequences, addresses @ ..] = arguments.as_slice() else { bail!("usage: workers SEQUENCES HOST:PORT [HOST:PORT ..]") };
    let sequences: u32 = sequences.parse().context("SEQUENCES is no number")?;
    let mut clients = Vec::new();
    for address in addresses {
        clients
            .push(WorkerClient::connect(format!("http://{address}")).await.with_context(|| format!("{address} does not answer"))?);
    }
    // How many have their first token; whoever brings the last one notes the time.
    let (started, _) = watch::channel(0);
    let mut tasks = JoinSet::new();
    for (sequence, client) in (0..sequences).zip(clients.iter().cycle()) {
        tasks.spawn(answer(client.clone(), request(sequence), started.clone()));
    }
    let mut all = started.subscribe();
    let begun = async {
        all.wait_for(|count| *count == sequences).await.context("an answer broke off")?;
        anyhow::Ok(Instant::now())
    };
    let begun = begun.await?;
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    let after = times.iter().filter(|time| **time > begun).count();
    println!("{:.2}", after as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}

fn request(sequence: u32) -> GenerateRequest {
    GenerateRequest {
        request_id: format!("workers-{}-{sequence}", std::process::id()),
        attempt: 1,
        prompt: (1..=PROMPT).map(|place| place * (sequence + 3) * 7919 % 2000).collect(),
        max_tokens: ANSWER,
        sampling: Some(Sampling { temperature: 0.0, top_p: 1.0, seed: 0 }),
        ..GenerateRequest::default()
    }
}

/// When each token of an answer came.
async fn answer(
    mut client: WorkerClient<tonic::transport::Channel>,
    request: GenerateRequest,
    started: watch::Sender<u32>,
) -> Result<Vec<Instant>> {
    let mut stream = client.generate(request).await?.into_inner();
    let mut times = Vec::new();
    while let Some(event) = stream.message().await? {
        match event.event {
            Some(Event::Tokens(tokens)) => {
                if times.is_empty() && !tokens.ids.is_empty() {
                    started.send_modify(|count| *count += 1);
                }
                times.extend(tokens.ids.iter().map(|_| Instant::now()));
            }
            Some(Event::Finished(finished)) => match finished.reason() {
                FinishReason::FinishLength => return Ok(times),
                other => bail!("an answer ended with {other:?}: {}", finished.error_message),
            },
            _ => {}
        }
    }
    bail!("an answer broke off")
}
