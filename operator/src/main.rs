//! `m1-operator`: watches MiniMaxM1Deployments and keeps their pods as they should be.

use anyhow::Context;
use clap::Parser;
use m1_operator::config::{Args, Config};

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _logs = m1_runtime::logs::init("m1-operator")?;
    let config = Config::try_from(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")?;
    runtime.block_on(m1_operator::run::run(config))
}
