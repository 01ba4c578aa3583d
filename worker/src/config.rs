//! Command line -> checked configuration. The only place that reads arguments and the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use m1_arch::Architecture;
use m1_runtime::listener::FIRST_FD;
use m1_runtime::member::Member;
use m1_weights::source::{Given, GivenError, Location, Settings};

/// One worker pod: attention for its own sequences, experts for everyone in its group.
#[derive(Debug, Parser)]
#[command(name = "m1-worker", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The worker's subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve gRPC until SIGTERM. Weights are loaded when a placement is applied.
    Serve(ServeArgs),
}

/// What is set aside without a word: a third of what the operator plans for a process on a CPU beside weights and caches.
const SET_ASIDE: u64 = 100_000_000;

/// Arguments of `m1-worker serve`, unchecked.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The checkpoint: a folder, `hf://OWNER/NAME[@REVISION]`, or the https:// or http:// address of a folder. It holds config.json,
    /// safetensors shards with their index, and, to serve text, the tokenizer. From the hub or the web it is fetched into --cache:
    /// first the headers, then the shards that hold what this pod needs.
    #[arg(long, value_name = "PLACE")]
    pub model: Location,
    /// Folder of fetched checkpoints; processes may share it. Default: $XDG_CACHE_HOME or ~/.cache, then minimax-m1/models.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Address of the Hugging Face hub or of a mirror of it. Default: the hub, huggingface.co.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL")]
    pub hub: Option<String>,
    /// File with an access token of the hub. Without it the variable HF_TOKEN counts. It is sent to the hub's own host only.
    #[arg(long, value_name = "FILE")]
    pub hub_token_file: Option<PathBuf>,
    /// Index of this pod in its group, from 0.
    #[arg(long, env = "M1_POD_INDEX", default_value_t = 0, value_name = "N", value_parser = pod_index)]
    pub pod: u16,
    /// Whose worker this is: the deployment, by namespace, name and uid, and its replica group. With --pod it is who answers here: a call that is meant for
    /// somebody else is refused by name. Without it every call is believed to be meant for this worker.
    #[arg(long, env = "M1_MEMBER", value_name = "NAMESPACE/NAME/UID/GROUP")]
    pub member: Option<String>,
    /// Address of the gRPC services.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// Number of an open socket that listens on --listen already: whoever starts this process holds it, so that the address stays its own.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(i64::from(FIRST_FD)..))]
    pub listen_fd: Option<i32>,
    /// Address of /livez, /readyz, /startupz and /metrics. Without it they are not served; in a pod: 0.0.0.0:9090.
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<SocketAddr>,
    /// What computes the model: kernels of our own on this machine's CPU, or libtorch where this program was built with it.
    #[arg(long, env = "M1_EXECUTOR", value_enum, default_value_t = ExecutorKind::Cpu)]
    pub executor: ExecutorKind,
    /// Threads that compute.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: u16,
    /// Sequences that may run at once: lightning state slots.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub slots: u32,
    /// Tokens that the KV cache of all running sequences holds together.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub kv_tokens: u32,
    /// Bytes of main memory for sequences that are set aside where the KV cache is full, the youngest first; their streams pause. What is beyond is
    /// computed again.
    #[arg(long, default_value_t = SET_ASIDE, value_name = "BYTES")]
    pub set_aside: u64,
    /// Prompt and output of one sequence together.
    #[arg(long, default_value_t = 32_768, value_name = "N")]
    pub max_context: u32,
    /// Prompt tokens in one prefill step.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub prefill_chunk: u32,
    /// Sequences that may wait for a slot; one more is refused.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub queue: u32,
    /// Bytes of raw logits that all requests for them may produce together before they are read; one more is refused.
    #[arg(long, default_value_t = 1 << 30, value_name = "BYTES")]
    pub raw_logits_limit: u64,
    /// Seconds that a token waits for an expert that nobody holds before its sequence fails.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub expert_wait: u32,
    /// Seconds that running sequences may go on after SIGTERM, and that peers are served meanwhile. A second signal ends them at
    /// once. The pod's terminationGracePeriodSeconds must be at least 5 more.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub drain_seconds: u32,
    /// Folder with tls.crt, tls.key and ca.crt: with it the gRPC services are reached with a certificate of that authority only, and
    /// so are peers. Changed files are used by new connections. Without it nothing is encrypted.
    #[arg(long, value_name = "DIR", requires = "tls_name")]
    pub tls_dir: Option<PathBuf>,
    /// The name that every peer's certificate must be for.
    #[arg(long, value_name = "NAME", requires = "tls_dir")]
    pub tls_name: Option<String>,
}

