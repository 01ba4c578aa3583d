//! The table: a column for each router, a row for each thing, the goal and whether it is met. Of several rounds the best counts, for everybody.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

/// The router that has goals; the others are what it is compared with.
const OURS: &str = "m1-router";
/// The HTTP stand-in with nothing before it.
const DIRECT: &str = "direct";
/// The gRPC stand-in with nothing before it.
const DIRECT_GRPC: &str = "direct, gRPC";
/// Routers that ask an engine over gRPC; the others ask over HTTP.
const GRPC: [&str; 2] = [OURS, "smg"];
/// Routers that know what a language model is.
const LLM: [&str; 2] = ["smg", "vllm-router"];
/// Shown beside them: smg when it must send tokens one by one, and a proxy that knows nothing of tokens.
const BESIDE: [&str; 2] = ["smg, every token", "nginx"];

/// All results of a run.
struct Results(Vec<Value>);

impl Results {
    /// The least, or the greatest, of a number over the rounds.
    fn best(&self, what: &str, name: &str, key: &str, greatest: bool) -> Option<f64> {
        let of = self.0.iter().filter(|record| record["what"] == what && record["name"] == name);
        of.filter_map(|record| record[key].as_f64()).reduce(|a, b| if greatest { a.max(b) } else { a.min(b) })
    }

    fn error(&self, what: &str, name: &str) -> Option<&str> {
        self.0.iter().find(|record| record["what"] == what && record["name"] == name)?["error"].as_str()
    }

    /// The better of the LLM routers.
    fn llm(&self, what: &str, key: &str, greatest: bool) -> Option<f64> {
        let all = LLM.iter().filter_map(|name| self.best(what, name, key, greatest));
        all.reduce(|a, b| if greatest { a.max(b) } else { a.min(b) })
    }

    /// Added to what the stand-in behind it takes.
    fn added(&self, name: &str, key: &str) -> Option<f64> {
        let direct = if GRPC.contains(&name) { DIRECT_GRPC } else { DIRECT };
        Some((self.best("first", name, key, false)? - self.best("first", direct, key, false)?).max(0.0))
    }
}

struct Row {
    what: String,
    cells: Vec<String>,
    goal: String,
    met: Option<bool>,
}

/// The table of lines of JSON.
///
/// # Errors
/// A line is none.
pub fn table(lines: &str) -> Result<String> {
    let records = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>().context("read the results")?;
    let results = Results(records);
    let mut names = vec![OURS];
    names.extend(LLM.iter().chain(&BESIDE).chain([&DIRECT]).filter(|name| results.0.iter().any(|record| record["name"] == **name)));
    let mut rows = streams(&results, &names);
    rows.extend(busy(&results, &names));
    rows.extend(first(&results, &names));
    rows.extend(alone(&results));
    let mut out = String::new();
    let _ = writeln!(out, "| what | {} | goal | met |", names.join(" | "));
    let _ = writeln!(out, "|{}", "---|".repeat(names.len() + 3));
    for row in rows {
        let mut cells = row.cells;
        cells.resize(names.len(), String::new());
        let met = row.met.map_or("not measured", |met| if met { "yes" } else { "no" });
        let met = if row.goal.is_empty() { "" } else { met };
        let _ = writeln!(out, "| {} | {} | {} | {met} |", row.what, cells.join(" | "), row.goal);
    }
    for record in &results.0 {
        if let Some(error) = record["error"].as_str() {
            let _ = writeln!(
                out,
                "\n{}, {}: {error}",
                record["name"].as_str().unwrap_or_default(),
                record["what"].as_str().unwrap_or_default()
            );
        }
    }
    Ok(out)
}

/// One cell for each router; those that failed say so.
fn cells(results: &Results, names: &[&str], what: &str, value: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let cell =
        |name: &&str| value(name).unwrap_or_else(|| if results.error(what, name).is_some() { "failed".into() } else { "-".into() });
    names.iter().map(cell).collect()
}

