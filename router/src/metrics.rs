//! The router's metrics: names, handles, and the text that `/metrics` gives. Labels come from enums, small integers and the served name. The `vllm:`
//! family repeats what dashboards, gateways and scalers made for vLLM read.

mod experts;
mod meter;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use m1_router_core::{Counts, CountsError, Geometry, Load};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use experts::{Group, Pod};
pub use meter::{Endpoint, Meter, Outcome};

use experts::ExpertSeries;

/// First-token and whole-request times: from a cached short prompt on a fast pod to a million-token prefill or an 80,000-token answer.
const REQUEST_SECONDS: [f64; 16] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 36000.0];
/// Time per token: from a small model on one pod to a step that parked.
const TOKEN_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0];

/// What the pool says of itself when metrics are read.
#[derive(Clone, Debug, Default)]
pub struct PoolView {
    /// Requests that wait.
    pub queued: usize,
    /// What the workers say of their load, whichever router it came by.
    pub load: Load,
    /// The groups, their pods and which are ready.
    pub groups: Vec<Group>,
}

/// The handles.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    model: String,
    requests: IntCounterVec,
    /// Attempts that another worker took over before the first token.
    pub retries: IntCounter,
    /// Answers whose routing counts did not add up.
    pub routing_rejected: IntCounter,
    log_lines_dropped: IntCounter,
    /// Open connections of clients.
    pub connections: IntGauge,
    /// Connections that were one too many.
    pub connections_refused: IntCounter,
    queue_depth: IntGauge,
    workers: IntGaugeVec,
    groups: IntGaugeVec,
    waiting: IntGauge,
    running: IntGauge,
    slots: IntGaugeVec,
    kv_usage: Gauge,
    ttft: Histogram,
    tpot: Histogram,
    e2e: Histogram,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    experts: OnceLock<Mutex<ExpertSeries>>,
}

/// Pairs of a layer and an expert that there are series for at most: 25 times MiniMax-M1's, some 60 MB. Also the most layers, and the most experts of a
/// layer.
const MOST_PAIRS: usize = 1 << 16;

/// Whether a worker may say that this is its model. What it says makes series, which take memory.
fn is_plausible(Geometry { layers, experts, top_k }: Geometry) -> bool {
    let pairs = layers.checked_mul(experts).is_some_and(|pairs| (1..=MOST_PAIRS).contains(&pairs));
    pairs && (1..=experts).contains(&top_k)
}

impl Metrics {
    /// Registers everything that does not need the model's geometry.
    ///
    /// # Errors
    /// A name or label that prometheus refuses.
    pub fn new(model: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let make = Maker { registry: &registry, model };
        let metrics = Self {
            requests: make.counters(
                "m1_router_requests_total",
                "Requests, by endpoint and how they ended.",
                &["endpoint", "outcome"],
            )?,
            retries: make.counter("m1_router_retries_total", "Attempts that another worker took over before the first token.")?,
            routing_rejected: make.counter("m1_router_routing_rejected_total", "Answers whose routing counts did not add up.")?,
            log_lines_dropped: make
                .counter("m1_router_log_lines_dropped_total", "Lines of the log that were dropped because nobody read them.")?,
            connections: make.gauge("m1_router_connections", "Open connections of clients.")?,
            connections_refused: make
                .counter("m1_router_connections_refused_total", "Connections closed because as many as may be were open.")?,
            queue_depth: make.gauge("m1_router_queue_depth", "Requests that wait for a worker.")?,
            workers: make.gauges(
                "m1_router_workers",
                "Workers: configured, reachable, ready, and out for failing requests.",
                &["state"],
            )?,
            groups: make.gauges("m1_router_groups", "Replica groups: open to new requests, or closed to them.", &["state"])?,
            waiting: make.gauge(
                "vllm:num_requests_waiting",
                "Requests that wait: for a worker here, and on the workers whichever router they came by.",
            )?,
            running: make.gauge(
                "vllm:num_requests_running",
                "Requests that run, as the workers say, whichever router they came by: every router says the same.",
            )?,
            slots: make.gauges(
                "m1_router_state_slots",
                "Lightning state slots of all workers, as they say: used, total.",
                &["state"],
            )?,
            kv_usage: make.ratio(
                "vllm:kv_cache_usage_perc",
                "KV blocks in use, of all workers, as they say, whichever router it is for; 1 is full.",
            )?,
            ttft: make.histogram("vllm:time_to_first_token_seconds", "From the request to its first token.", &REQUEST_SECONDS)?,
            tpot: make.histogram("vllm:time_per_output_token_seconds", "Time per token after the first.", &TOKEN_SECONDS)?,
            e2e: make.histogram(
                "vllm:e2e_request_latency_seconds",
                "From the request to its end, however it ended; refused requests are left out.",
                &REQUEST_SECONDS,
            )?,
            prompt_tokens: make.counter("vllm:prompt_tokens_total", "Prompt tokens of answers that ended well.")?,
            generation_tokens: make.counter("vllm:generation_tokens_total", "Tokens generated.")?,
            experts: OnceLock::new(),
            model: model.to_owned(),
            registry: registry.clone(),
        };
        for (endpoint, outcome) in Endpoint::ALL.iter().flat_map(|endpoint| Outcome::ALL.map(|outcome| (endpoint, outcome))) {
            metrics.requests.with_label_values(&[endpoint.as_str(), outcome.as_str()]);
        }
        Ok(metrics)
    }

