//! Logs on stderr. `RUST_LOG` is the filter (default `info`), `M1_LOG_FORMAT` is `text` (default) or `json`. Standard output stays free for results.
//!
//! Nobody waits for whoever reads stderr: lines go through a bounded queue to a thread of their own, and those that find it full are counted and dropped.

mod writer;

use std::str::FromStr;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use writer::{Guard, Writer};

static WRITER: OnceLock<Writer> = OnceLock::new();

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    /// `M1_LOG_FORMAT` has another value.
    #[error("M1_LOG_FORMAT is {0:?}; allowed: text, json")]
    Format(String),
    /// `RUST_LOG` does not parse.
    #[error("RUST_LOG is {0:?}; allowed: a level or target=level pairs, comma separated")]
    Filter(String),
    /// No thread for them.
    #[error("cannot start the thread that writes logs: {0}")]
    Thread(String),
    /// A subscriber is set already.
    #[error("logs are set up already")]
    Twice,
}

impl LogError {
    /// The word for logs and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Format(_) => "BadLogFormat",
            Self::Filter(_) => "BadLogFilter",
            Self::Thread(_) => "NoThread",
            Self::Twice => "LogsAlreadySet",
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One readable line.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

/// The logs of this process. Dropping it writes what waits, for at most a second.
#[derive(Debug)]
#[must_use]
pub struct Logs(#[expect(dead_code, reason = "its end writes what waits")] Guard);

/// Lines that were dropped because nobody read them.
pub fn dropped() -> u64 {
    WRITER.get().map_or(0, Writer::dropped)
}

/// Sets up the logs of this process and says that `component` starts.
///
/// # Errors
/// A bad `RUST_LOG` or `M1_LOG_FORMAT`, or a second call.
pub fn init(component: &'static str) -> Result<Logs, LogError> {
    let format = std::env::var("M1_LOG_FORMAT").unwrap_or_default().parse()?;
    let filter = filter(&std::env::var("RUST_LOG").unwrap_or_default())?;
    let (writer, guard) = writer::start(std::io::stderr()).map_err(|error| LogError::Thread(error.to_string()))?;
    let lines = writer.clone();
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || lines.clone());
    let set = match format {
        Format::Text => base.with_ansi(false).try_init(),
        Format::Json => base.json().flatten_event(true).try_init(),
    };
    set.map_err(|_| LogError::Twice)?;
    WRITER.get_or_init(|| writer);
    tracing::info!(component, version = env!("CARGO_PKG_VERSION"), "starting");
    Ok(Logs(guard))
}

fn filter(text: &str) -> Result<EnvFilter, LogError> {
    let text = if text.is_empty() { "info" } else { text };
    EnvFilter::builder().parse(text).map_err(|_| LogError::Filter(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_two() {
        assert_eq!("".parse(), Ok(Format::Text));
        assert_eq!("json".parse(), Ok(Format::Json));
        let error = "xml".parse::<Format>().unwrap_err();
        assert_eq!(error.to_string(), "M1_LOG_FORMAT is \"xml\"; allowed: text, json");
    }

    #[test]
    fn a_bad_filter_is_named() {
        assert!(filter("m1_router=debug,info").is_ok());
        assert_eq!(filter("a=loudly").unwrap_err().reason(), "BadLogFilter");
    }
}
