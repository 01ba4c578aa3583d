//! A worker that misbehaves on demand: the other side of the hostile suite (`scripts/hostile.sh`). It speaks `m1.worker.v1`, computes nothing, and does
//! for every sequence what a script says. The script comes with the request, as a stop string `@double SCRIPT`, or is this worker's own (`mode SCRIPT`
//! on standard input). Every command is answered by one line of JSON; the process ends with its standard input.

mod garble;
mod script;
mod sequence;
mod worker;

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use m1_proto::worker::worker_server::WorkerServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;

use worker::{Shape, Stage, Standing, Work};

/// A worker that misbehaves on demand. The hostile suite starts it.
#[derive(Parser)]
struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Sequences that may run at once.
    #[arg(long, default_value_t = 64)]
    slots: u32,
    /// Milliseconds between two tokens of a good answer.
    #[arg(long, default_value_t = 5)]
    gap_ms: u64,
    /// Tokens of the window it reports.
    #[arg(long, default_value_t = 4096)]
    max_context: u32,
    /// The script of requests that bring none.
    #[arg(long, default_value = "ok")]
    mode: String,
    /// What the status stream says from the start.
    #[arg(long, default_value = "ready")]
    standing: String,
    /// Connections end with a reset, also when the process dies.
    #[arg(long)]
    reset: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(&args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("{}", json!({"address": listener.local_addr()?.to_string()}));
    let shape = Shape { slots: args.slots, gap_ms: args.gap_ms, max_context: args.max_context };
    let stage = Arc::new(Stage::new(shape, args.mode.parse()?, args.standing.parse()?));
    let reset = args.reset;
    let incoming = TcpListenerStream::new(listener).map(move |stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        if reset {
            stream.set_zero_linger()?;
        }
        Ok::<_, std::io::Error>(stream)
    });
    let service = garble::Garble::new(Arc::clone(&stage), WorkerServer::new(Work(Arc::clone(&stage))));
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    tokio::select! {
        served = server => Ok(served?),
        told = listen(&stage) => told,
    }
}

/// Takes commands until there are no more.
async fn listen(stage: &Stage) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = command(stage, line.trim()).unwrap_or_else(|error| json!({"error": error.to_string()}));
        println!("{answer}");
    }
    Ok(())
}

fn command(stage: &Stage, line: &str) -> anyhow::Result<Value> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "mode" => stage.set_mode(rest.parse()?),
        "seed" => {
            let (seed, script) = rest.split_once(' ').context("seed NUMBER SCRIPT")?;
            stage.set_seeded(seed.parse()?, script.parse()?);
        }
        "standing" => stage.set_standing(rest.parse::<Standing>()?),
        "count" => return Ok(stage.count()),
        "seen" => return Ok(json!({"seen": stage.seen(rest)})),
        other => anyhow::bail!("{other:?} is no command; there are mode, seed, standing, count, seen"),
    }
    Ok(json!({}))
}
