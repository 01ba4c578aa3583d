//! The command line of m1ctl. The only place that reads arguments; checks ranges, so that commands need not.

mod cluster;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use cluster::{ClusterArgs, deployment_name};

use crate::error::Failure;
use crate::units;

/// Runs, plans and measures MiniMax-M1 deployments.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to stdout, everything else to stderr.
#[derive(Debug, Parser)]
#[command(name = "m1ctl", version, about, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which cluster: people of kubectl write it before the subcommand too.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

impl Cli {
    /// The command, with what was said of the cluster before its name.
    ///
    /// # Errors
    /// The command talks to no cluster.
    pub fn into_command(self) -> Result<Command, Failure> {
        let Self { mut command, cluster: before } = self;
        match command.cluster() {
            Some(cluster) => *cluster = std::mem::take(cluster).or(before),
            None => {
                if let Some(flag) = before.given() {
                    return Err(Failure::usage(flag, "given before a command that talks to no cluster"));
                }
            }
        }
        Ok(command)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a MiniMaxM1Deployment as processes on this machine.
    Up(UpArgs),
    /// Show what a MiniMaxM1Deployment becomes: pods, experts, memory, speed. Starts nothing.
    Plan(PlanArgs),
    /// Continue one prompt, without a server.
    Generate(GenerateArgs),
    /// Compute raw logits of token lists, for comparisons with other implementations.
    Forward(ForwardArgs),
    /// Put load on an OpenAI endpoint and report its latencies.
    Bench(BenchArgs),
    /// Say why a deployment in a cluster is not ready, in words, with the next step.
    Explain(ExplainArgs),
    /// Replace the groups of a deployment in a cluster, as its rollout allows. Fails where it allows nothing.
    Restart(NamedArgs),
    /// Give groups that used up their restart budget another one.
    Resume(NamedArgs),
    /// Make a new certificate for the members of a deployment with tls.mode Managed. Restarts nothing.
    RenewCertificates(RenewArgs),
    /// Print the CRDs, or apply them to a cluster.
    Crd(CrdArgs),
    /// Print a script that completes commands in a shell.
    ///
    /// For `kubectl m1`, put m1ctl into PATH under the name kubectl_complete-m1 as well.
    Completions(CompletionsArgs),
    /// Write manual pages into a folder.
    Man(ManArgs),
    /// Succeed if an HTTP GET answers 200; for images without a shell.
    #[command(hide = true)]
    Probe(ProbeArgs),
}

impl Command {
    /// Its flags of the cluster, where it talks to one.
    pub(crate) fn cluster(&mut self) -> Option<&mut ClusterArgs> {
        match self {
            Self::Plan(args) => Some(&mut args.cluster),
            Self::Explain(args) => Some(&mut args.cluster),
            Self::Restart(args) | Self::Resume(args) => Some(&mut args.cluster),
            Self::RenewCertificates(args) => Some(&mut args.named.cluster),
            Self::Crd(args) => Some(&mut args.cluster),
            Self::Up(_) | Self::Generate(_) | Self::Forward(_) | Self::Bench(_) => None,
            Self::Completions(_) | Self::Man(_) | Self::Probe(_) => None,
        }
    }
}

const EXPLAIN_HELP: &str = "\
Exit code 0 when the deployment is ready, 1 when it is not.

Examples:
  m1ctl explain m1
  kubectl m1 explain m1 -n models
  kubectl m1 explain m1d/m1 -o json";

/// Arguments of `m1ctl explain`.
#[derive(Debug, Args)]
#[command(after_long_help = EXPLAIN_HELP)]
pub struct ExplainArgs {
    /// Name of the MiniMaxM1Deployment; m1d/NAME is as good.
    #[arg(value_parser = deployment_name)]
    pub name: String,
    /// Form of the output.
    #[arg(short = 'o', long, default_value = "text", value_name = "FORM")]
    pub output: OutputForm,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// A deployment in a cluster.
#[derive(Debug, Args)]
pub struct NamedArgs {
    /// Name of the MiniMaxM1Deployment; m1d/NAME is as good.
    #[arg(value_parser = deployment_name)]
    pub name: String,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `m1ctl crd`.
#[derive(Debug, Args)]
pub struct CrdArgs {
    /// What to do with them.
    #[arg(value_name = "print|apply")]
    pub what: CrdDeed,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// What to do with the CRDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CrdDeed {
    /// YAML on stdout.
    Print,
    /// Server-side apply, then wait until the API server serves them.
    Apply,
}

/// Arguments of `m1ctl completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// Arguments of `m1ctl renew-certificates`.
#[derive(Debug, Args)]
pub struct RenewArgs {
    /// Which deployment.
    #[command(flatten)]
    pub named: NamedArgs,
    /// Exchange the authority that signs too: its Secret is deleted, and the operator makes another.
    #[arg(long)]
    pub authority: bool,
}

/// Arguments of `m1ctl man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder.
    pub folder: PathBuf,
}

/// Arguments of `m1ctl probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The address, http only.
    pub url: String,
    /// Try again for so many seconds until the answer is 200.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub wait: u64,
}

const UP_HELP: &str = "\
The same validation and the same plan as in a cluster; each planned pod is an m1-worker process. m1-worker and m1-router \
are looked for beside m1ctl, then in PATH. When the group serves, a line `ready http://HOST:PORT` is printed on stdout. \
A worker that dies is started again at the same address, within spec.worker.restartBudget. Ctrl-C drains and stops \
everything; a second Ctrl-C kills.

Examples:
  m1ctl up -f m1.yaml
  m1ctl up -f m1.yaml --listen 127.0.0.1:0 --state-dir /tmp/m1";

/// Arguments of `m1ctl up`.
#[derive(Debug, Args)]
#[command(after_long_help = UP_HELP)]
pub struct UpArgs {
    /// File with the MiniMaxM1Deployment, YAML or JSON. A relative hostPath starts at this file's folder.
    #[arg(short = 'f', long = "file", value_name = "CR")]
    pub file: PathBuf,
    /// Where the router listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "HOST:PORT", value_parser = address)]
    pub listen: SocketAddr,
    /// Folder for group.json, which says what runs while it runs: addresses, process ids, placement epoch.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

const PLAN_HELP: &str = "\
The model's shape is read from the source's config.json where the source is a hostPath that this machine has, else from \
spec.model.config, else it is MiniMax-M1's. Milliseconds per token follow from the link between pods; m1ctl bench measures \
what they are.

Examples:
  m1ctl plan -f m1.yaml
  m1ctl plan -f m1.yaml --gpu-memory 80GB --link-rtt 300us --link-bandwidth 25Gbit
  m1ctl plan -f m1.yaml -o json
  m1ctl plan -f m1.yaml --diff -n models";

/// Arguments of `m1ctl plan`.
#[derive(Debug, Args)]
#[command(after_long_help = PLAN_HELP)]
pub struct PlanArgs {
    /// File with the MiniMaxM1Deployment, YAML or JSON. A relative hostPath starts at this file's folder.
    #[arg(short = 'f', long = "file", value_name = "CR")]
    pub file: PathBuf,
    /// Form of the output.
    #[arg(short = 'o', long, default_value = "text", value_name = "FORM")]
    pub output: OutputForm,
    /// Round trip of a 768 KB exchange between two pods.
    #[arg(long, default_value = "300us", value_name = "TIME", value_parser = units::duration)]
    pub link_rtt: Duration,
    /// Line rate between two pods.
    #[arg(long, default_value = "25Gbit", value_name = "RATE", value_parser = units::bits_per_second)]
    pub link_bandwidth: f64,
    /// Memory of one GPU, where spec.worker.memoryPerGpu does not say and no node label is at hand.
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub gpu_memory: Option<u64>,
    /// Compare with the deployment of that name in a cluster: what the edit would restart, for how long, with how many more GPUs.
    #[arg(long)]
    pub diff: bool,
    /// With --diff: bytes per second that a pod reads of its weights.
    #[arg(long, default_value = "1GB", value_name = "SIZE", value_parser = units::bytes)]
    pub read_rate: u64,
    /// Which cluster, for --diff.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// For people.
    Text,
    /// For programs.
    Json,
}

const GENERATE_HELP: &str = "\
Text comes on stdout as it is made, a summary with tokens per second on stderr.

Examples:
  m1ctl generate --model demo/m1-demo --temperature 0 \"What does spec.replicas of a Deployment do?\"
  m1ctl generate --model demo/m1-demo --expert 2 --seed 7 \"What is a Pod?\"
  m1ctl generate --model demo/m1-demo --raw --max-tokens 20 \"apiVersion: apps/v1\"";

/// Arguments of `m1ctl generate`.
#[derive(Debug, Args)]
#[command(after_long_help = GENERATE_HELP)]
pub struct GenerateArgs {
    /// Folder of the checkpoint, with its tokenizer.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Worker processes that the experts are spread over.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub expert: u16,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_240_000))]
    pub max_tokens: u32,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 1.0, value_name = "T", value_parser = temperature)]
    pub temperature: f32,
    /// Share of the probability that is sampled from, likeliest tokens first.
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = top_p)]
    pub top_p: f32,
    /// Of the sampling; by default another one each time, told in the summary.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Give the prompt to the model as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// Show the workers' logs and their loading on stderr.
    #[arg(short, long)]
    pub verbose: bool,
    /// What to continue.
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
}