/// Checked configuration of one worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the checkpoint lies.
    pub model: Location,
    /// How it is fetched; none where it is a folder.
    pub fetch: Option<Settings>,
    /// Index of this pod in its group.
    pub pod: u16,
    /// Who this is; none where nobody has said.
    pub member: Option<Member>,
    /// Address of the gRPC services.
    pub listen: SocketAddr,
    /// The socket that listens there already.
    pub listen_fd: Option<i32>,
    /// Address of probes and metrics; none where they are not served.
    pub admin: Option<SocketAddr>,
    /// What computes the model.
    pub executor: ExecutorKind,
    /// Threads that compute, at least 1.
    pub threads: u16,
    /// State slots, at least 1.
    pub slots: u32,
    /// Tokens of the KV pool, at least 1.
    pub kv_tokens: u32,
    /// Bytes of states that are set aside.
    pub set_aside: u64,
    /// Window of one sequence, 2 to `kv_tokens`.
    pub max_context: u32,
    /// Prompt tokens in one prefill step, at least 1.
    pub prefill_chunk: u32,
    /// Waiting sequences before a refusal, at least 1.
    pub queue: u32,
    /// Bytes of raw logits that may be asked for at once.
    pub raw_logits_limit: u64,
    /// How long a step parks for a missing expert.
    pub expert_wait: Duration,
    /// How long sequences may go on, and peers are served, after SIGTERM.
    pub drain: Duration,
    /// Folder of the certificates and the name they are for; none where nothing is encrypted.
    pub tls: Option<(PathBuf, String)>,
}

/// What computes the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExecutorKind {
    /// Kernels of our own, weights used where the checkpoint's files are mapped.
    Cpu,
    /// libtorch, in fp32.
    #[cfg(feature = "torch")]
    Torch,
}

impl Config {
    /// What one worker of a model holds.
    pub fn limits(&self, arch: &Architecture) -> m1_engine::Limits {
        let held = m1_engine::CacheSize::for_tokens(self.slots, self.kv_tokens.into());
        m1_engine::Limits {
            vocab: arch.vocab as u32,
            max_context: self.max_context,
            slots: held.slots,
            kv_block_tokens: m1_engine::KV_BLOCK_TOKENS as u32,
            kv_blocks: held.kv_blocks,
        }
    }
}

/// A flag that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A number outside its range.
    #[error("--{flag}: {given} given, allowed: {allowed}")]
    Range {
        /// The flag.
        flag: &'static str,
        /// Its value.
        given: u64,
        /// What would do.
        allowed: String,
    },
    /// Not a group of a deployment.
    #[error("--member: {given:?} given, allowed: NAMESPACE/NAME/UID/GROUP")]
    Member {
        /// Its value, as far as it is shown.
        given: String,
    },
    /// Something about fetching.
    #[error(transparent)]
    Fetch(#[from] GivenError),
}

impl ServeArgs {
    /// Checks every range; the first flag outside its own is the error.
    pub fn check(self) -> Result<Config, ConfigError> {
        range("threads", self.threads.into(), 1, 1024)?;
        range("slots", self.slots.into(), 1, 1 << 16)?;
        range("kv-tokens", self.kv_tokens.into(), 1, u32::MAX.into())?;
        range("max-context", self.max_context.into(), 2, self.kv_tokens.into())?;
        range("prefill-chunk", self.prefill_chunk.into(), 1, 1 << 16)?;
        range("queue", self.queue.into(), 1, 1 << 20)?;
        range("expert-wait", self.expert_wait.into(), 0, 86_400)?;
        range("drain-seconds", self.drain_seconds.into(), 0, 86_400)?;
        let member = self.member.as_deref().map(|group| member(group, self.pod)).transpose()?;
        let fetch = match self.model {
            Location::Folder(_) => None,
            Location::Hub { .. } | Location::Web(_) => Some(self.fetching().check()?),
        };
        Ok(Config {
            model: self.model,
            fetch,
            pod: self.pod,
            member,
            listen: self.listen,
            listen_fd: self.listen_fd,
            admin: self.admin,
            executor: self.executor,
            threads: self.threads,
            slots: self.slots,
            kv_tokens: self.kv_tokens,
            set_aside: self.set_aside,
            max_context: self.max_context,
            prefill_chunk: self.prefill_chunk,
            queue: self.queue,
            raw_logits_limit: self.raw_logits_limit,
            expert_wait: Duration::from_secs(self.expert_wait.into()),
            drain: Duration::from_secs(self.drain_seconds.into()),
            tls: self.tls_dir.zip(self.tls_name),
        })
    }

    fn fetching(&self) -> Given {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        Given {
            cache: self.cache.clone(),
            hub: self.hub.clone(),
            token_file: self.hub_token_file.clone(),
            token: std::env::var("HF_TOKEN").ok(),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            home: path("HOME"),
        }
    }
}

/// An index that the exchange can name, from the flag or from the environment.
fn pod_index(text: &str) -> Result<u16, String> {
    let most = m1_exchange::MAX_PODS - 1;
    text.parse().ok().filter(|pod| usize::from(*pod) <= most).ok_or_else(|| format!("allowed: 0 to {most}"))
}

