//! `m1ctl forward`: raw fp32 logits of every position of given token lists. Nothing is masked, no tokenizer is read.
//!
//! Rows are written as they come, so memory does not grow with the prompt.

mod archive;
mod prompts;

use m1_proto::worker::generate_event::Event;
use m1_proto::worker::{FinishReason, Finished, GenerateRequest, RawLogits, Sampling};

use crate::args::ForwardArgs;
use crate::error::Failure;
use crate::local::{Client, EXPERT_WAIT, Limits, LocalError, LocalPlan, SHORT_GRACE, placement, with_workers};
use crate::output::Console;
use crate::progress::Loading;
use archive::Archive;
use prompts::Prompt;

/// Sequences that run at once: one, so that rows can be written as they come.
const SLOTS: u32 = 1;

/// Runs the command.
///
/// # Errors
/// Bad input, a group that does not serve, or an output that cannot be written.
pub async fn run(args: &ForwardArgs, console: &Console) -> Result<(), Failure> {
    let checkpoint = crate::model::open("--model", &args.model)?;
    let (layers, experts, vocab) = crate::model::dimensions(&checkpoint);
    let holds = placement::linear(layers, experts, args.expert.into()).map_err(|error| Failure::usage("--expert", error))?;
    let prompts = read(args, vocab)?;
    let archive =
        Archive::create(&args.output, &prompts, args.decode as usize, vocab).map_err(|error| Failure::new("--output", error))?;
    let plan = LocalPlan::new(&checkpoint, "forward", vec![holds], limits(args, &prompts)?).map_err(LocalError::from)?;
    let shown = args.verbose.then(|| console.clone());
    let loading = Loading::new(shown.as_ref(), plan.names());
    with_workers(plan, shown, loading, async |mut clients| run_all(args, prompts, vocab, archive, &mut clients).await).await
}

fn read(args: &ForwardArgs, vocab: usize) -> Result<Vec<Prompt>, Failure> {
    let file = args.tokens.display();
    let text = std::fs::read_to_string(&args.tokens).map_err(|error| Failure::new(&file, error))?;
    prompts::parse(&text, vocab).map_err(|errors| Failure::lines(errors.iter().map(|error| format!("{file}: {error}")).collect()))
}

/// A window that the longest prompt and its decode tokens just fit.
fn limits(args: &ForwardArgs, prompts: &[Prompt]) -> Result<Limits, Failure> {
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let window = u32::try_from(longest)
        .ok()
        .and_then(|longest| longest.checked_add(args.decode)?.checked_add(1))
        .ok_or_else(|| Failure::new("--tokens", format_args!("a prompt of {longest} tokens is too long")))?;
    let window = window.max(2);
    let (prefill_chunk, drain_seconds) = (args.chunk, SHORT_GRACE.as_secs() as u32);
    Ok(Limits { slots: SLOTS, kv_tokens: window, max_context: window, prefill_chunk, expert_wait: EXPERT_WAIT, drain_seconds })
}

async fn run_all(
    args: &ForwardArgs,
    prompts: Vec<Prompt>,
    vocab: usize,
    mut archive: Archive,
    clients: &mut [Client],
) -> Result<(), Failure> {
    let pods = clients.len().max(1);
    for (at, prompt) in prompts.into_iter().enumerate() {
        let Some(client) = clients.get_mut(at % pods) else { break };
        let mut rows = Rows { next: 0, wanted: prompt.ids.len() + args.decode as usize, vocab };
        let name = prompt.name.clone();
        let failed = |why: String| Failure::new(format_args!("{name:?}"), why);
        let request = request(prompt, at, args);
        let mut stream = client.generate(request).await.map_err(|status| failed(status.message().to_owned()))?.into_inner();
        let mut ids = Vec::new();
        while let Some(event) = stream.message().await.map_err(|status| failed(status.message().to_owned()))? {
            match event.event {
                Some(Event::RawLogits(logits)) => {
                    rows.check(&logits).map_err(failed)?;
                    archive.rows(&logits.values).map_err(|error| Failure::new("--output", error))?;
                }
                Some(Event::Tokens(tokens)) => ids.extend(tokens.ids),
                Some(Event::Finished(finished)) => ended(&finished).map_err(failed)?,
                None => {}
            }
        }
        rows.complete().map_err(failed)?;
        let decoded = ids.get(..args.decode as usize);
        archive.tokens(decoded.ok_or_else(|| failed(format!("{} of {} tokens came", ids.len(), args.decode)))?);
    }
    archive.finish().map_err(|error| Failure::new("--output", error))
}

