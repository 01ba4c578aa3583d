//! `m1ctl probe`: an HTTP GET as an exit code, for images that have no shell.

use crate::args::ProbeArgs;
use crate::error::Failure;
use crate::http::Client;

/// Runs the command.
///
/// # Errors
/// Nobody answers, or the answer is not 200.
pub async fn run(args: &ProbeArgs) -> Result<(), Failure> {
    match Client::default().get(&args.url).await {
        Ok((200, _)) => Ok(()),
        Ok((status, body)) => Err(Failure::new(&args.url, format_args!("{status}: {body}"))),
        Err(error) => Err(Failure::new(&args.url, error)),
    }
}
