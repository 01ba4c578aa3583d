//! `bench-router`: measures a router from outside, one thing a call, and makes the table of what was measured. `scripts/bench-router.sh` starts what is measured.

mod answer;
mod client;
mod direct;
mod measure;
mod process;
mod table;
mod text;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use client::Target;

/// Measures a router from outside.
#[derive(Parser)]
#[command(name = "bench-router", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// The router, HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// The model's name there.
    #[arg(long, default_value = "MiniMax-M1")]
    model: String,
    /// What is measured, as the table calls it.
    #[arg(long)]
    name: String,
    /// Ask for usage with every token.
    #[arg(long)]
    every_token: bool,
    /// The router's process: CPU time and memory are those of it and of all that it started.
    #[arg(long)]
    pid: Option<u32>,
    /// File that gets the result as a line of JSON.
    #[arg(long, value_name = "FILE")]
    into: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Streamed requests as fast as answers come.
    Streams {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        #[arg(long, default_value_t = 16)]
        tokens: u32,
        /// So many connections that the router is the limit, not the pace of tokens: a row of its own.
        #[arg(long)]
        busy: bool,
    },
    /// Time to the first token on one connection.
    First {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 500)]
        count: usize,
        #[arg(long, default_value_t = 1)]
        tokens: u32,
        /// The address is a worker's: m1.worker.v1 over gRPC, no router.
        #[arg(long)]
        grpc: bool,
    },
    /// Memory of streams that have said one token and stay open.
    Open {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 10_000)]
        count: usize,
    },
    /// A text that does not fit the window.
    Refusal {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 8)]
        megabytes: usize,
    },
    /// Text to ids beside the `tokenizers` crate.
    Tokenize {
        #[command(flatten)]
        common: Common,
        /// The model's tokenizer.json.
        #[arg(long)]
        tokenizer: PathBuf,
        #[arg(long, default_value_t = 1_000_000)]
        tokens: usize,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// The table of a file of results, as Markdown.
    Table { file: PathBuf },
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, run(Cli::parse().command))
}

async fn run(command: Command) -> Result<()> {
    let target =
        |common: &Common| Target { address: common.address.clone(), model: common.model.clone(), every_token: common.every_token };
    let pid = |common: &Common| common.pid.context("--pid is needed");
    let (what, common, result) = match command {
        Command::Streams { common, connections, seconds, tokens, busy } => {
            let result = measure::streams(&target(&common), connections, seconds, tokens, common.pid).await;
            (if busy { "busy" } else { "streams" }, common, result)
        }
        Command::First { common, count, tokens, grpc } => {
            let result = if grpc {
                measure::first_direct(&common.address, count, tokens).await
            } else {
                measure::first(&target(&common), count, tokens).await
            };
            ("first", common, result)
        }
        Command::Open { common, count } => {
            let result = measure::open(&target(&common), count, pid(&common)?).await;
            ("open", common, result)
        }
        Command::Refusal { common, megabytes } => {
            let result = measure::refusal(&target(&common), megabytes, pid(&common)?).await;
            ("refusal", common, result)
        }
        Command::Tokenize { common, tokenizer, tokens, rounds } => {
            let result = measure::tokenize(&target(&common), &tokenizer, tokens, rounds).await;
            ("tokenize", common, result)
        }
        Command::Table { file } => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            print!("{}", table::table(&text)?);
            return Ok(());
        }
    };
    // What could not be measured is a result too: the table says why.
    let mut record = result.unwrap_or_else(|error| serde_json::json!({"error": format!("{error:#}")}));
    (record["what"], record["name"]) = (what.into(), common.name.into());
    eprintln!("{record}");
    let mut file = OpenOptions::new().create(true).append(true).open(&common.into).context("open the file of results")?;
    writeln!(file, "{record}").context("write the result")
}