fn streams(results: &Results, names: &[&str]) -> Vec<Row> {
    let best = |name: &str, key: &str, greatest: bool| results.best("streams", name, key, greatest);
    let row = |what: &str, goal: String, met: Option<bool>, value: &dyn Fn(&str) -> Option<String>| Row {
        what: what.to_owned(),
        cells: cells(results, names, "streams", value),
        goal,
        met,
    };
    let (own_cpu, llm_cpu) = (best(OURS, "cpu_ms", false), results.llm("streams", "cpu_ms", false));
    let (own_rate, llm_rate) = (best(OURS, "per_second", true), results.llm("streams", "per_second", true));
    let half = llm_cpu
        .map_or("half of the better LLM router".to_owned(), |cpu| format!("half of the better LLM router: {:.3} ms", cpu / 2.0));
    let twice =
        llm_rate.map_or("2x the better LLM router".to_owned(), |rate| format!("2x the better LLM router: {:.0}", rate * 2.0));
    let cpu = |name: &str| Some(format!("{:.3} ms", best(name, "cpu_ms", false)?));
    vec![
        row("router CPU per streamed answer of 16 tokens", "0.3 ms".to_owned(), own_cpu.map(|cpu| cpu <= 0.3), &cpu),
        row("the same", half, own_cpu.zip(llm_cpu).map(|(own, llm)| own <= llm / 2.0), &|_| Some(String::new())),
        row("streamed requests/s at 64 connections", twice, own_rate.zip(llm_rate).map(|(own, llm)| own >= llm * 2.0), &|name| {
            Some(format!("{:.0}", best(name, "per_second", true)?))
        }),
        row("whole answer at 64 connections, p50 / p99", String::new(), None, &|name| {
            Some(format!("{:.0} / {:.0} ms", best(name, "total_p50_ms", false)?, best(name, "total_p99_ms", false)?))
        }),
        row("events per answer", String::new(), None, &|name| Some(format!("{:.1}", best(name, "events_per_answer", true)?))),
    ]
}

/// Where the routers are the limit: at 64 connections the pace of tokens is.
fn busy(results: &Results, names: &[&str]) -> [Row; 2] {
    let cpu = |name: &str| results.best("busy", name, "cpu_ms", false);
    let rate = |name: &str| results.best("busy", name, "per_second", true);
    let connections = results.0.iter().find_map(|record| record["connections"].as_u64().filter(|_| record["what"] == "busy"));
    let connections = connections.unwrap_or(0);
    let llm = results.llm("busy", "per_second", true);
    let requests = Row {
        what: format!("streamed requests/s at {connections} connections"),
        cells: cells(results, names, "busy", |name| Some(format!("{:.0}", rate(name)?))),
        goal: llm.map_or("2x the better LLM router".to_owned(), |llm| format!("2x the better LLM router: {:.0}", llm * 2.0)),
        met: rate(OURS).zip(llm).map(|(own, llm)| own >= llm * 2.0),
    };
    let time = Row {
        what: format!("router CPU per streamed answer at {connections} connections"),
        cells: cells(results, names, "busy", |name| Some(format!("{:.3} ms", cpu(name)?))),
        goal: String::new(),
        met: None,
    };
    [requests, time]
}

fn first(results: &Results, names: &[&str]) -> Vec<Row> {
    let cell = |name: &str, key: &str| {
        if name != DIRECT {
            return Some(format!("{:.2} ms", results.added(name, key)?));
        }
        // What the stand-ins themselves take is what the others add to.
        let alone = |name| results.best("first", name, key, false);
        Some(format!("({:.2} ms; gRPC {:.2} ms)", alone(DIRECT)?, alone(DIRECT_GRPC)?))
    };
    let row = |label: &str, key: &str, goal: f64| Row {
        what: format!("added latency to the first token, 1 connection, {label}"),
        cells: cells(results, names, "first", |name| cell(name, key)),
        goal: format!("{goal} ms"),
        met: results.added(OURS, key).map(|added| added <= goal),
    };
    vec![row("p50", "first_p50_ms", 0.3), row("p99", "first_p99_ms", 1.0)]
}