const FORWARD_HELP: &str = "\
IN.json is {\"name\": [token ids], ..}. OUT.safetensors holds NAME.logits [n, vocabulary] for every position and, with \
--decode N, NAME.decode_tokens [N] (i64; token 0 is the argmax after the prompt) and NAME.decode_logits [N, vocabulary] \
(row k: after feeding token k). Logits are raw fp32, nothing is masked, and they do not depend on --chunk. No tokenizer is \
needed.

Examples:
  m1ctl forward --model demo/m1-demo --tokens in.json --output out.safetensors
  m1ctl forward --model demo/m1-demo --tokens in.json --output out.safetensors --expert 2 --chunk 64 --decode 16";

/// Arguments of `m1ctl forward`.
#[derive(Debug, Args)]
#[command(after_long_help = FORWARD_HELP)]
pub struct ForwardArgs {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The token lists.
    #[arg(long, value_name = "IN.json")]
    pub tokens: PathBuf,
    /// Where the logits go; replaced when they are whole.
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Worker processes that the experts are spread over.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub expert: u16,
    /// Prompt tokens in one step.
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub chunk: u32,
    /// Tokens that are decoded greedily after each prompt.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_240_000))]
    pub decode: u32,
    /// Show the workers' logs and their loading on stderr.
    #[arg(short, long)]
    pub verbose: bool,
}