/// A pod of the group that is named.
fn member(group: &str, pod: u16) -> Result<Member, ConfigError> {
    let wrong = |_| ConfigError::Member { given: group.chars().take(120).collect() };
    format!("{group}/{pod}").parse().map_err(wrong)
}

fn range(flag: &'static str, given: u64, low: u64, high: u64) -> Result<(), ConfigError> {
    if (low..=high).contains(&given) {
        return Ok(());
    }
    Err(ConfigError::Range { flag, given, allowed: format!("{low} to {high}") })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve(extra: &[&str]) -> Result<Config, String> {
        let line = ["m1-worker", "serve", "--model", "m"].iter().chain(extra);
        let cli = Cli::try_parse_from(line).map_err(|e| e.to_string())?;
        let Command::Serve(args) = cli.command;
        args.check().map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_allowed() {
        assert_eq!(serve(&[]).unwrap().slots, 16);
    }

    #[test]
    fn an_error_names_flag_value_and_range() {
        assert_eq!(serve(&["--slots", "0"]).unwrap_err(), "--slots: 0 given, allowed: 1 to 65536");
        assert_eq!(serve(&["--kv-tokens", "10"]).unwrap_err(), "--max-context: 32768 given, allowed: 2 to 10");
        assert_eq!(serve(&["--drain-seconds", "86401"]).unwrap_err(), "--drain-seconds: 86401 given, allowed: 0 to 86400");
        let error = serve(&["--pod", "64"]).unwrap_err();
        assert!(error.contains("invalid value '64' for '--pod <N>': allowed: 0 to 63"), "{error}");
        let error = serve(&["--admin", "9090"]).unwrap_err();
        assert!(error.contains("invalid value '9090' for '--admin <HOST:PORT>'"), "{error}");
    }

    #[test]
    fn a_model_is_a_folder_or_is_fetched() {
        assert!(serve(&[]).unwrap().fetch.is_none());
        let line = ["m1-worker", "serve", "--cache", "/c", "--hub", "http://mirror.test", "--model", "hf://a/b@v1"];
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command;
        let config = args.check().unwrap();
        assert_eq!(config.model, Location::Hub { repo: "a/b".into(), revision: "v1".into() });
        let fetch = config.fetch.unwrap();
        assert_eq!((fetch.cache, fetch.hub.as_str()), ("/c".into(), "http://mirror.test"));
        let error = Cli::try_parse_from(["m1-worker", "serve", "--model", "s3://b/m"]).unwrap_err().to_string();
        assert!(error.contains("its scheme is not served"), "{error}");
    }

    #[test]
    fn the_pod_may_come_from_the_environment() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let pod = serve.get_arguments().find(|argument| argument.get_id() == "pod").unwrap();
        assert_eq!(pod.get_env(), Some(std::ffi::OsStr::new("M1_POD_INDEX")));
        // The same parser reads both.
        assert_eq!(pod_index("63"), Ok(63));
        assert_eq!(pod_index("").unwrap_err(), "allowed: 0 to 63");
    }

    #[test]
    fn a_worker_knows_whose_it_is() {
        assert_eq!(serve(&[]).unwrap().member, None);
        let config = serve(&["--member", "models/m1/0b54-11/m1-0-abc", "--pod", "3", "--listen-fd", "3"]).unwrap();
        assert_eq!(config.member.unwrap().to_string(), "models/m1/0b54-11/m1-0-abc/3");
        assert_eq!(config.listen_fd, Some(3));
        for wrong in ["m1", "models/m1/0b54-11", "models/m1/0b54-11/g/3", "models//0b54-11/g", ""] {
            let error = serve(&["--member", wrong]).unwrap_err();
            assert_eq!(error, format!("--member: {wrong:?} given, allowed: NAMESPACE/NAME/UID/GROUP"));
        }
        assert!(serve(&["--listen-fd", "2"]).unwrap_err().contains("--listen-fd"), "standard error is no socket");
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let member = serve.get_arguments().find(|argument| argument.get_id() == "member").unwrap();
        assert_eq!(member.get_env(), Some(std::ffi::OsStr::new("M1_MEMBER")));
    }

    #[test]
    fn certificates_have_a_folder_and_a_name() {
        let tls = serve(&["--tls-dir", "/tls", "--tls-name", "m1.serving.svc"]).unwrap().tls;
        assert_eq!(tls, Some(("/tls".into(), "m1.serving.svc".into())));
        assert!(serve(&["--tls-dir", "/tls"]).unwrap_err().contains("--tls-name"));
    }

    #[test]
    fn admin_and_drain_have_defaults_and_values() {
        let usual = serve(&[]).unwrap();
        assert_eq!((usual.admin, usual.drain), (None, Duration::from_secs(5)));
        let pod = serve(&["--admin", "0.0.0.0:9090", "--drain-seconds", "0"]).unwrap();
        assert_eq!((pod.admin, pod.drain), (Some(([0, 0, 0, 0], 9090).into()), Duration::ZERO));
    }
}
