//! The end of a router: what is still served, for how long, and how the rest ends. The real process is asked with real signals.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use crate::common::client::Events;
use crate::common::{Act, Client, Double, PATIENCE, Stand, chat, model_dir};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const CHAT: &str = "/v1/chat/completions";

fn stream() -> Value {
    chat(json!({"stream": true}))
}

/// A router process in front of one double.
struct Process {
    child: Child,
    client: Client,
    double: Double,
}

impl Process {
    async fn start(more: &[&str]) -> Self {
        let double = Double::start(0);
        let model = model_dir();
        let mut child = Command::new(env!("CARGO_BIN_EXE_m1-router"))
            .args(["--listen", "127.0.0.1:0", "--served-name", crate::common::NAME, "--max-context", "4096", "--model"])
            .arg(model)
            .args(["--workers", &double.address])
            .args(more)
            .env_remove("RUST_LOG")
            .env_remove("M1_LOG_FORMAT")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it says where it listens");
                if let Some((_, rest)) = line.split_once("listening address=") {
                    return rest.split(' ').next().unwrap().parse::<SocketAddr>().unwrap();
                }
            }
        };
        let address = tokio::time::timeout(PATIENCE, listening).await.unwrap();
        // The pipe is read to its end, so that the router never waits for its reader.
        tokio::spawn(async move { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} });
        let process = Self { child, client: Client::new(address), double };
        process.until(|client| async move { client.get("/ready").await.status == 200 }).await;
        process
    }

    fn signal(&self) {
        let id = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    }

    async fn until<F: Future<Output = bool>>(&self, so: impl Fn(Client) -> F) {
        let wait = async { while !so(self.client.clone()).await {} };
        tokio::time::timeout(PATIENCE, wait).await.expect("it came to pass");
    }

    async fn ends_well(mut self) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn a_process_leaves_the_endpoints_serves_on_and_ends_in_peace() {
    let process = Process::start(&["--shutdown-delay", "3", "--drain-seconds", "60"]).await;
    process.double.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let mut first = process.client.stream(CHAT, &stream()).await;
    first.json().await;
    process.double.script(&[Act::Say("hi"), Act::Eos]);
    process.signal();
    process.until(|client| async move { client.get("/ready").await.status == 503 }).await;
    let ready = process.client.get("/ready").await;
    assert_eq!((ready.header("retry-after"), &ready.json()["stopping"]), ("2", &json!(true)));
    assert_eq!(process.client.get("/health").await.status, 200);
    assert_eq!(process.client.post(CHAT, &chat(json!({}))).await.status, 200, "new requests are served for a while");
    process.until(|client| async move { !client.is_answered().await }).await;
    process.double.release();
    assert_eq!(first.rest().await.last().unwrap().1, "[DONE]", "what ran has ended");
    process.ends_well().await;
}

#[tokio::test]
async fn a_second_signal_ends_answers_at_once() {
    let process = Process::start(&["--shutdown-delay", "600", "--drain-seconds", "600"]).await;
    process.double.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let mut events = process.client.stream(CHAT, &stream()).await;
    events.json().await;
    process.signal();
    process.until(|client| async move { client.get("/ready").await.status == 503 }).await;
    process.signal();
    process.ends_well().await;
    is_told(events).await;
}

/// An answer that was ended does not look whole.
async fn is_told(events: Events) {
    let rest = events.rest().await;
    assert_eq!(rest.last().unwrap().1["error"]["code"], "stopping", "{rest:?}");
}

#[tokio::test]
async fn whoever_takes_too_long_is_told() {
    let stand = Stand::with(1, |config| config.grace.drain = Duration::from_millis(300)).await;
    stand.wait_ready().await;
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let mut events = stand.client.stream(CHAT, &stream()).await;
    events.json().await;
    let post = || {
        let client = stand.client.clone();
        tokio::spawn(async move { client.post(CHAT, &chat(json!({}))).await })
    };
    // The double has four places.
    let others: [_; 6] = std::array::from_fn(|_| post());
    let waiting = format!("m1_router_queue_depth{{model_name=\"{}\"}} 3", crate::common::NAME);
    stand
        .until(|client| {
            let waiting = waiting.clone();
            async move { client.get("/metrics").await.text.contains(&waiting) }
        })
        .await;
    stand.stops.send_replace(1);
    is_told(events).await;
    for other in others {
        let answer = other.await.unwrap();
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("stopping")), "under way or in the queue");
        assert_eq!(answer.header("retry-after"), "2");
    }
    tokio::time::timeout(PATIENCE, stand.served).await.expect("it does not wait for the answers").unwrap().unwrap();
}

#[tokio::test]
async fn without_answers_under_way_it_ends_at_once() {
    let stand = Stand::ready(1).await;
    assert_eq!(stand.client.post(CHAT, &chat(json!({}))).await.status, 200);
    stand.stops.send_replace(1);
    tokio::time::timeout(PATIENCE / 2, stand.served).await.expect("it need not wait").unwrap().unwrap();
}
