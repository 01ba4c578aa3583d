//! The command line, checked once. Nothing else reads arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use m1_operator_api::{NameError, ResourceName};
use m1_router_core::{Deadlines, Topology};
use m1_runtime::listener::FIRST_FD;
use m1_runtime::member;
use m1_weights::source::{Given, GivenError, Location, Settings};

use crate::drain::Grace;
use crate::groups::{Deployment, Source};
use crate::http::body::Bounds;
use crate::http::cors::Cors;
use crate::server::Times;
use crate::sse::Pace;
use crate::workers::{Patience, is_address};

/// More serve no more requests before other things end: a connection of each to every worker has its price.
const MOST_THREADS: usize = 4;

/// Serves MiniMax-M1 over HTTP: OpenAI's API, M1's own, and metrics, all on one address.
///
/// It sends every request to a worker of a replica group. Which groups there are is said once with --workers, or followed in Kubernetes with --deployment;
/// one of the two is needed.
#[derive(Debug, Parser)]
#[command(name = "m1-router", version)]
pub struct Args {
    /// Address to listen on, HOST:PORT. 0.0.0.0:PORT in a pod; port 0 takes a free one.
    ///
    /// /health answers from the start, /ready is 503 until a replica group can serve.
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: String,
    /// Number of an open socket that listens on --listen already: whoever starts this process holds it, so that the address stays its own.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(i64::from(FIRST_FD)..))]
    pub listen_fd: Option<i32>,
    /// Where the model's config.json and tokenizer are: a folder, `hf://OWNER/NAME[@REVISION]`, or the https:// or http:// address of a folder.
    ///
    /// From the hub or the web they are fetched into --cache. Weights are not needed here.
    #[arg(long, value_name = "PLACE")]
    pub model: Location,
    /// Folder of fetched models; processes may share it. Default: $XDG_CACHE_HOME or ~/.cache, then minimax-m1/models.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Address of the Hugging Face hub or of a mirror of it. Default: the hub, huggingface.co.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL")]
    pub hub: Option<String>,
    /// File with an access token of the hub. Without it the variable HF_TOKEN counts. It is sent to the hub's own host only.
    #[arg(long, value_name = "FILE")]
    pub hub_token_file: Option<PathBuf>,
    /// The model's name in requests, answers and metrics. Default: the name of the --model folder or repository.
    #[arg(long, value_name = "NAME")]
    pub served_name: Option<String>,
    /// Longest sequence, prompt and output together, in tokens. Workers that hold less bound it further.
    #[arg(long, value_name = "TOKENS")]
    pub max_context: u32,

