//! `m1ctl bench`: load on an OpenAI endpoint, and what came of it.
//!
//! One warm-up request, not counted, tells how many tokens the server makes of a word; prompts are then cut to the wanted
//! length.

mod load;
mod prompts;
mod report;
mod stream;

use serde_json::Value;
use tokio::time::Instant;

use crate::args::{BenchArgs, OutputForm};
use crate::error::Failure;
use crate::http::Client;
use crate::output::Console;
use load::{Load, Stop};
use prompts::{Prompts, Random};
use report::Report;

/// Words of the warm-up prompt: enough for a mean.
const WARM_UP_WORDS: usize = 64;
/// Requests per one in flight, where neither a number nor a time is given.
const ROUNDS: u32 = 16;

/// Runs the command.
///
/// # Errors
/// The endpoint does not answer, or no request of a measurement succeeded.
pub async fn run(args: &BenchArgs, console: &Console) -> Result<(), Failure> {
    let measured = async {
        let signal = m1_runtime::shutdown::signal();
        tokio::select! {
            result = measure(args, console) => result,
            _ = signal => Err(Failure::new("bench", "interrupted")),
        }
    };
    let reports = measured.await?;
    match args.output {
        OutputForm::Text => print!("{}", report::table(&reports)),
        OutputForm::Json => println!("{:#}", Value::Array(reports.iter().map(Report::to_json).collect())),
    }
    match reports.iter().find(|report| report.succeeded() == 0) {
        Some(report) => Err(Failure::new("bench", report.first_error())),
        None => Ok(()),
    }
}

async fn measure(args: &BenchArgs, console: &Console) -> Result<Vec<Report>, Failure> {
    let base =
        base(&args.url).ok_or_else(|| Failure::usage("--url", format_args!("{:?} given, allowed: http://HOST:PORT", args.url)))?;
    let client = Client::default();
    let model = match &args.model {
        Some(name) => name.clone(),
        None => first_model(&client, &base).await?,
    };
    let target = stream::Target { client, url: format!("{base}/completions"), model, output_tokens: args.output_tokens };
    let mut random = Random::new(args.seed);
    let prompts = calibrate(&target, args.input_tokens, &mut random).await?;
    let mut reports = Vec::new();
    for &concurrency in &args.concurrency {
        let stop = match (args.duration, args.requests) {
            (Some(time), _) => Stop::After(time),
            (None, requests) => Stop::Requests(requests.unwrap_or(concurrency.saturating_mul(ROUNDS))),
        };
        let load = Load { concurrency, rate: args.rate, stop };
        console.say(format_args!("bench: {load}"));
        let (samples, elapsed) = load::run(&load, &mut random, |random, due| {
            let (target, prompt) = (target.clone(), prompts.next(random));
            async move { stream::request(&target, prompt, due).await }
        })
        .await;
        reports.push(Report::new(load, samples, elapsed));
    }
    Ok(reports)
}

/// The address up to and with `/v1`.
fn base(url: &str) -> Option<String> {
    let url = url.trim_end_matches('/');
    let host = url.strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.starts_with('/'))?;
    let host = host.strip_suffix("/v1").unwrap_or(host);
    Some(format!("http://{host}/v1"))
}

async fn first_model(client: &Client, base: &str) -> Result<String, Failure> {
    let url = format!("{base}/models");
    let (status, text) = client.get(&url).await.map_err(|error| Failure::new(&url, error))?;
    let models: Value = serde_json::from_str(&text).unwrap_or_default();
    match models.pointer("/data/0/id").and_then(Value::as_str) {
        Some(name) if status == 200 => Ok(name.to_owned()),
        _ => Err(Failure::new(&url, format_args!("status {status}, and no model is named; give --model"))),
    }
}

async fn calibrate(target: &stream::Target, tokens: u32, random: &mut Random) -> Result<Prompts, Failure> {
    let words = Prompts::of_words(WARM_UP_WORDS);
    let target = stream::Target { output_tokens: 1, ..target.clone() };
    let sample = stream::request(&target, words.next(random), Instant::now())
        .await
        .map_err(|error| Failure::new("bench: warm-up", error))?;
    Ok(Prompts::of_tokens(tokens, f64::from(sample.input_tokens) / WARM_UP_WORDS as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_may_end_with_or_without_v1() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(base(url).as_deref(), Some("http://h:1/v1"), "{url}");
        }
        assert_eq!(base("http://h/prefix").as_deref(), Some("http://h/prefix/v1"));
        for url in ["https://h", "h:1", "http://", "http:///v1"] {
            assert_eq!(base(url), None, "{url}");
        }
    }
}
