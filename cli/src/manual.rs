//! `m1ctl completions` and `m1ctl man`: what shells and `man` know of the command line, made from the command line itself.

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::error::Failure;

/// Prints a completion script.
///
/// # Errors
/// None; the signature is that of every command.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    clap_complete::generate(args.shell, &mut Cli::command(), "m1ctl", &mut std::io::stdout());
    Ok(())
}

/// Writes `m1ctl.1` and one page per subcommand.
///
/// # Errors
/// The folder cannot be written.
pub fn pages(args: &ManArgs) -> Result<(), Failure> {
    let failed = |error| Failure::new(args.folder.display(), error);
    std::fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(failed)
}
