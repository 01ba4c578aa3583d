//! The measurements. Each gives one JSON object; the table is made of them afterwards.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::{self, PATIENCE, Target, Timing};
use crate::direct::Direct;
use crate::{process, text};

/// Runs before anything counts: connections, caches, branch predictors.
const WARM: Duration = Duration::from_secs(1);
/// Bytes read at once.
const BUFFER: usize = 16 << 10;

/// A quantile of durations, in milliseconds.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
}

/// Closed loop: every connection asks again as soon as it has its answer.
///
/// # Errors
/// An answer is wrong, or the process is gone.
pub async fn streams(target: &Target, connections: usize, seconds: u64, tokens: u32, pid: Option<u32>) -> Result<Value> {
    let request: Rc<[u8]> = target.chat(tokens).into();
    let from = Instant::now() + WARM;
    let until = from + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (target, request) = (target.clone(), Rc::clone(&request));
        tasks.spawn_local(async move {
            let (mut connection, mut buffer, mut timings) =
                (target.connect().await?, vec![0; BUFFER], Vec::<(Instant, Timing)>::new());
            while Instant::now() < until {
                let timing = client::stream(&mut connection, &request, &mut buffer).await?;
                timings.push((Instant::now(), timing));
            }
            anyhow::Ok(timings)
        });
    }
    sleep_until(from).await;
    let before = pid.map(process::cpu).transpose()?;
    let own = process::cpu(std::process::id())?;
    sleep_until(until).await;
    let (ended, after) = (Instant::now(), pid.map(process::cpu).transpose()?);
    let own = process::cpu(std::process::id())? - own;
    let (mut first, mut total, mut events) = (Vec::new(), Vec::new(), 0);
    while let Some(done) = timeout(PATIENCE, tasks.join_next()).await.context("answers do not end")? {
        for (at, timing) in done?? {
            if at > from && at <= ended {
                first.push(timing.first);
                total.push(timing.total);
                events += u64::from(timing.events);
            }
        }
    }
    first.sort_unstable();
    total.sort_unstable();
    let answers = first.len();
    if answers == 0 {
        bail!("not one answer in {seconds} s");
    }
    let per_answer = |time: Duration| time.as_secs_f64() * 1e3 / answers as f64;
    Ok(json!({
        "connections": connections, "tokens": tokens, "answers": answers, "events_per_answer": events as f64 / answers as f64,
        "per_second": answers as f64 / (ended - from).as_secs_f64(),
        "cpu_ms": before.zip(after).map(|(before, after)| per_answer(after - before)), "client_cpu_ms": per_answer(own),
        "first_p50_ms": quantile(&first, 0.5), "first_p99_ms": quantile(&first, 0.99),
        "total_p50_ms": quantile(&total, 0.5), "total_p99_ms": quantile(&total, 0.99),
    }))
}

/// One connection, one answer after the other: until its first text was there.
///
/// # Errors
/// An answer is wrong.
pub async fn first(target: &Target, count: usize, tokens: u32) -> Result<Value> {
    let (request, mut connection, mut buffer) = (target.chat(tokens), target.connect().await?, vec![0; BUFFER]);
    firsts(count, async || Ok(client::stream(&mut connection, &request, &mut buffer).await?.first)).await
}

/// The same of a worker that is asked over gRPC, without a router.
///
/// # Errors
/// A sequence does not end as it should.
pub async fn first_direct(address: &str, count: usize, tokens: u32) -> Result<Value> {
    let mut direct = timeout(PATIENCE, Direct::connect(address, tokens)).await.context("connecting takes too long")??;
    firsts(count, async || direct.first().await).await
}

/// So many times, after a tenth of that to warm up, each in time.
async fn firsts(count: usize, mut once: impl AsyncFnMut() -> Result<Duration>) -> Result<Value> {
    let mut first = Vec::with_capacity(count);
    for nth in 0..count + count / 10 {
        let took = timeout(PATIENCE, once()).await.context("no answer in time")??;
        if nth >= count / 10 {
            first.push(took);
        }
    }
    first.sort_unstable();
    Ok(json!({"answers": first.len(), "first_p50_ms": quantile(&first, 0.5), "first_p99_ms": quantile(&first, 0.99)}))
}