    /// Learns the model's shape, once: all expert series are there from then on.
    pub fn learn(&self, geometry: Geometry) {
        if self.experts.get().is_some() {
            return;
        }
        if !is_plausible(geometry) {
            return tracing::warn!(%geometry, most = MOST_PAIRS, "a worker tells of a model that cannot be");
        }
        match ExpertSeries::new(&self.registry, &self.model, geometry) {
            // A second worker may have been as quick; its series were refused by the registry then.
            Ok(series) => drop(self.experts.set(Mutex::new(series))),
            Err(error) => tracing::warn!(%error, "no expert series"),
        }
    }

    /// Books one answer's routing.
    ///
    /// # Errors
    /// Counts that do not add up; nothing is booked then.
    pub fn book(&self, counts: &Counts) -> Result<(), CountsError> {
        self.learn(counts.geometry);
        match self.experts.get() {
            Some(series) => lock(series).book(counts),
            None => counts.check(),
        }
    }

    /// The exposition, with the pool as it is now.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn render(&self, pool: &PoolView) -> Result<Vec<u8>, prometheus::Error> {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.queue_depth.set(count(pool.queued));
        self.log_lines_dropped.inc_by(m1_runtime::logs::dropped().saturating_sub(self.log_lines_dropped.get()));
        let load = &pool.load;
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.waiting.set(count(pool.queued).saturating_add(whole(load.waiting)));
        self.running.set(whole(load.running));
        self.kv_usage.set(if load.kv_total == 0 { 0.0 } else { load.kv_used as f64 / load.kv_total as f64 });
        for (state, slots) in [("used", load.slots_used), ("total", load.slots_total)] {
            self.slots.with_label_values(&[state]).set(whole(slots));
        }
        let ready = pool.groups.iter().flat_map(|group| &group.pods).filter(|pod| pod.ready).count();
        let configured = pool.groups.iter().map(|group| group.pods.len()).sum();
        for (state, workers) in [("configured", configured), ("reachable", load.reachable), ("ready", ready), ("out", load.out)] {
            self.workers.with_label_values(&[state]).set(count(workers));
        }
        let open = pool.groups.iter().filter(|group| group.open).count();
        for (state, groups) in [("open", open), ("closed", pool.groups.len() - open)] {
            self.groups.with_label_values(&[state]).set(count(groups));
        }
        if let Some(series) = self.experts.get() {
            lock(series).refresh(&pool.groups);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes and registers; every series carries `model_name`.
struct Maker<'a> {
    registry: &'a Registry,
    model: &'a str,
}

impl Maker<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("model_name", self.model)
    }

    fn keep<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.keep(IntCounter::with_opts(self.opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.keep(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.keep(IntGauge::with_opts(self.opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.keep(IntGaugeVec::new(self.opts(name, help), labels)?)
    }

    fn ratio(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.keep(Gauge::with_opts(self.opts(name, help))?)
    }

    fn ratios(&self, name: &str, help: &str, labels: &[&str]) -> Result<prometheus::GaugeVec, prometheus::Error> {
        self.keep(prometheus::GaugeVec::new(self.opts(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts::new(name, help).const_label("model_name", self.model).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(opts)?)
    }
}
