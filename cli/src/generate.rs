//! `m1ctl generate`: one prompt, one answer, no server.

use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use m1_proto::worker::generate_event::Event;
use m1_proto::worker::{FinishReason, Finished, GenerateRequest, Sampling};
use m1_text::{ChatTemplate, StopStrings, TextStream, Tokenizer};

use crate::args::GenerateArgs;
use crate::error::Failure;
use crate::local::{Client, EXPERT_WAIT, Limits, LocalError, LocalPlan, SHORT_GRACE, chain, placement, with_workers};
use crate::output::Console;
use crate::progress::Loading;

/// Prompt tokens in one step; the worker's own default.
const PREFILL_CHUNK: u32 = 512;

/// Runs the command.
///
/// # Errors
/// No tokenizer, a group that does not serve, or an answer that ends in an error.
pub async fn run(args: &GenerateArgs, console: &Console) -> Result<(), Failure> {
    let checkpoint = crate::model::open("--model", &args.model)?;
    let (layers, experts, vocab) = crate::model::dimensions(&checkpoint);
    let holds = placement::linear(layers, experts, args.expert.into()).map_err(|error| Failure::usage("--expert", error))?;
    let tokenizer = Tokenizer::open(checkpoint.dir()).map_err(|error| Failure::new("tokenizer", chain(&error)))?;
    let ids = prompt_ids(args, checkpoint.dir(), &tokenizer)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Failure::new("tokenizer", format_args!("id {id} given, allowed: 0 to {}", vocab - 1)));
    }
    let plan =
        LocalPlan::new(&checkpoint, "generate", vec![holds], limits(ids.len(), args.max_tokens)?).map_err(LocalError::from)?;
    let shown = args.verbose.then(|| console.clone());
    let loading = Loading::new(Some(console).filter(|_| args.verbose || console.is_terminal()), plan.names());
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
    let request = request(args, ids, seed, tokenizer.eos_ids());
    let text = TextStream::new(&tokenizer, StopStrings::default());
    let summary = with_workers(plan, shown, loading, async |clients| answer(clients, request, text).await).await?;
    console.block(summary.line(args, seed));
    Ok(())
}

fn prompt_ids(args: &GenerateArgs, folder: &std::path::Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::new("prompt", chain(error));
    let ids = if args.raw {
        tokenizer.encode(&args.prompt).map_err(|error| failed(&error))?
    } else {
        let template = ChatTemplate::open(folder, tokenizer).map_err(|error| Failure::new("chat template", chain(&error)))?;
        let prompt = template.render_user(&args.prompt).map_err(|error| failed(&error))?;
        tokenizer.encode_prompt(&prompt).map_err(|error| failed(&error))?
    };
    if ids.is_empty() {
        return Err(Failure::new("prompt", "it has no token, allowed: at least one"));
    }
    Ok(ids)
}

/// A window that prompt and answer just fit.
fn limits(prompt: usize, max_tokens: u32) -> Result<Limits, Failure> {
    let window = u32::try_from(prompt).ok().and_then(|prompt| prompt.checked_add(max_tokens));
    let window = window.ok_or_else(|| Failure::new("prompt", format_args!("{prompt} tokens are too many")))?;
    let (prefill_chunk, drain_seconds) = (PREFILL_CHUNK, SHORT_GRACE.as_secs() as u32);
    Ok(Limits { slots: 1, kv_tokens: window, max_context: window, prefill_chunk, expert_wait: EXPERT_WAIT, drain_seconds })
}

fn request(args: &GenerateArgs, prompt: Vec<u32>, seed: u64, eos: &[u32]) -> GenerateRequest {
    GenerateRequest {
        request_id: "generate".to_owned(),
        attempt: 1,
        prompt,
        max_tokens: args.max_tokens,
        sampling: Some(Sampling { temperature: args.temperature, top_p: args.top_p, seed }),
        stop_ids: eos.to_vec(),
        ..GenerateRequest::default()
    }
}

/// What is said of an answer when it is over.
#[derive(Debug, Clone, PartialEq)]
struct Summary {
    prompt: u32,
    output: u32,
    first: Duration,
    rest: Duration,
    reason: &'static str,
}