/// Opens streams that have said one token and stay open: what each costs in the router's memory.
///
/// # Errors
/// One does not open.
pub async fn open(target: &Target, count: usize, pid: u32) -> Result<Value> {
    /// Opened at once.
    const AT_ONCE: usize = 128;
    let files = m1_runtime::process::raise_open_files().unwrap_or(u64::MAX);
    if files < count as u64 + 100 {
        bail!("{count} streams need as many open files; {files} are allowed (ulimit -Hn)");
    }
    let request: Rc<[u8]> = target.chat(64).into();
    // What a router allocates once, whatever comes later, is no stream's.
    warm(target).await?;
    let (before, _) = process::resident(pid)?;
    let started = Instant::now();
    let mut streams: Vec<TcpStream> = Vec::with_capacity(count);
    let mut tasks = JoinSet::new();
    for nth in 0..count {
        let (target, request) = (target.clone(), Rc::clone(&request));
        tasks.spawn_local(async move {
            let (mut connection, mut buffer) = (target.connect().await?, vec![0; 4096]);
            client::open(&mut connection, &request, &mut buffer).await.with_context(|| format!("stream {nth}"))?;
            anyhow::Ok(connection)
        });
        while tasks.len() >= AT_ONCE || (nth + 1 == count && !tasks.is_empty()) {
            let opened = timeout(PATIENCE, tasks.join_next()).await.map_err(|_| anyhow!("stuck at {} streams", streams.len()))?;
            streams.extend(opened.transpose()?.transpose()?);
        }
    }
    let took = started.elapsed();
    // Buffers that were only needed to open are given back.
    sleep(Duration::from_secs(2)).await;
    let (after, _) = process::resident(pid)?;
    let grown = after.saturating_sub(before);
    Ok(
        json!({"streams": streams.len(), "seconds": took.as_secs_f64(), "before": before, "after": after, "per_stream": grown / count as u64}),
    )
}

async fn warm(target: &Target) -> Result<()> {
    let (mut connection, mut buffer) = (target.connect().await?, vec![0; 4096]);
    timeout(PATIENCE, client::open(&mut connection, &target.chat(64), &mut buffer)).await.context("no answer in time")?
}

/// A text that cannot fit: until it is refused, and the memory that takes.
///
/// # Errors
/// It is not refused with a 400.
pub async fn refusal(target: &Target, megabytes: usize, pid: u32) -> Result<Value> {
    let long = text::words(megabytes << 20);
    let body = json!({"model": target.model, "messages": [{"role": "user", "content": long}], "max_tokens": 1});
    let request = target.post("/v1/chat/completions", body.to_string().as_bytes());
    process::forget_peak(pid)?;
    let (before, _) = process::resident(pid)?;
    let answer = client::long(target, &request).await?;
    let (_, peak) = process::resident(pid)?;
    if answer.status != 400 {
        bail!("status {}, not 400", answer.status);
    }
    let (all, last) = (answer.from_first_byte.as_secs_f64() * 1e3, answer.from_last_byte.as_secs_f64() * 1e3);
    Ok(json!({"bytes": request.len(), "from_first_byte_ms": all, "from_last_byte_ms": last, "grown": peak.saturating_sub(before)}))
}

/// So many tokens of text to ids, by a router's `/tokenize` and by the `tokenizers` crate alone, in turns; the best of each.
///
/// # Errors
/// The router refuses, or there is no tokenizer.
pub async fn tokenize(target: &Target, file: &Path, tokens: usize, rounds: usize) -> Result<Value> {
    let tokenizer = tokenizers::Tokenizer::from_file(file).map_err(|error| anyhow!("read {}: {error}", file.display()))?;
    let ids = |text: &str| -> Result<(usize, Duration)> {
        let started = std::time::Instant::now();
        let encoding = tokenizer.encode_fast(text, false).map_err(|error| anyhow!("encode: {error}"))?;
        let ids = std::hint::black_box(encoding.get_ids().to_vec());
        Ok((ids.len(), started.elapsed()))
    };
    let sample = text::words(1 << 18);
    let long = text::words((tokens as f64 * sample.len() as f64 / ids(&sample)?.0 as f64) as usize);
    let request = target.post("/tokenize", json!({"prompt": long}).to_string().as_bytes());
    let (mut crate_best, mut router_best, mut count) = (Duration::MAX, Duration::MAX, 0);
    for _ in 0..rounds {
        let (found, took) = ids(&long)?;
        (count, crate_best) = (found, crate_best.min(took));
        let answer = client::long(target, &request).await?;
        if answer.status != 200 {
            bail!("/tokenize: status {}", answer.status);
        }
        router_best = router_best.min(answer.from_last_byte);
    }
    let (router, alone) = (router_best.as_secs_f64() * 1e3, crate_best.as_secs_f64() * 1e3);
    Ok(json!({"bytes": long.len(), "tokens": count, "router_ms": router, "crate_ms": alone, "ratio": router / alone}))
}