    /// A replica group that never changes: HOST:PORT of every pod, in the order of their numbers, comma separated. Once per group.
    #[arg(
        long,
        value_name = "HOST:PORT,..",
        required_unless_present = "deployment",
        conflicts_with = "deployment",
        help_heading = "Replica groups"
    )]
    pub workers: Vec<String>,
    /// Whose workers those are. A worker that was told of another deployment, group (its number in the order of --workers, from 0) or pod is not believed, and
    /// refuses calls by name. In Kubernetes the ExpertPlacements say it.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME/UID",
        requires = "workers",
        conflicts_with = "deployment",
        help_heading = "Replica groups"
    )]
    pub deployment_id: Option<String>,
    /// Follow the replica groups of this MiniMaxM1Deployment in Kubernetes, while groups and pods come and go.
    ///
    /// The router lists and watches ExpertPlacements with the label serving.minimax-m1.dev/name=NAME: its service account, or the user of the kubeconfig,
    /// needs list and watch on them. While the API server cannot be reached, the groups known last go on serving.
    #[arg(long, value_name = "NAME", help_heading = "Replica groups")]
    pub deployment: Option<String>,
    /// Namespace of --deployment. Default: the pod's own, or that of the kubeconfig's current context.
    #[arg(long, value_name = "NAMESPACE", requires = "deployment", conflicts_with = "workers", help_heading = "Replica groups")]
    pub namespace: Option<String>,

    /// Folder with tls.crt, tls.key and ca.crt, for groups that speak encrypted; with --workers those do.
    ///
    /// Changes of the folder are seen within 5 seconds; it may be empty until such a group comes.
    #[arg(long, value_name = "DIR", requires = "tls_name", help_heading = "Replica groups")]
    pub tls_dir: Option<PathBuf>,
    /// The name that every worker's certificate must be for.
    #[arg(long, value_name = "NAME", requires = "tls_dir", help_heading = "Replica groups")]
    pub tls_name: Option<String>,

    /// Folder with API keys: one file per key, its content is the key. The mount of a Secret.
    ///
    /// With it every request but /health, /ready and /metrics needs the header `Authorization: Bearer KEY`, else it is answered 401. Changes of the folder
    /// are seen within 5 seconds. Without it everybody may ask.
    #[arg(long, value_name = "DIR", help_heading = "Requests")]
    pub api_keys: Option<PathBuf>,
    /// Requests that may wait for a worker with room; one more is answered 429 with Retry-After.
    #[arg(long, value_name = "REQUESTS", default_value_t = 256, help_heading = "Requests")]
    pub queue_limit: usize,
    /// Longest wait for a worker with room, 1 to 86400; then the request is answered 429 with Retry-After.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Requests")]
    pub queue_wait: u64,
    /// When the last ready worker is lost, requests wait so long for one to come back, 0 to 3600; then they are answered 503 with Retry-After.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Requests")]
    pub comeback_wait: u64,
    /// Most tokens one answer may have; a request for more is answered 400. Default: what the window leaves.
    ///
    /// A request that does not say how many it wants ends at this.
    #[arg(long, value_name = "TOKENS", help_heading = "Requests")]
    pub max_output_tokens: Option<u32>,
    /// Longest request body in bytes, before and after it was unpacked; a longer one is answered 413.
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20, help_heading = "Requests")]
    pub body_limit: usize,
    /// Web pages that may ask: `off`, `local` (pages of localhost), `any`, or origins such as `https://chat.example.com`, comma separated.
    #[arg(long, value_name = "ORIGINS", default_value = "local", help_heading = "Requests")]
    pub cors: Cors,

    /// Longest wait for the first token of a short prompt, once a worker has it, 1 to 86400; then another worker is tried.
    #[arg(long, value_name = "SECONDS", default_value_t = 40, help_heading = "Workers")]
    pub first_token_wait: u64,
    /// Prompt tokens per second of the slowest worker: a long prompt may take so much longer. At least 1.
    #[arg(long, value_name = "TOKENS", default_value_t = 200, help_heading = "Workers")]
    pub prompt_rate: u32,
    /// Longest silence of a worker within an answer, 1 to 86400; then the answer ends with an error.
    ///
    /// Longer than a worker waits for a lost expert (--expert-wait there).
    #[arg(long, value_name = "SECONDS", default_value_t = 40, help_heading = "Workers")]
    pub token_wait: u64,

    /// Threads that serve clients, 1 to 256. Default: as many as there are cores, and 4 at most: one serves some thousand answers a second.
    #[arg(long, help_heading = "Connections")]
    pub threads: Option<usize>,
    /// Clients' connections at once; one more is answered 503.
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 20_000, help_heading = "Connections")]
    pub max_connections: usize,
    /// Longest wait for the head of a request, from its first byte on, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Connections")]
    pub header_timeout: u64,
    /// Longest wait for a body, 1 to 86400; one of which less than 10 KiB come in 10 seconds ends sooner. Answered 408.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, help_heading = "Connections")]
    pub body_timeout: u64,
    /// A connection without a request is closed after this, 1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = 75, help_heading = "Connections")]
    pub idle_timeout: u64,
    /// A client that takes less than 1 KiB per second of what waits for it is cut after this, 1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Connections")]
    pub write_timeout: u64,
    /// The head of a stream leaves once a worker has the request, or after this, 1 to 3600. Errors from then on are events.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Connections")]
    pub stream_start: u64,
    /// A stream that has nothing to say sends a comment this often, 1 to 3600, so that proxies do not cut it.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Connections")]
    pub stream_comment: u64,

    /// After SIGTERM, new requests are still served for this long while /ready is 503, so that load balancers look elsewhere first. 5 in Kubernetes.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = "Shutdown")]
    pub shutdown_delay: u64,
    /// After that delay, answers under way may go on for this long; then they end with an error.
    ///
    /// terminationGracePeriodSeconds must be longer than both together. A second signal cuts at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, help_heading = "Shutdown")]
    pub drain_seconds: u64,
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
    /// Both, or neither.
    #[error("--workers, --deployment: given {0}, allowed: one of them")]
    Groups(&'static str),
    /// Not the name of a deployment.
    #[error("--deployment: given {given:?}, allowed: {source}")]
    Deployment {
        /// What was given.
        given: String,
        /// The rule.
        source: NameError,
    },
    /// Not the identity of a deployment.
    #[error("--deployment-id: given {given:?}, allowed: NAMESPACE/NAME/UID")]
    Identity {
        /// What was given, as far as it is shown.
        given: String,
    },
    /// A number out of bounds.
    #[error("--{flag}: given {given}, allowed: {allowed}")]
    Number {
        /// The flag.
        flag: &'static str,
        /// What was given.
        given: u64,
        /// The bounds.
        allowed: &'static str,
    },
    /// Something about fetching.
    #[error(transparent)]
    Fetch(#[from] GivenError),
    /// No name, and none to be had from the directory.
    #[error("--{flag}: given {given:?}, allowed: at least one character")]
    Name {
        /// The flag.
        flag: &'static str,
        /// What was given.
        given: String,
    },
}

impl ConfigError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "BadAddress",
            Self::Twice(_) => "WorkerTwice",
            Self::Groups(_) => "BadGroups",
            Self::Deployment { .. } | Self::Identity { .. } => "BadDeployment",
            Self::Number { .. } => "BadNumber",
            Self::Fetch(_) => "BadFetch",
            Self::Name { .. } => "BadName",
        }
    }
}

