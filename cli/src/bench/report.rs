//! What a measurement says: counts, throughput, and the distribution of every latency.

use std::time::Duration;

use serde_json::{Value, json};

use super::load::Load;
use super::stream::{RequestError, Sample};
use crate::output::{Align, Table};

/// Mean and quantiles of one latency, in milliseconds. All zero where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// Values measured.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
}

impl Spread {
    /// Of values in seconds.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.map(|seconds| seconds * 1e3).collect();
        if sorted.is_empty() {
            return Self::default();
        }
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| sorted[((share * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Self { count: sorted.len(), mean, p50: rank(0.5), p90: rank(0.9), p99: rank(0.99) }
    }

    fn to_json(self) -> Value {
        json!({"count": self.count, "mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99})
    }
}

/// One finished measurement.
#[derive(Debug)]
pub struct Report {
    load: Load,
    elapsed: f64,
    failed: usize,
    first_error: Option<String>,
    samples: Vec<Sample>,
}

impl Report {
    /// Of everything that came back within `elapsed`.
    pub fn new(load: Load, results: Vec<Result<Sample, RequestError>>, elapsed: Duration) -> Self {
        let mut report = Self { load, elapsed: elapsed.as_secs_f64().max(1e-9), failed: 0, first_error: None, samples: Vec::new() };
        for result in results {
            match result {
                Ok(sample) => report.samples.push(sample),
                Err(error) => {
                    report.failed += 1;
                    report.first_error.get_or_insert_with(|| error.to_string());
                }
            }
        }
        report
    }

    /// Requests that were answered whole.
    pub fn succeeded(&self) -> usize {
        self.samples.len()
    }

    /// Why the first failed request did.
    pub fn first_error(&self) -> &str {
        self.first_error.as_deref().unwrap_or("no request was sent")
    }

    /// (name, distribution) of every latency; at a rate also of how late requests were sent, which is in all others.
    fn spreads(&self) -> Vec<(&'static str, Spread)> {
        let ttft = self.samples.iter().filter_map(|sample| sample.pieces.first().copied());
        let gaps = self.samples.iter().flat_map(|sample| sample.pieces.windows(2).map(|pair| pair[1] - pair[0]));
        let late = self.load.rate.map(|_| ("late", Spread::of(self.samples.iter().map(|sample| sample.late))));
        let spreads = [
            ("ttft", Spread::of(ttft)),
            ("tpot", Spread::of(self.samples.iter().filter_map(tpot))),
            ("itl", Spread::of(gaps)),
            ("e2e", Spread::of(self.samples.iter().map(|sample| sample.whole))),
        ];
        late.into_iter().chain(spreads).collect()
    }

    fn tokens(&self, count: impl Fn(&Sample) -> u32) -> u64 {
        self.samples.iter().map(|sample| u64::from(count(sample))).sum()
    }

    fn output_rate(&self) -> f64 {
        self.tokens(|sample| sample.output_tokens) as f64 / self.elapsed
    }

    /// The report for programs; latencies in milliseconds.
    pub fn to_json(&self) -> Value {
        let (input, output) = (self.tokens(|sample| sample.input_tokens), self.tokens(|sample| sample.output_tokens));
        let mut value = json!({
            "concurrency": self.load.concurrency,
            "rate": self.load.rate,
            "seconds": self.elapsed,
            "requests": {"succeeded": self.succeeded(), "failed": self.failed, "per_second": self.succeeded() as f64 / self.elapsed},
            "input_tokens": {"total": input, "per_second": input as f64 / self.elapsed},
            "output_tokens": {"total": output, "per_second": self.output_rate()},
            "first_error": self.first_error,
        });
        for (name, spread) in self.spreads() {
            value[format!("{name}_ms")] = spread.to_json();
        }
        value
    }
}

/// Time per token after the first; none for a shorter answer.
fn tpot(sample: &Sample) -> Option<f64> {
    let (first, last) = (sample.pieces.first()?, sample.pieces.last()?);
    (sample.output_tokens > 1 && sample.pieces.len() > 1).then(|| (last - first) / f64::from(sample.output_tokens - 1))
}

/// All measurements as text: one line each of counts, then one line each of every latency.
pub fn table(reports: &[Report]) -> String {
    let right = |name| (name, Align::Right);
    let mut counts =
        Table::new(&["IN FLIGHT", "OK", "FAILED", "SECONDS", "REQ/S", "TOKENS IN", "TOKENS OUT", "OUT TOK/S"].map(right));
    let mut latencies =
        Table::new(&[right("IN FLIGHT"), ("LATENCY (ms)", Align::Left), right("MEAN"), right("P50"), right("P90"), right("P99")]);
    for report in reports {
        counts.row([
            report.load.concurrency.to_string(),
            report.succeeded().to_string(),
            report.failed.to_string(),
            format!("{:.1}", report.elapsed),
            format!("{:.2}", report.succeeded() as f64 / report.elapsed),
            mean(report.tokens(|sample| sample.input_tokens), report.succeeded()),
            mean(report.tokens(|sample| sample.output_tokens), report.succeeded()),
            format!("{:.1}", report.output_rate()),
        ]);
        for (name, spread) in report.spreads() {
            let values = [spread.mean, spread.p50, spread.p90, spread.p99].map(|value| format!("{value:.2}"));
            latencies.row([report.load.concurrency.to_string(), name.to_uppercase()].into_iter().chain(values));
        }
    }
    let errors: String = reports
        .iter()
        .filter_map(|report| report.first_error.as_ref().map(|error| format!("{} in flight: {error}\n", report.load.concurrency)))
        .collect();
    format!("{counts}\n{latencies}{errors}")
}

fn mean(total: u64, count: usize) -> String {
    format!("{:.1}", total as f64 / count.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::super::load::Stop;
    use super::*;

    fn load() -> Load {
        Load { concurrency: 2, rate: None, stop: Stop::Requests(2) }
    }

    fn sample(pieces: &[f64], output_tokens: u32) -> Sample {
        Sample { late: 0.05, pieces: pieces.to_vec(), whole: 1.0, input_tokens: 100, output_tokens }
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let spread = Spread::of((1..=100).map(|value| f64::from(value) / 1e3));
        assert_eq!((spread.p50.round(), spread.p90.round(), spread.p99.round()), (50.0, 90.0, 99.0));
        assert!((spread.mean - 50.5).abs() < 1e-9);
        assert_eq!(Spread::of([0.002].into_iter()).p99, 2.0);
        assert_eq!(Spread::of(std::iter::empty()), Spread::default());
    }

    #[test]
    fn time_per_token_counts_the_servers_tokens() {
        // Two pieces of text, five tokens: the server sent several at once.
        assert_eq!(tpot(&sample(&[0.2, 0.6], 5)), Some((0.6 - 0.2) / 4.0));
        assert_eq!(tpot(&sample(&[0.2], 1)), None);
        assert_eq!(tpot(&sample(&[], 3)), None);
    }

    #[test]
    fn the_report_has_rates_and_latencies() {
        let results = vec![Ok(sample(&[0.1, 0.2, 0.3], 3)), Ok(sample(&[0.3, 0.5], 2)), Err(RequestError::Short("usage"))];
        let report = Report::new(load(), results, Duration::from_secs(2));
        let value = report.to_json();
        assert_eq!(value["requests"]["failed"], 1);
        assert_eq!(value["output_tokens"], json!({"total": 5, "per_second": 2.5}));
        assert_eq!(value["itl_ms"]["count"], 3);
        let text = table(&[report]);
        let expected = "\
IN FLIGHT  OK  FAILED  SECONDS  REQ/S  TOKENS IN  TOKENS OUT  OUT TOK/S
        2   2       1      2.0   1.00      100.0         2.5        2.5

IN FLIGHT  LATENCY (ms)     MEAN      P50      P90      P99
        2  TTFT           200.00   100.00   300.00   300.00
        2  TPOT           150.00   100.00   200.00   200.00
        2  ITL            133.33   100.00   200.00   200.00
        2  E2E           1000.00  1000.00  1000.00  1000.00
2 in flight: the stream ended without usage
";
        assert_eq!(text, expected);
    }

    #[test]
    fn at_a_rate_it_is_said_how_late_requests_were_sent() {
        let load = Load { rate: Some(4.0), ..load() };
        let report = Report::new(load, vec![Ok(sample(&[0.1], 1))], Duration::from_secs(1));
        assert_eq!(report.to_json()["late_ms"]["p99"], 50.0);
        assert!(table(&[report]).contains("LATE"));
    }

    #[test]
    fn nothing_that_succeeded_says_why() {
        let report = Report::new(load(), vec![Err(RequestError::Stream("no slot".into()))], Duration::from_secs(1));
        assert_eq!((report.succeeded(), report.first_error()), (0, "error in the stream: no slot"));
    }
}
