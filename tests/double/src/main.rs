//! `m1-double`: stands in for an engine. Prints `ready HOST:PORT` on stdout once it listens, and serves until it is killed.

mod admin;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use m1_double::openai::OpenAi;
use m1_double::vllm::{Engine, VllmEngineServer};
use m1_double::{Fixed, Settings, Steady};
use m1_runtime::member::Member;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;

use admin::Admin;

/// Stands in for an engine, for tests and benchmarks of routers.
#[derive(Parser)]
#[command(name = "m1-double", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A worker of this project: m1.worker.v1 over gRPC.
    Worker(WorkerArgs),
    /// A server of OpenAI's API over HTTP.
    Openai(PeerArgs),
    /// A vLLM engine over gRPC.
    Vllm(PeerArgs),
}

/// How fast tokens come.
#[derive(Args)]
struct Pace {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// Milliseconds before the first token.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    first_ms: u64,
    /// Milliseconds between two tokens.
    #[arg(long, value_name = "MS", default_value_t = 5)]
    gap_ms: u64,
    /// Tokens after which every answer waits for ever.
    #[arg(long, value_name = "TOKENS")]
    hold_after: Option<u32>,
}

impl Pace {
    fn steady(&self) -> Steady {
        Steady {
            first: Duration::from_millis(self.first_ms),
            gap: Duration::from_millis(self.gap_ms),
            hold_after: self.hold_after,
            ..Steady::default()
        }
    }
}

#[derive(Args)]
struct WorkerArgs {
    #[command(flatten)]
    pace: Pace,
    /// What it does for each call instead of saying words at a pace: `say 3, wait 20, break UNAVAILABLE`, `refuse RESOURCE_EXHAUSTED`, `silence`.
    #[arg(long, value_name = "ACTS")]
    script: Option<Fixed>,
    /// Address for GET /tally, POST /script and POST /release.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Its number in the group.
    #[arg(long, default_value_t = 0)]
    pod: u32,
    /// Who it is: NAMESPACE/NAME/UID/GROUP/POD.
    #[arg(long)]
    member: Option<Member>,
    /// Layers of the model.
    #[arg(long, default_value_t = 80)]
    layers: u32,
    /// Experts of a layer.
    #[arg(long, default_value_t = 32)]
    experts: u32,
    /// Sequences that fit.
    #[arg(long, default_value_t = 20_000)]
    slots: u32,
    /// KV blocks of 16 tokens; 0: as many as the slots can need.
    #[arg(long, default_value_t = 0)]
    kv_blocks: u32,
    /// Longest sequence, prompt and output together.
    #[arg(long, default_value_t = 4096)]
    max_context: u32,
}

#[derive(Args)]
struct PeerArgs {
    #[command(flatten)]
    pace: Pace,
    /// As it names its model.
    #[arg(long, default_value = "MiniMax-M1")]
    model: String,
    /// Folder of the model's tokenizer; vllm only.
    #[arg(long, value_name = "DIR", default_value = "demo/m1-demo")]
    folder: String,
    /// Ids are below this; vllm only.
    #[arg(long, default_value_t = 2112)]
    vocab: u32,
    /// Sequences that fit; vllm only.
    #[arg(long, default_value_t = 20_000)]
    slots: u32,
    /// Longest sequence, prompt and output together; vllm only.
    #[arg(long, default_value_t = 4096)]
    max_context: u32,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Worker(args) => worker(args),
        Command::Openai(args) => alone(openai(args)),
        Command::Vllm(args) => alone(vllm(args)),
    }
}

/// Runs on this thread.
fn alone(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serving)
}

async fn openai(args: PeerArgs) -> anyhow::Result<()> {
    let handler = OpenAi { steady: args.pace.steady(), model: args.model };
    say(&format!("ready {}", m1_double::http::spawn(&args.pace.listen, handler).await?));
    std::future::pending().await
}

async fn vllm(args: PeerArgs) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(&args.pace.listen).await?;
    let engine = Engine {
        steady: args.pace.steady(),
        model: args.model,
        folder: args.folder,
        vocab: args.vocab,
        max_context: args.max_context,
        slots: args.slots,
    };
    say(&format!("ready {}", listener.local_addr()?));
    let incoming =
        TcpListenerStream::new(listener).map(|stream| stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream)));
    Ok(tonic::transport::Server::builder().add_service(VllmEngineServer::new(engine)).serve_with_incoming(incoming).await?)
}

fn worker(args: WorkerArgs) -> anyhow::Result<()> {
    let settings = Settings {
        pod: args.pod,
        member: args.member,
        layers: args.layers,
        experts: args.experts,
        slots: args.slots,
        kv_blocks: args.kv_blocks,
        max_context: args.max_context,
        ..Settings::default()
    };
    let ready = async |address: SocketAddr, control: m1_double::Control| {
        if let Some(admin) = &args.admin {
            say(&format!("admin {}", m1_double::http::spawn(admin, Admin(control)).await?));
        }
        say(&format!("ready {address}"));
        Ok(())
    };
    match args.script {
        Some(script) => m1_double::serve(&args.pace.listen, settings, script, ready)?,
        None => m1_double::serve(&args.pace.listen, settings, args.pace.steady(), ready)?,
    }
    Ok(())
}

/// A line on stdout, at once, for whoever started this.
fn say(line: &str) {
    let mut out = std::io::stdout();
    // Nobody has to listen.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
