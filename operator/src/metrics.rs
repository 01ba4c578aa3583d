//! The operator's metrics. Labels are words of closed lists.

use std::task::{Context, Poll};
use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};
use tower::{Layer, Service};

/// Seconds of one reconcile.
pub const RECONCILE_DURATION: &str = "m1_operator_reconcile_duration_seconds";
/// Reconciles by outcome.
pub const RECONCILES: &str = "m1_operator_reconciles_total";
/// Reconciles that failed, by reason.
pub const RECONCILE_ERRORS: &str = "m1_operator_reconcile_errors_total";
/// What was done, as events tell it.
pub const WRITES: &str = "m1_operator_writes_total";
/// Calls to the API server by HTTP method, whatever came of them.
pub const API_REQUESTS: &str = "m1_operator_api_requests_total";
/// Deployments known.
pub const DEPLOYMENTS: &str = "m1_operator_deployments";
/// Objects known.
pub const OBJECTS: &str = "m1_operator_cached_objects";
/// Pods known.
pub const PODS: &str = "m1_operator_cached_pods";
/// Whether this process leads.
pub const LEADER: &str = "m1_operator_leader";

/// Handles.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    duration: Histogram,
    reconciles: IntCounterVec,
    errors: IntCounterVec,
    writes: IntCounterVec,
    requests: IntCounterVec,
    /// Deployments known.
    pub deployments: IntGauge,
    /// Objects known.
    pub objects: IntGauge,
    /// Pods known.
    pub pods: IntGauge,
    /// 1 on the process that leads.
    pub leader: IntGauge,
}

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// A name is taken or malformed.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let duration = Histogram::with_opts(
            HistogramOpts::new(RECONCILE_DURATION, "Time of one reconcile, calls to the API server included.").buckets(buckets),
        )?;
        let vec = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let metrics = Self {
            duration,
            reconciles: vec(RECONCILES, "Reconciles by outcome: ok, failed.", "result")?,
            errors: vec(RECONCILE_ERRORS, "Reconciles that failed, by reason.", "reason")?,
            writes: vec(WRITES, "What was done, as events tell it.", "deed")?,
            requests: vec(API_REQUESTS, "Calls to the API server by HTTP method; a watch is one call.", "method")?,
            deployments: gauge(DEPLOYMENTS, "MiniMaxM1Deployments known.")?,
            objects: gauge(OBJECTS, "Objects known that the operator writes.")?,
            pods: gauge(PODS, "Pods known that belong to a deployment.")?,
            leader: gauge(LEADER, "1 on the process that leads, 0 on those that wait.")?,
            registry,
        };
        for outcome in ["ok", "failed"] {
            metrics.reconciles.with_label_values(&[outcome]);
        }
        metrics.registry.register(Box::new(metrics.duration.clone()))?;
        for counter in [&metrics.reconciles, &metrics.errors, &metrics.writes, &metrics.requests] {
            metrics.registry.register(Box::new(counter.clone()))?;
        }
        for gauge in [&metrics.deployments, &metrics.objects, &metrics.pods, &metrics.leader] {
            metrics.registry.register(Box::new(gauge.clone()))?;
        }
        Ok(metrics)
    }

    /// Books a reconcile.
    pub fn reconciled(&self, began: Instant, error: Option<&'static str>) {
        self.duration.observe(began.elapsed().as_secs_f64());
        self.reconciles.with_label_values(&[if error.is_some() { "failed" } else { "ok" }]).inc();
        if let Some(reason) = error {
            self.errors.with_label_values(&[reason]).inc();
        }
    }

    /// Books a write.
    pub fn wrote(&self, deed: &'static str) {
        self.writes.with_label_values(&[deed]).inc();
    }

    /// A layer for the client of the API server that books every call.
    pub fn count_requests(&self) -> CountRequests {
        CountRequests { requests: self.requests.clone() }
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// A series cannot be written.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Puts [`Counted`] around a client.
#[derive(Clone, Debug)]
pub struct CountRequests {
    requests: IntCounterVec,
}

/// A client whose calls are booked.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    client: S,
    requests: IntCounterVec,
}

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, client: S) -> Counted<S> {
        Counted { client, requests: self.requests.clone() }
    }
}

impl<B, S: Service<http::Request<B>>> Service<http::Request<B>> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.client.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        self.requests.with_label_values(&[request.method().as_str()]).inc();
        self.client.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_are_booked_by_method() {
        let metrics = Metrics::new().unwrap();
        let answer = tower::service_fn(|_: http::Request<()>| async { Ok::<_, std::convert::Infallible>(()) });
        let mut client = metrics.count_requests().layer(answer);
        for method in ["GET", "PATCH", "PATCH"] {
            client.call(http::Request::builder().method(method).body(()).unwrap()).await.unwrap();
        }
        let text = metrics.text().unwrap();
        assert!(text.contains("m1_operator_api_requests_total{method=\"GET\"} 1"), "{text}");
        assert!(text.contains("m1_operator_api_requests_total{method=\"PATCH\"} 2"), "{text}");
    }
}