/// One token more than is decoded: the last one is not fed back.
fn request(prompt: Prompt, at: usize, args: &ForwardArgs) -> GenerateRequest {
    GenerateRequest {
        request_id: format!("forward-{at}"),
        attempt: 1,
        prompt: prompt.ids,
        max_tokens: args.decode + 1,
        sampling: Some(Sampling { temperature: 0.0, top_p: 1.0, seed: 0 }),
        prefill_chunk: args.chunk,
        raw_logits: true,
        ..GenerateRequest::default()
    }
}

fn ended(finished: &Finished) -> Result<(), String> {
    match finished.reason() {
        FinishReason::FinishError | FinishReason::FinishUnspecified => {
            Err(format!("{}: {}", finished.error_reason, finished.error_message))
        }
        FinishReason::FinishStop | FinishReason::FinishLength => Ok(()),
    }
}

/// Holds a worker to its promise: every row once, in order.
#[derive(Debug)]
struct Rows {
    next: usize,
    wanted: usize,
    vocab: usize,
}

impl Rows {
    fn check(&mut self, logits: &RawLogits) -> Result<(), String> {
        let rows = logits.rows as usize;
        if logits.position as usize != self.next || self.next + rows > self.wanted {
            return Err(format!(
                "the worker sent rows {} to {}, wanted were {} to {}",
                logits.position,
                logits.position as usize + rows,
                self.next,
                self.wanted
            ));
        }
        let (bytes, wanted) = (logits.values.len(), rows * self.vocab * 4);
        if bytes != wanted {
            return Err(format!("the worker sent {bytes} bytes for {rows} rows, wanted were {wanted}"));
        }
        self.next += rows;
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        match self.next == self.wanted {
            true => Ok(()),
            false => Err(format!("{} of {} rows came", self.next, self.wanted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Rows {
        Rows { next: 0, wanted: 3, vocab: 2 }
    }

    fn logits(position: u32, rows: u32, bytes: usize) -> RawLogits {
        RawLogits { position, rows, values: vec![0; bytes].into() }
    }

    #[test]
    fn rows_in_order_are_taken() {
        let mut rows = rows();
        assert_eq!(rows.check(&logits(0, 2, 16)), Ok(()));
        assert_eq!(rows.complete().unwrap_err(), "2 of 3 rows came");
        assert_eq!(rows.check(&logits(2, 1, 8)), Ok(()));
        assert_eq!(rows.complete(), Ok(()));
    }

    #[test]
    fn rows_that_are_missing_twice_or_short_are_refused() {
        assert!(rows().check(&logits(1, 1, 8)).unwrap_err().starts_with("the worker sent rows 1 to 2"));
        assert!(rows().check(&logits(0, 4, 32)).is_err());
        assert_eq!(rows().check(&logits(0, 1, 7)).unwrap_err(), "the worker sent 7 bytes for 1 rows, wanted were 8");
    }

    #[test]
    fn an_error_at_the_end_is_told() {
        let finished = Finished {
            reason: FinishReason::FinishError.into(),
            error_reason: "ExpertsUnavailable".into(),
            error_message: "30 s passed".into(),
            ..Finished::default()
        };
        assert_eq!(ended(&finished).unwrap_err(), "ExpertsUnavailable: 30 s passed");
    }
}
