//! The `m1ctl` binary: reads the command line and hands it to the library.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use m1ctl::args::Cli;

fn main() -> ExitCode {
    let mut command = Cli::command();
    let called = std::env::args().next().unwrap_or_default();
    match called.rsplit('/').next() {
        // kubectl starts its plugin `m1` under this name.
        Some("kubectl-m1") => command = command.bin_name("kubectl m1"),
        Some(m1ctl::complete::CALLED) => return m1ctl::complete::run(&std::env::args().skip(1).collect::<Vec<_>>()),
        _ => {}
    }
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    m1ctl::run(cli)
}
