//! The real router in front of engine doubles, driven over HTTP.
#![allow(dead_code)]

pub mod client;
pub mod cluster;
pub mod double;
pub mod raw;

use std::path::PathBuf;
use std::time::Duration;

use m1_router::RouterError;
use m1_router::config::Config;
use m1_router::drain::{Grace, Stops};
use m1_router::groups::Source;
use m1_router::http::body::Bounds;
use m1_router::http::cors::Cors;
use m1_router::server::Times;
use m1_router::sse::Pace;
use m1_router::workers::Patience;
use m1_router_core::{Deadlines, Topology};
use m1_text::Tokenizer;
use m1_weights::source::Location;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use client::Client;
pub use double::{Act, Double};

pub const NAME: &str = "MiniMax-M1-demo";

/// Every wait of these tests ends by this.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn model_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/m1-demo"))
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::open(&model_dir()).unwrap()
}

/// A configuration for tests; the groups come over a channel.
pub fn config() -> Config {
    Config {
        listen: String::new(),
        listen_fd: None,
        model: Location::Folder(model_dir()),
        fetch: None,
        served_name: NAME.to_owned(),
        max_context: 4096,
        source: Source::Fixed(Topology::default()),
        tls: None,
        api_keys: None,
        patience: Patience { limit: 8, wait: PATIENCE, comeback: Duration::ZERO },
        max_output_tokens: None,
        bodies: Bounds { bytes: 64 << 10, time: PATIENCE },
        cors: Cors::Local,
        deadlines: Deadlines { first: PATIENCE, rate: 200, between: PATIENCE },
        threads: 2,
        max_connections: 256,
        times: Times { head: PATIENCE, idle: PATIENCE, write: PATIENCE },
        pace: Pace { head: Duration::from_secs(10), comment: Duration::from_secs(10) },
        grace: Grace { delay: Duration::ZERO, drain: PATIENCE },
    }
}

/// A router over groups of doubles, with a client on it.
pub struct Stand {
    pub address: std::net::SocketAddr,
    pub client: Client,
    pub doubles: Vec<Double>,
    pub topologies: watch::Sender<Topology>,
    /// How often the router was asked to stop.
    pub stops: watch::Sender<u32>,
    pub served: JoinHandle<Result<(), RouterError>>,
}

impl Stand {
    /// One group of `pods` doubles, all ready, and the router has seen it.
    pub async fn ready(pods: usize) -> Self {
        let stand = Self::with(pods, |_| {}).await;
        stand.wait_ready().await;
        stand
    }

    /// One group of doubles that are ready, and a changed configuration.
    pub async fn with(pods: usize, change: impl Fn(&mut Config)) -> Self {
        let doubles: Vec<Double> = (0..pods).map(|pod| Double::start(u32::try_from(pod).unwrap())).collect();
        let topology = Topology::fixed(&[doubles.iter().map(|double| double.address.clone()).collect()]);
        Self::over(doubles, topology, change).await
    }

    /// Doubles, the groups that they form at first, and a changed configuration.
    pub async fn over(doubles: Vec<Double>, topology: Topology, change: impl Fn(&mut Config)) -> Self {
        let (topologies, receiver) = watch::channel(topology);
        let (stops, signals) = watch::channel(0);
        let mut config = config();
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::new(address);
        let served = tokio::spawn(m1_router::serve(config, listener, receiver, Stops::new(signals)));
        Self { address, client, doubles, topologies, stops, served }
    }

    pub async fn wait_ready(&self) {
        self.until(|client| async move { client.get("/ready").await.status == 200 }).await;
    }

    /// Asks again and again until it is so.
    pub async fn until<F: Future<Output = bool>>(&self, so: impl Fn(Client) -> F) {
        let wait = async { while !so(self.client.clone()).await {} };
        tokio::time::timeout(PATIENCE, wait).await.expect("it came to pass");
    }

    /// What every double does next.
    pub fn script(&self, acts: &[Act]) {
        self.doubles.iter().for_each(|double| double.script(acts));
    }
}

/// A chat request with changes.
pub fn chat(changes: Value) -> Value {
    merge(json!({"model": NAME, "messages": [{"role": "user", "content": "hello"}]}), changes)
}

/// A completion request with changes.
pub fn completion(changes: Value) -> Value {
    merge(json!({"model": NAME, "prompt": "hello"}), changes)
}

pub fn merge(mut base: Value, changes: Value) -> Value {
    for (field, value) in changes.as_object().unwrap() {
        base[field] = value.clone();
    }
    base
}