/// What only this project's router promises.
fn alone(results: &Results) -> Vec<Row> {
    const KB: f64 = 1024.0;
    let best = |what: &str, key: &str| results.best(what, OURS, key, false);
    let row = |what: String, cell: Option<String>, goal: &str, met: Option<bool>| Row {
        what,
        cells: vec![cell.unwrap_or_else(|| "failed".to_owned())],
        goal: goal.to_owned(),
        met,
    };
    let streams = best("open", "streams").unwrap_or(10_000.0);
    let per_stream = best("open", "per_stream").map(|bytes| bytes / KB);
    let (refused, grown) = (best("refusal", "from_last_byte_ms"), best("refusal", "grown").map(|bytes| bytes / KB / KB));
    let (tokens, ratio) = (best("tokenize", "tokens").unwrap_or(1e6), best("tokenize", "ratio"));
    let times = best("tokenize", "router_ms").zip(best("tokenize", "crate_ms"));
    vec![
        row(
            format!("memory per open stream that has said one token, {streams:.0} of them"),
            per_stream.map(|kb| format!("{kb:.1} KB")),
            "20 KB",
            per_stream.map(|kb| kb <= 20.0),
        ),
        row(
            "8 MB text against a 4,096 window: last byte to refusal; first byte; memory".to_owned(),
            refused.zip(grown).map(|(ms, mb)| {
                format!("{ms:.0} ms; {:.0} ms; {mb:.0} MB", best("refusal", "from_first_byte_ms").unwrap_or(f64::NAN))
            }),
            "100 ms, 64 MB",
            refused.zip(grown).map(|(ms, mb)| ms <= 100.0 && mb <= 64.0),
        ),
        row(
            format!("last body byte to ids, {tokens:.0} tokens; the tokenizers crate; ratio"),
            ratio.zip(times).map(|(ratio, (ours, alone))| format!("{ours:.0} ms; {alone:.0} ms; {ratio:.2}")),
            "1.1x of the crate",
            ratio.map(|ratio| ratio <= 1.1),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"what":"streams","name":"m1-router","cpu_ms":0.25,"per_second":700.0,"total_p50_ms":80.0,"total_p99_ms":90.0,"events_per_answer":19.0}
{"what":"streams","name":"m1-router","cpu_ms":0.35,"per_second":500.0,"total_p50_ms":80.0,"total_p99_ms":99.0,"events_per_answer":19.0}
{"what":"streams","name":"smg","cpu_ms":0.9,"per_second":300.0,"total_p50_ms":80.0,"total_p99_ms":90.0,"events_per_answer":18.0}
{"what":"streams","name":"nginx","error":"connect to 127.0.0.1:1"}
{"what":"busy","name":"m1-router","connections":512,"per_second":900.0}
{"what":"busy","name":"smg","connections":512,"per_second":460.0}
{"what":"first","name":"direct","first_p50_ms":0.1,"first_p99_ms":0.2}
{"what":"first","name":"direct, gRPC","first_p50_ms":0.15,"first_p99_ms":0.3}
{"what":"first","name":"m1-router","first_p50_ms":0.3,"first_p99_ms":1.5}
"#;

    #[test]
    fn the_best_round_counts_and_goals_are_held() {
        let table = table(LINES).unwrap();
        let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(line("| what").contains("| m1-router | smg | nginx | direct | goal"));
        assert!(line("| router CPU").contains("| 0.250 ms | 0.900 ms | failed | - | 0.3 ms | yes |"));
        assert!(line("| the same").ends_with("0.450 ms | yes |"));
        assert!(line("| streamed requests").contains("| 700 | 300 | failed | - | 2x the better LLM router: 600 | yes |"));
        assert!(table.contains("requests/s at 512 connections | 900 | 460 | - | - | 2x the better LLM router: 920 | no |"));
        assert!(table.contains("p50 | 0.15 ms | - | - | (0.10 ms; gRPC 0.15 ms) | 0.3 ms | yes |"));
        assert!(table.contains("p99 | 1.20 ms | - | - | (0.20 ms; gRPC 0.30 ms) | 1 ms | no |"));
        assert!(line("| memory per open").contains("| failed |") && line("| memory per open").ends_with("| not measured |"));
        assert!(table.ends_with("nginx, streams: connect to 127.0.0.1:1\n"));
    }
}
