//! Speed of one worker that holds a whole checkpoint, beside what this machine could do:
//!
//!     speed DIR THREADS [TOKENS] [--json] [--only load,decode,prefill,limits,product,sampling] [--ids FILE]
//!
//! With TOKENS a stream's gaps while a prompt of so many tokens is read, and how fast that goes. `--ids` names a file with the ids to feed in
//! decode, separated by white space: for each batch first the prompts one after another, then the ids of each step.

mod beside;
mod cost;
mod limits;
mod steps;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use m1_arch::ExpertSet;
use m1_cpu::{CpuExecutor, CpuNetwork};
use m1_engine::{CacheSize, Inline};
use m1_executor_suite::Rig;
use m1_weights::Checkpoint;

use steps::Ids;

/// Sequences at once, and tokens of context over all of them.
const SLOTS: u32 = 32;
const CONTEXT: u64 = 16_384;

/// What is measured unless `--only` says.
const ALL: &str = "load,decode,prefill";

/// Prints figures as they come, for people or as JSON lines.
pub struct Report {
    json: bool,
}

impl Report {
    /// Figures of one measurement. Names are plain words.
    pub fn say(&self, what: &str, figures: &[(&str, f64)]) {
        if self.json {
            let fields: String = figures.iter().map(|(name, value)| format!(", \"{name}\": {value}")).collect();
            println!("{{\"what\": \"{what}\"{fields}}}");
        } else {
            let fields: Vec<String> =
                figures.iter().map(|(name, value)| format!("{} {value:.3}", name.replace('_', " "))).collect();
            println!("{what}: {}", fields.join(", "));
        }
    }
}

/// The command line.
struct Arguments {
    dir: PathBuf,
    threads: usize,
    beside: Option<usize>,
    only: String,
    ids: Ids,
    report: Report,
}

impl Arguments {
    fn read() -> Result<Self> {
        let (mut plain, mut report, mut only, mut ids) = (Vec::new(), Report { json: false }, ALL.to_owned(), Ids::made_up());
        let mut given = std::env::args().skip(1);
        while let Some(word) = given.next() {
            let mut value = || given.next().with_context(|| format!("{word}: a value is missing"));
            match word.as_str() {
                "--json" => report.json = true,
                "--only" => only = value()?,
                "--ids" => ids = Ids::of_file(Path::new(&value()?))?,
                flag if flag.starts_with('-') => bail!("{flag}: there is no such flag"),
                _ => plain.push(word),
            }
        }
        let [dir, threads, beside @ ..] = plain.as_slice() else {
            bail!("usage: speed DIR THREADS [TOKENS] [--json] [--only WHAT] [--ids FILE]")
        };
        Ok(Self {
            dir: dir.into(),
            threads: threads.parse().context("THREADS is no number")?,
            beside: beside.first().map(|tokens| tokens.parse().context("TOKENS is no number")).transpose()?,
            only,
            ids,
            report,
        })
    }

    fn wants(&self, what: &str) -> bool {
        self.only.split(',').any(|word| word == what)
    }
}

fn main() -> Result<()> {
    let mut arguments = Arguments::read()?;
    if arguments.wants("limits") {
        limits::machine(arguments.threads, &arguments.report)?;
    }
    if arguments.wants("sampling") {
        limits::sampling(&arguments.report)?;
    }
    if arguments.wants("product") {
        limits::product(&Checkpoint::open(&arguments.dir)?, arguments.threads, &arguments.report)?;
    }
    match ["load", "decode", "prefill"].iter().any(|what| arguments.wants(what)) {
        true => network(&mut arguments),
        false => Ok(()),
    }
}

/// Loads the checkpoint and has it work.
fn network(arguments: &mut Arguments) -> Result<()> {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(&arguments.dir)?;
    let arch = checkpoint.architecture();
    let all = ExpertSet::full(arch.layers.len(), arch.experts);
    let size = CacheSize::for_tokens(SLOTS, CONTEXT + arguments.beside.unwrap_or(0) as u64);
    let mut bytes = 0;
    let network = CpuNetwork::load(&checkpoint, &all, size, arguments.threads, &mut |read| bytes = read)?;
    let seconds = start.elapsed().as_secs_f64();
    let memory = [("rss_anon_bytes", anonymous_memory()?), ("cache_bytes", cost::caches(arch, size))];
    arguments.report.say("load", &[("seconds", seconds), ("bytes", bytes as f64), memory[0], memory[1]]);
    let mut executor = Rig::new(Inline::new(network), arch);
    if let Some(tokens) = arguments.beside {
        return beside::stream_beside(&mut executor, tokens);
    }
    work(&mut executor, &checkpoint, arguments)?;
    let memory = [("rss_anon_bytes", anonymous_memory()?), memory[1]];
    arguments.report.say("memory at the end", &memory);
    Ok(())
}

fn work(executor: &mut Rig<CpuExecutor>, checkpoint: &Checkpoint, arguments: &mut Arguments) -> Result<()> {
    if arguments.wants("decode") {
        for sequences in [1, 8, 32] {
            let decoded = steps::decode(executor, sequences, &mut arguments.ids)?;
            let (experts, layers) = (decoded.experts / steps::STEPS as f64, executor.arch.layers.len() as f64);
            let bytes = cost::step_bytes(checkpoint, sequences, experts)?;
            let rate = (steps::STEPS * sequences) as f64 / decoded.seconds;
            let per_layer = ("experts_per_layer", experts / layers);
            arguments
                .report
                .say(&format!("decode {sequences}"), &[("tokens_per_second", rate), ("bytes_per_step", bytes), per_layer]);
        }
    }
    if arguments.wants("prefill") {
        for tokens in [512, 4096] {
            let rate = tokens as f64 / steps::prefill(executor, tokens)?.min(steps::prefill(executor, tokens)?);
            let flop = cost::prompt_flop(&executor.arch, tokens as f64) / tokens as f64;
            arguments.report.say(&format!("prefill {tokens}"), &[("tokens_per_second", rate), ("flop_per_token", flop)]);
        }
    }
    Ok(())
}

/// Bytes that the process itself has allocated and touched; mapped files are not in it.
fn anonymous_memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("RssAnon is no number")?;
    Ok(kib * 1024.0)
}