const BENCH_HELP: &str = "\
Streams /v1/completions. TTFT: time to the first text. TPOT: time per token after the first. ITL: gap between two pieces of \
text. E2E: whole request. With --rate all of them count from the time at which a request should have been sent, also where it \
was sent later because --concurrency were in flight (LATE): a server that stands still is charged for everybody who would have \
come meanwhile. Tokens are counted as the server reports them in usage; an answer that ends early counts as it is.

Examples:
  m1ctl bench --url http://127.0.0.1:8000
  m1ctl bench --url http://127.0.0.1:8000 --concurrency 1,8,32 --input-tokens 512 --output-tokens 128 -o json
  m1ctl bench --url http://127.0.0.1:8000 --rate 4 --duration 60s --concurrency 64";

/// Arguments of `m1ctl bench`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = BENCH_HELP)]
pub struct BenchArgs {
    /// Address of the endpoint, http only; /v1 is added.
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// Model to ask for; by default the first that /v1/models names.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Requests in flight at most; several values are measured one after the other.
    #[arg(long, default_value = "1", value_delimiter = ',', value_name = "N,..", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: Vec<u32>,
    /// Requests of each measurement; by default 16 for each in flight.
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: Option<u32>,
    /// Start requests for this long instead of a number of them.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub duration: Option<Duration>,
    /// Length of a prompt in tokens, roughly; the report has the true mean.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_240_000))]
    pub input_tokens: u32,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_240_000))]
    pub output_tokens: u32,
    /// Requests that arrive per second, at random times that no answer moves (a Poisson process); by default the next one starts when one ends.
    ///
    /// With --duration all that are due in that time are sent and measured, however late. Give enough --concurrency.
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,
    /// Of prompts and arrival times.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
    /// Form of the output.
    #[arg(short = 'o', long, default_value = "text", value_name = "FORM")]
    pub output: OutputForm,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| format!("{error}; allowed: HOST:PORT"))?.collect();
    // localhost names both; IPv4 is what clients try that were given no bracket.
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| "the host has no address".to_owned())
}

fn temperature(text: &str) -> Result<f32, String> {
    float(text, "0 to 100", |value| (0.0..=100.0).contains(&value))
}

fn top_p(text: &str) -> Result<f32, String> {
    float(text, "above 0, up to 1", |value| value > 0.0 && value <= 1.0)
}

fn rate(text: &str) -> Result<f64, String> {
    float(text, "above 0, up to 100000", |value| value > 0.0 && value <= 1e5).map(f64::from)
}

fn float(text: &str, allowed: &str, fits: impl Fn(f32) -> bool) -> Result<f32, String> {
    text.parse::<f32>().ok().filter(|&value| fits(value)).ok_or_else(|| format!("allowed: {allowed}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_cluster_may_be_named_before_the_command() {
        let command = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().into_command();
        let explained = |line: &str| match command(line).unwrap() {
            Command::Explain(args) => (args.cluster.namespace, args.cluster.context),
            _ => panic!(),
        };
        let models = Some("models".to_owned());
        assert_eq!(explained("m1ctl -n models explain m1"), (models.clone(), None));
        assert_eq!(explained("m1ctl explain m1 -n models"), (models.clone(), None));
        // The nearer one counts.
        assert_eq!(explained("m1ctl -n other --context c explain m1 -n models"), (models, Some("c".to_owned())));
        let failure = command("m1ctl -n models man out").unwrap_err();
        assert_eq!((failure.code(), failure.to_string().contains("--namespace")), (2, true), "{failure}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in ["m1ctl up", "m1ctl nothing", "m1ctl bench --url u --concurrency 0", "m1ctl generate --model m --top-p 0 x"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn the_listen_address_has_a_default_and_may_be_a_name() {
        let Command::Up(args) = parse("m1ctl up -f cr.yaml").unwrap() else { panic!() };
        assert_eq!(args.listen.to_string(), "127.0.0.1:8000");
        let Command::Up(args) = parse("m1ctl up -f cr.yaml --listen localhost:0").unwrap() else { panic!() };
        assert_eq!(args.listen.to_string(), "127.0.0.1:0");
        assert!(parse("m1ctl up -f cr.yaml --listen 8000").is_err());
    }

    #[test]
    fn levels_of_concurrency_are_a_list() {
        let Command::Bench(args) = parse("m1ctl bench --url http://h --concurrency 1,8").unwrap() else { panic!() };
        assert_eq!(args.concurrency, [1, 8]);
        assert!(parse("m1ctl bench --url http://h --requests 1 --duration 1s").is_err());
    }
}