async fn answer(mut clients: Vec<Client>, request: GenerateRequest, mut text: TextStream) -> Result<Summary, Failure> {
    let failed = |why: String| Failure::new("generate", why);
    let Some(client) = clients.first_mut() else { return Err(failed("there is no worker".to_owned())) };
    let start = Instant::now();
    let mut first = None;
    let mut stream = client.generate(request).await.map_err(|status| failed(status.message().to_owned()))?.into_inner();
    while let Some(event) = stream.message().await.map_err(|status| failed(status.message().to_owned()))? {
        match event.event {
            Some(Event::Tokens(tokens)) => {
                first.get_or_insert_with(|| start.elapsed());
                let piece: String = tokens.ids.iter().map(|&id| text.push(id)).collect();
                write(&piece).map_err(failed)?;
            }
            Some(Event::Finished(finished)) => {
                write(&(text.finish() + "\n")).map_err(failed)?;
                return summary(&finished, first.unwrap_or_default(), start.elapsed()).map_err(failed);
            }
            Some(Event::RawLogits(_)) | None => {}
        }
    }
    Err(failed("the answer broke off".to_owned()))
}

/// Writes at once; a reader that has gone away has read enough.
fn write(text: &str) -> Result<(), String> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot write: {error}")),
        _ => Ok(()),
    }
}

fn summary(finished: &Finished, first: Duration, whole: Duration) -> Result<Summary, String> {
    let reason = match finished.reason() {
        FinishReason::FinishStop => "stop",
        FinishReason::FinishLength => "length",
        FinishReason::FinishError | FinishReason::FinishUnspecified => {
            return Err(format!("{}: {}", finished.error_reason, finished.error_message));
        }
    };
    let (prompt, output) = (finished.prompt_tokens, finished.output_tokens);
    Ok(Summary { prompt, output, first, rest: whole.saturating_sub(first), reason })
}

impl Summary {
    fn line(&self, args: &GenerateArgs, seed: u64) -> String {
        let prefill = rate(self.prompt, self.first);
        let decode = match self.output {
            0 | 1 => String::new(),
            // The first token comes out of the prefill.
            output => format!(", then {} tok/s", rate(output - 1, self.rest)),
        };
        let seed = if args.temperature > 0.0 { format!(", seed {seed}") } else { String::new() };
        format!(
            "{} tokens in, {} out ({}); first after {:.0} ms ({prefill} tok/s){decode}{seed}",
            self.prompt,
            self.output,
            self.reason,
            self.first.as_secs_f64() * 1e3
        )
    }
}

fn rate(tokens: u32, time: Duration) -> String {
    format!("{:.1}", f64::from(tokens) / time.as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(extra: &str) -> GenerateArgs {
        let line = format!("m1ctl generate --model m{extra} hello");
        match Cli::parse_from(line.split(' ')).command {
            Command::Generate(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn finished(reason: FinishReason) -> Finished {
        Finished { reason: reason.into(), prompt_tokens: 20, output_tokens: 11, ..Finished::default() }
    }

    #[test]
    fn the_request_is_what_the_arguments_say() {
        let request = request(&args(" --temperature 0 --max-tokens 5"), vec![1, 2], 7, &[9]);
        assert_eq!((request.max_tokens, request.stop_ids), (5, vec![9]));
        let sampling = request.sampling.unwrap();
        assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.0, 0.95, 7));
    }

    #[test]
    fn the_summary_tells_both_rates() {
        let summary =
            summary(&finished(FinishReason::FinishStop), Duration::from_millis(100), Duration::from_millis(1100)).unwrap();
        let line = summary.line(&args(" --temperature 0"), 7);
        assert_eq!(line, "20 tokens in, 11 out (stop); first after 100 ms (200.0 tok/s), then 10.0 tok/s");
        assert!(summary.line(&args(""), 7).ends_with(", seed 7"));
    }

    #[test]
    fn an_error_is_no_summary() {
        assert!(summary(&finished(FinishReason::FinishError), Duration::ZERO, Duration::ZERO).is_err());
    }

    #[test]
    fn prompt_and_answer_fit_the_window() {
        assert_eq!(limits(10, 5).unwrap().max_context, 15);
        assert!(limits(usize::MAX, 5).is_err());
    }
}