/// What the router runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: String,
    /// The socket that listens there already.
    pub listen_fd: Option<i32>,
    /// Tokenizer and config.json.
    pub model: Location,
    /// How they are fetched; none where they are in a folder.
    pub fetch: Option<Settings>,
    /// The model's name.
    pub served_name: String,
    /// Tokens of prompt and output together.
    pub max_context: u32,
    /// Who says which groups there are.
    pub source: Source,
    /// Folder of the certificates and the name they are for.
    pub tls: Option<(PathBuf, String)>,
    /// Folder with the keys of those who may ask; none: everybody may.
    pub api_keys: Option<PathBuf>,
    /// How many may wait for a worker, and how long.
    pub patience: Patience,
    /// Tokens of an output.
    pub max_output_tokens: Option<u32>,
    /// Bytes of a body, and how long it may take.
    pub bodies: Bounds,
    /// Web pages that may ask.
    pub cors: Cors,
    /// How long workers may be silent.
    pub deadlines: Deadlines,
    /// Threads that serve.
    pub threads: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// How long clients may take.
    pub times: Times,
    /// When streams speak.
    pub pace: Pace,
    /// How it ends.
    pub grace: Grace,
}

impl Config {
    /// Takes no more clients than there may be open files, less some for workers and all else: a client that is one too many should be told so.
    pub fn fit_files(&mut self, files: u64) {
        let room = usize::try_from(files - (files / 4).min(512)).unwrap_or(usize::MAX).max(1);
        if room < self.max_connections {
            tracing::warn!(
                files,
                max_connections = self.max_connections,
                room,
                "fewer connections than allowed: for want of open files"
            );
            self.max_connections = room;
        }
    }
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let source = source(&args)?;
        if !args.listen.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(ConfigError::Address { flag: "listen", given: args.listen });
        }
        number("max-context", args.max_context.into(), "2 and more", |n| n >= 2)?;
        number("queue-wait", args.queue_wait, "1 to 86400", |n| (1..=86_400).contains(&n))?;
        number("comeback-wait", args.comeback_wait, "0 to 3600", |n| n <= 3600)?;
        number("max-output-tokens", args.max_output_tokens.unwrap_or(1).into(), "1 and more", |n| n >= 1)?;
        number("shutdown-delay", args.shutdown_delay, "0 to 3600", |n| n <= 3600)?;
        number("drain-seconds", args.drain_seconds, "0 to 86400", |n| n <= 86_400)?;
        number("body-limit", args.body_limit as u64, "1024 and more", |n| n >= 1024)?;
        number("prompt-rate", args.prompt_rate.into(), "1 and more", |n| n >= 1)?;
        number("max-connections", args.max_connections as u64, "1 to 1000000", |n| (1..=1_000_000).contains(&n))?;
        let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS));
        number("threads", threads as u64, "1 to 256", |n| (1..=256).contains(&n))?;
        let times = Times {
            head: seconds("header-timeout", args.header_timeout, 3600)?,
            idle: seconds("idle-timeout", args.idle_timeout, 86_400)?,
            write: seconds("write-timeout", args.write_timeout, 86_400)?,
        };
        let pace = Pace {
            head: seconds("stream-start", args.stream_start, 3600)?,
            comment: seconds("stream-comment", args.stream_comment, 3600)?,
        };
        let bodies = Bounds { bytes: args.body_limit, time: seconds("body-timeout", args.body_timeout, 86_400)? };
        let deadlines = Deadlines {
            first: seconds("first-token-wait", args.first_token_wait, 86_400)?,
            rate: args.prompt_rate,
            between: seconds("token-wait", args.token_wait, 86_400)?,
        };
        let directory = || args.model.name();
        let fetch = match args.model {
            Location::Folder(_) => None,
            Location::Hub { .. } | Location::Web(_) => Some(fetching(&args).check()?),
        };
        let served_name = args.served_name.clone().or_else(directory).unwrap_or_default();
        named("served-name", &served_name)?;
        Ok(Self {
            listen: args.listen,
            listen_fd: args.listen_fd,
            model: args.model,
            fetch,
            served_name,
            max_context: args.max_context,
            source,
            tls: args.tls_dir.zip(args.tls_name),
            api_keys: args.api_keys,
            patience: Patience {
                limit: args.queue_limit,
                wait: Duration::from_secs(args.queue_wait),
                comeback: Duration::from_secs(args.comeback_wait),
            },
            max_output_tokens: args.max_output_tokens,
            bodies,
            cors: args.cors,
            deadlines,
            threads,
            max_connections: args.max_connections,
            times,
            pace,
            grace: Grace { delay: Duration::from_secs(args.shutdown_delay), drain: Duration::from_secs(args.drain_seconds) },
        })
    }
}

