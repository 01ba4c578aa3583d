//! The `m1-router` binary: arguments, logs, the socket, the signal. Binds before anything else, so that probes are answered early.

use anyhow::Context;
use clap::Parser;
use m1_router::config::{Args, Config};
use m1_router::drain::Stops;
use m1_runtime::{listener, process};
use tokio::task::JoinSet;

fn main() -> anyhow::Result<()> {
    process::give_back_large_memory();
    let mut config = Config::try_from(Args::parse())?;
    let _logs = m1_runtime::logs::init("m1-router")?;
    if let Some(files) = process::raise_open_files() {
        config.fit_files(files);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(run(config));
    // A blocked tokenizer thread must not hold the process.
    runtime.shutdown_background();
    result
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stops = Stops::of_process();
    let listener = listener::listen(config.listen.as_str(), config.listen_fd).await?;
    tracing::info!(address = %listener.local_addr()?, model = config.served_name, "listening");
    let mut followers = JoinSet::new();
    let topologies = config.source.open(&mut followers).await?;
    let served = m1_router::serve(config, listener, topologies, stops).await;
    followers.shutdown().await;
    Ok(served?)
}
