//! `m1-worker`: one pod of a MiniMax-M1 replica group. Starts the parts and ends them in order; see `serve.rs`.

use clap::Parser;

use m1_worker::config::{Cli, Command};
use m1_worker::serve::{self, Ended};

fn main() -> std::process::ExitCode {
    let Cli { command: Command::Serve(args) } = Cli::parse();
    let logs = match m1_runtime::logs::init("m1-worker") {
        Ok(logs) => logs,
        Err(error) => {
            eprintln!("m1-worker: {error}");
            return std::process::ExitCode::from(2);
        }
    };
    let config = match args.check() {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return std::process::ExitCode::from(2);
        }
    };
    match serve::run(config) {
        Ok(Ended::Whole) => std::process::ExitCode::SUCCESS,
        Ok(Ended::DeviceLeftBehind) => {
            drop(logs);
            m1_runtime::process::exit_now(0)
        }
        Err(error) => {
            tracing::error!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