fn fetching(args: &Args) -> Given {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    Given {
        cache: args.cache.clone(),
        hub: args.hub.clone(),
        token_file: args.hub_token_file.clone(),
        token: std::env::var("HF_TOKEN").ok(),
        xdg_cache_home: path("XDG_CACHE_HOME"),
        home: path("HOME"),
    }
}

fn source(args: &Args) -> Result<Source, ConfigError> {
    match (&args.deployment, args.workers.as_slice()) {
        (Some(_), [_, ..]) => Err(ConfigError::Groups("both")),
        (None, []) => Err(ConfigError::Groups("neither")),
        (None, workers) => fixed(workers, args.tls_dir.is_some(), args.deployment_id.as_deref()).map(Source::Fixed),
        (Some(given), []) => {
            let name = ResourceName::new(given).map_err(|source| ConfigError::Deployment { given: given.clone(), source })?;
            if let Some(namespace) = &args.namespace {
                named("namespace", namespace)?;
            }
            Ok(Source::Kubernetes(Deployment { name, namespace: args.namespace.clone() }))
        }
    }
}

fn fixed(workers: &[String], encrypted: bool, whose: Option<&str>) -> Result<Topology, ConfigError> {
    let wrong = |given: &str| ConfigError::Identity { given: given.chars().take(120).collect() };
    let whose = whose.map(|given| given.parse::<member::Deployment>().map_err(|_| wrong(given))).transpose()?;
    let groups: Vec<Vec<String>> = workers.iter().map(|group| group.split(',').map(|a| a.trim().to_owned()).collect()).collect();
    let mut seen = Vec::new();
    for address in groups.iter().flatten() {
        if !is_address(address) {
            return Err(ConfigError::Address { flag: "workers", given: address.clone() });
        }
        if seen.contains(&address) {
            return Err(ConfigError::Twice(address.clone()));
        }
        seen.push(address);
    }
    let mut topology = Topology::fixed(&groups);
    for (number, group) in topology.groups.values_mut().enumerate() {
        group.encrypted = encrypted;
        for (pod, spec) in (0..).zip(&mut group.pods) {
            spec.member = whose.as_ref().map(|whose| whose.member(number.to_string(), pod).to_string().into());
        }
    }
    Ok(topology)
}

fn number(flag: &'static str, given: u64, allowed: &'static str, fits: impl Fn(u64) -> bool) -> Result<(), ConfigError> {
    if fits(given) { Ok(()) } else { Err(ConfigError::Number { flag, given, allowed }) }
}

/// A time of 1 to `most` seconds.
fn seconds(flag: &'static str, given: u64, most: u64) -> Result<Duration, ConfigError> {
    let allowed = if most == 3600 { "1 to 3600" } else { "1 to 86400" };
    number(flag, given, allowed, |n| (1..=most).contains(&n))?;
    Ok(Duration::from_secs(given))
}

fn named(flag: &'static str, given: &str) -> Result<(), ConfigError> {
    if given.trim().is_empty() { Err(ConfigError::Name { flag, given: given.to_owned() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
