//! What reading a request costs: `cargo run --release -p m1-router --example read -- FOLDER`, with a model's folder. A chat of 1 KB from body to ids, and
//! 8 MB of text against a window of 4,096 tokens, in time on the CPU.

use std::error::Error;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use m1_router::model::Model;
use m1_router::order::Limits;
use m1_router::requests::{Context, chat, completions};
use serde_json::json;

/// Times each thing is done; the median is shown.
const ROUNDS: usize = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("name the folder of a model")?;
    let model = Model::open(Path::new(&folder), "m".to_owned())?;
    let never = AtomicBool::new(false);
    let ctx = Context { model: &model, limits: Limits { window: 4096, output: None }, cancelled: &never, random: &|| 7 };
    let text: String = include_str!("../../ARCHITECTURE.md").chars().take(900).collect();
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": text}], "stream": true, "max_tokens": 16}).to_string();
    let tokens = chat::read(&ctx, chat.as_bytes(), String::new())?.order.prompt.len();
    let time = median(ROUNDS, wall, || chat::read(&ctx, chat.as_bytes(), String::new()).is_ok())?;
    println!("chat of {} bytes, {tokens} tokens: {:.1} us", chat.len(), time.as_secs_f64() * 1e6);
    let prompt = json!({"model": "m", "prompt": text}).to_string();
    let time = median(ROUNDS, wall, || completions::read(&ctx, prompt.as_bytes(), String::new()).is_ok())?;
    println!("of this without a template: {:.1} us", time.as_secs_f64() * 1e6);
    for unit in ["The Pod is a container. ", "x", "line\\n"] {
        let long = unit.repeat((8 << 20) / unit.len());
        let body = format!("{{\"model\": \"m\", \"messages\": [{{\"role\": \"user\", \"content\": \"{long}\"}}]}}");
        let time = median(5, on_cpu, || chat::read(&ctx, body.as_bytes(), String::new()).is_err())?;
        println!("8 MB of {unit:?} against 4,096 tokens: refused in {:.1} ms", time.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// A clock that never stops, for what is too short for the other.
fn wall() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// How long this thread has run: what others do on the machine does not count. The kernel counts in ticks of some milliseconds.
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0))
}

fn median(rounds: usize, clock: fn() -> Duration, work: impl Fn() -> bool) -> Result<Duration, Box<dyn Error>> {
    let mut times: Vec<Duration> = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = clock();
        if !work() {
            return Err("the request was not read as it should be".into());
        }
        times.push(clock() - start);
    }
    times.sort_unstable();
    Ok(times[rounds / 2])
}
