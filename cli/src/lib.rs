//! `m1ctl`: runs, plans and measures MiniMax-M1 deployments from a command line. Links no tensor library: mathematics happens
//! in `m1-worker` processes that it starts and ends.
//!
//! Everything runs on the main thread: children ask the kernel to die with the thread that started them.

pub mod args;
pub mod bench;
pub mod cluster;
pub mod complete;
pub mod crd;
pub mod deployment;
pub mod diff;
pub mod error;
pub mod explain;
pub mod forward;
pub mod generate;
pub mod http;
pub mod local;
pub mod manual;
pub mod model;
pub mod output;
pub mod plan;
pub mod probe;
pub mod progress;
pub mod request;
pub mod units;
pub mod up;

use std::process::ExitCode;

use args::{Cli, Command};
use error::Failure;
use output::Console;

/// Runs one command. Results are on stdout, errors on stderr; the code is 0, 1 (failed) or 2 (wrong usage).
pub fn run(cli: Cli) -> ExitCode {
    let console = Console::stderr();
    let result = cli.into_command().and_then(|command| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Failure::new("async runtime", error))?.block_on(dispatch(command, &console))
    });
    console.flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            ExitCode::from(failure.code())
        }
    }
}

async fn dispatch(command: Command, console: &Console) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(&args, console).await,
        Command::Plan(args) => plan::run(&args, console).await,
        Command::Generate(args) => generate::run(&args, console).await,
        Command::Forward(args) => forward::run(&args, console).await,
        Command::Bench(args) => bench::run(&args, console).await,
        Command::Explain(args) => explain::run(&args).await,
        Command::Restart(args) => request::run(&args, request::Wish::Restart).await,
        Command::Resume(args) => request::run(&args, request::Wish::Resume).await,
        Command::RenewCertificates(args) => request::renew(&args).await,
        Command::Crd(args) => crd::run(&args, console).await,
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::pages(&args),
        Command::Probe(args) => probe::run(&args).await,
    }
}
