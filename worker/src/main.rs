//! `m1-worker`: one pod of a MiniMax-M1 replica group. Starts the parts and ends them in order; see `serve.rs`.

use clap::Parser;

use m1_worker::config::{Cli, Command};
use m1_worker::serve;

fn main() -> std::process::ExitCode {
    let Cli { command: Command::Serve(args) } = Cli::parse();
    if let Err(error) = m1_runtime::logs::init("m1-worker") {
        eprintln!("m1-worker: {error}");
        return std::process::ExitCode::from(2);
    }
    let config = match args.check() {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return std::process::ExitCode::from(2);
        }
    };
    match serve::run(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
