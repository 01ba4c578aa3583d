//! `m1ctl probe`: an HTTP GET as an exit code, for images that have no shell.

use std::time::{Duration, Instant};

use crate::args::ProbeArgs;
use crate::error::Failure;
use crate::http::Client;

/// Between two tries.
const BETWEEN: Duration = Duration::from_millis(500);

/// Runs the command: tries until the answer is 200 or `--wait` is over.
///
/// # Errors
/// Nobody answers, or the last answer is not 200.
pub async fn run(args: &ProbeArgs) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(args.wait);
    let client = Client::default();
    loop {
        let failure = match client.get(&args.url).await {
            Ok((200, _)) => return Ok(()),
            Ok((status, body)) => Failure::new(&args.url, format_args!("{status}: {body}")),
            Err(error) => Failure::new(&args.url, error),
        };
        if Instant::now() + BETWEEN > until {
            return Err(failure);
        }
        tokio::time::sleep(BETWEEN).await;
    }
}
