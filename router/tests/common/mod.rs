//! The real router in front of engine doubles, driven over HTTP.
#![allow(dead_code)]

pub mod client;
pub mod double;

use std::path::PathBuf;
use std::time::Duration;

use m1_router::config::Config;
use m1_text::Tokenizer;
use serde_json::{Value, json};
use tokio::net::TcpListener;

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

/// A router over groups of doubles, with a client on it.
pub struct Stand {
    pub client: Client,
    pub doubles: Vec<Double>,
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
        let mut config = Config {
            listen: String::new(),
            model: model_dir(),
            served_name: NAME.to_owned(),
            max_context: 4096,
            groups: vec![doubles.iter().map(|double| double.address.clone()).collect()],
            queue_limit: 8,
            body_limit: 64 << 10,
        };
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        tokio::spawn(async move { m1_router::serve(config, listener, std::future::pending()).await.unwrap() });
        Self { client, doubles }
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
