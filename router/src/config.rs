//! The command line, checked once. Nothing else reads arguments.

use std::path::PathBuf;

use clap::Parser;

/// Serves MiniMax-M1 over HTTP: OpenAI's API, M1's own, and metrics, all on one address.
#[derive(Debug, Parser)]
#[command(name = "m1-router", version)]
pub struct Args {
    /// Address to listen on, HOST:PORT; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: String,
    /// Directory with the model's tokenizer and config.json.
    #[arg(long)]
    pub model: PathBuf,
    /// The model's name in requests and answers; the directory's name by default.
    #[arg(long)]
    pub served_name: Option<String>,
    /// Longest sequence, prompt and output together, in tokens.
    #[arg(long)]
    pub max_context: u32,
    /// HOST:PORT of every pod of a group, in the order of their numbers, comma separated; once per group.
    #[arg(long, required = true)]
    pub workers: Vec<String>,
    /// Requests that may wait for a worker; more are answered 429.
    #[arg(long, default_value_t = 256)]
    pub queue_limit: usize,
    /// Longest request body in bytes; a longer one is answered 413.
    #[arg(long, default_value_t = 32 << 20)]
    pub body_limit: usize,
}

/// Why the arguments cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not HOST:PORT.
    #[error("--{flag}: given {given:?}, allowed: HOST:PORT")]
    Address {
        /// The flag.
        flag: &'static str,
        /// What was given.
        given: String,
    },
    /// An address twice.
    #[error("--workers: {0:?} is given twice")]
    Twice(String),
    /// A window without room for a prompt and an output.
    #[error("--max-context: given {0}, allowed: 2 and more")]
    Window(u32),
    /// No name, and none to be had from the directory.
    #[error("--served-name: given {0:?}, allowed: at least one character")]
    Name(String),
}

impl ConfigError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "BadAddress",
            Self::Twice(_) => "WorkerTwice",
            Self::Window(_) => "BadWindow",
            Self::Name(_) => "BadName",
        }
    }
}

/// What the router runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: String,
    /// Tokenizer and config.json.
    pub model: PathBuf,
    /// The model's name.
    pub served_name: String,
    /// Tokens of prompt and output together.
    pub max_context: u32,
    /// Addresses of each group's pods.
    pub groups: Vec<Vec<String>>,
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Bytes of a body.
    pub body_limit: usize,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let groups: Vec<Vec<String>> =
            args.workers.iter().map(|group| group.split(',').map(|a| a.trim().to_owned()).collect()).collect();
        let mut seen = Vec::new();
        for address in groups.iter().flatten() {
            check_address("workers", address)?;
            if seen.contains(&address) {
                return Err(ConfigError::Twice(address.clone()));
            }
            seen.push(address);
        }
        check_address("listen", &args.listen)?;
        if args.max_context < 2 {
            return Err(ConfigError::Window(args.max_context));
        }
        let directory = || args.model.file_name().map(|name| name.to_string_lossy().into_owned());
        let served_name = args.served_name.clone().or_else(directory).unwrap_or_default();
        if served_name.trim().is_empty() {
            return Err(ConfigError::Name(served_name));
        }
        Ok(Self {
            listen: args.listen,
            model: args.model,
            served_name,
            max_context: args.max_context,
            groups,
            queue_limit: args.queue_limit,
            body_limit: args.body_limit,
        })
    }
}

fn check_address(flag: &'static str, given: &str) -> Result<(), ConfigError> {
    let fits = given
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0 || flag == "listen"));
    if fits { Ok(()) } else { Err(ConfigError::Address { flag, given: given.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl Fn(&mut Args)) -> Result<Config, ConfigError> {
        let mut args = Args {
            listen: "0.0.0.0:0".into(),
            model: "/models/m1".into(),
            served_name: None,
            max_context: 4096,
            workers: vec!["a:1, b:1".into(), "[::1]:3".into()],
            queue_limit: 4,
            body_limit: 1024,
        };
        change(&mut args);
        Config::try_from(args)
    }

    #[test]
    fn one_flag_is_one_group() {
        let config = config(|_| {}).unwrap();
        assert_eq!(config.groups, [vec!["a:1", "b:1"], vec!["[::1]:3"]]);
        assert_eq!(config.served_name, "m1");
    }

    #[test]
    fn wrong_arguments_are_named() {
        let reason = |change: fn(&mut Args)| config(change).unwrap_err().reason();
        assert_eq!(reason(|args| args.workers[0] = "a".into()), "BadAddress");
        assert_eq!(reason(|args| args.workers[0] = "a:0".into()), "BadAddress");
        assert_eq!(reason(|args| args.workers[0] = "a:1,a:1".into()), "WorkerTwice");
        assert_eq!(reason(|args| args.listen = ":80".into()), "BadAddress");
        assert_eq!(reason(|args| args.max_context = 1), "BadWindow");
        assert_eq!(reason(|args| args.served_name = Some(" ".into())), "BadName");
        assert_eq!(reason(|args| args.model = "/".into()), "BadName");
    }
}
