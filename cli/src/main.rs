//! The `m1ctl` binary: reads the command line and hands it to the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    m1ctl::run(m1ctl::args::Cli::parse())
}
