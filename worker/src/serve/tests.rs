//! Whole workers in this process, with the demo model: what a kubelet sees, and who loses what when a pod is ended.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use m1_proto::worker::generate_event::Event;
use m1_proto::worker::worker_client::WorkerClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Streaming;
use tonic::transport::Channel;

use super::*;
use crate::config::{Cli, Command};

mod changed;
mod counts;
mod ends;
mod interleavings;
mod liveness;
mod values;

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(60);

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/m1-demo")
}

struct Pod {
    address: SocketAddr,
    admin: SocketAddr,
    signals: mpsc::Sender<Signal>,
    served: JoinHandle<anyhow::Result<Ended>>,
}

impl Pod {
    async fn start(model: &Path, pod: &str, drain_seconds: &str) -> Self {
        let flags = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--expert-wait", "1", "--pod", pod];
        let line = ["m1-worker", "serve", "--drain-seconds", drain_seconds, "--model", model.to_str().unwrap()];
        Self::start_with(&line.into_iter().chain(flags).collect::<Vec<_>>()).await
    }

    async fn start_with(line: &[&str]) -> Self {
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command;
        let config = args.check().unwrap();
        let sockets = Sockets::bind(&config).await.unwrap();
        let address = sockets.grpc.local_addr().unwrap();
        let admin = sockets.admin.as_ref().unwrap().address();
        let (signals, received) = mpsc::channel(2);
        let served = tokio::spawn(serve(config, sockets, received));
        Self { address, admin, signals, served }
    }

    async fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    /// Status and body of a probe.
    async fn ask(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn until(&self, path: &str, status: u16, words: &str) {
        eventually(&format!("{path}: {status} {words}"), async || {
            let (given, body) = self.ask(path).await;
            given == status && body.contains(words)
        })
        .await;
    }

    /// A sequence that ends after so many tokens, running.
    async fn begin(&self, tokens: u32) -> Streaming<pb::GenerateEvent> {
        let mut events = self.client().await.generate(request(tokens)).await.unwrap().into_inner();
        // Before the first one come signs of progress, which are empty.
        loop {
            match tokio::time::timeout(LONG, events.message()).await.expect("a token").unwrap().unwrap().event {
                Some(Event::Tokens(tokens)) if tokens.ids.is_empty() => {}
                Some(Event::Tokens(_)) => return events,
                other => panic!("no token: {other:?}"),
            }
        }
    }

    async fn signal(&self) {
        self.signals.send(Signal::Terminate).await.unwrap();
    }

    /// Waits for its end, which must be a good one.
    async fn ended(self) {
        let ended = tokio::time::timeout(LONG, self.served).await.expect("it ends").unwrap().unwrap();
        assert_eq!(ended, Ended::Whole);
    }
}

/// Waits for a condition of another task.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LONG, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn request(tokens: u32) -> pb::GenerateRequest {
    pb::GenerateRequest { prompt: vec![5, 6, 7], max_tokens: tokens, ..Default::default() }
}

/// The one word of a refusal.
fn reason(status: &tonic::Status) -> &str {
    status.metadata().get("m1-reason").unwrap().to_str().unwrap()
}

/// Makes pods a group, and waits until it serves.
async fn place(pods: &[&Pod]) {
    tell(pods).await;
    for pod in pods {
        pod.until("/readyz", 200, "ok").await;
    }
}

/// Tells pods that they are a group; the first holds the lower half of the experts, as far as there is a second.
async fn tell(pods: &[&Pod]) {
    let holds: &[&str] = if pods.len() == 1 { &["ffffffff"] } else { &["ffff0000", "0000ffff"] };
    let placed = pods.iter().zip(holds).enumerate().map(|(index, (pod, holds))| pb::PodPlacement {
        pod: index as u32,
        address: pod.address.to_string(),
        holds: holds.repeat(8),
    });
    let request = pb::ApplyPlacementRequest {
        lease_transitions: 0,
        epoch: 3,
        layers: 8,
        experts: 32,
        pods: placed.collect(),
        model: String::new(),
    };
    for pod in pods {
        pod.client().await.apply_placement(request.clone()).await.unwrap();
    }
}

/// The end of a sequence: (reason, tokens, word of the error).
async fn end(mut events: Streaming<pb::GenerateEvent>) -> (pb::FinishReason, u32, String) {
    loop {
        let event = tokio::time::timeout(LONG, events.message()).await.expect("it goes on").unwrap().unwrap();
        if let Some(Event::Finished(finished)) = event.event {
            return (finished.reason(), finished.output_tokens, finished.error_reason);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_sees_every_phase() {
    let pod = Pod::start(&demo(), "0", "5").await;
    pod.until("/startupz", 503, "{\"reason\":\"NoPlacement\",\"message\":\"no placement yet; 0 bytes loaded of a checkpoint of ")
        .await;
    assert_eq!(pod.ask("/readyz").await.0, 503);
    assert_eq!(pod.ask("/livez").await, (200, "ok".into()));
    let (status, page) = pod.ask("/metrics").await;
    assert!(status == 200 && page.contains("m1_worker_phase{phase=\"waiting\"} 1"), "{page}");
    place(&[&pod]).await;
    assert_eq!(pod.ask("/startupz").await, (200, "ok".into()));
    assert_eq!(end(pod.begin(8).await).await, (pb::FinishReason::FinishLength, 8, String::new()));
    let tokens = (3 + 8 - 1) * 8 * 2;
    pod.until("/metrics", 200, &format!("m1_worker_expert_tokens_total{{outcome=\"executed\"}} {tokens}\n")).await;
    let (_, page) = pod.ask("/metrics").await;
    assert!(page.contains("m1_worker_placement_epoch 3\n") && page.contains("m1_worker_phase{phase=\"ready\"} 1\n"), "{page}");
    pod.signal().await;
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_cannot_be_used_is_said_and_is_no_reason_to_restart() {
    let pod = Pod::start(Path::new("/nowhere/m1"), "0", "5").await;
    pod.until("/readyz", 503, "{\"reason\":\"CheckpointUnreadable\",\"message\":\"cannot read /nowhere/m1/config.json").await;
    assert_eq!(pod.ask("/startupz").await, (200, "ok".into()));
    assert_eq!(pod.ask("/livez").await, (200, "ok".into()));
    let left = pod.client().await.drain(pb::DrainRequest { deadline_ms: 60_000 }).await.unwrap().into_inner().left;
    assert_eq!(left, 0, "nothing runs there");
    let refused = pod.client().await.generate(request(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::Unavailable, "NotReady"));
    pod.signal().await;
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_pod_admits_nothing_ends_its_own_and_a_second_signal_ends_them() {
    let pod = Pod::start(&demo(), "0", "60").await;
    place(&[&pod]).await;
    let (short, endless) = (pod.begin(40).await, pod.begin(30_000).await);
    pod.signal().await;
    pod.until("/readyz", 503, "{\"reason\":\"Draining\",\"message\":\"this worker drains and admits no more\"}").await;
    let refused = pod.client().await.generate(request(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::Unavailable, "Draining"));
    assert_eq!(end(short).await, (pb::FinishReason::FinishLength, 40, String::new()), "what runs may end");
    assert!(!pod.served.is_finished());
    assert_eq!(pod.ask("/livez").await.0, 200);
    pod.signal().await;
    let (reason, _, word) = end(endless).await;
    assert_eq!((reason, word.as_str()), (pb::FinishReason::FinishError, "Stopping"));
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_pod_serves_its_peers_until_they_need_it_no_more() {
    let (left, stays) = (Pod::start(&demo(), "0", "60").await, Pod::start(&demo(), "1", "60").await);
    place(&[&left, &stays]).await;
    let theirs = stays.begin(400).await;
    // It has no sequence of its own, so it would end at once; half of the experts would be gone for more than `--expert-wait`.
    left.signal().await;
    left.until("/readyz", 503, "Draining").await;
    assert_eq!(end(theirs).await, (pb::FinishReason::FinishLength, 400, String::new()));
    let (_, page) = stays.ask("/metrics").await;
    let sent = |lane: &str| format!("m1_worker_dispatch_frames_total{{direction=\"sent\",lane=\"{lane}\",peer=\"0\"}} ");
    let frames: f64 = page.lines().find_map(|line| line.strip_prefix(&sent("decode"))?.parse().ok()).unwrap();
    assert!(frames > 400.0, "{frames} frames");
    left.ended().await;
    stays.until("/readyz", 503, "\"reason\":\"ExpertsUnreachable\"").await;
    assert_eq!(stays.ask("/startupz").await.0, 200);
    stays.signal().await;
    stays.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_drain_together_do_not_wait_for_each_other() {
    let (one, other) = (Pod::start(&demo(), "0", "60").await, Pod::start(&demo(), "1", "60").await);
    place(&[&one, &other]).await;
    let (mine, yours) = (one.begin(30).await, other.begin(200).await);
    one.signal().await;
    other.signal().await;
    assert_eq!(end(mine).await, (pb::FinishReason::FinishLength, 30, String::new()));
    assert_eq!(end(yours).await, (pb::FinishReason::FinishLength, 200, String::new()));
    one.ended().await;
    other.ended().await;
}

/// A server of files on a port of this machine. It answers ranges; `closed` lets nothing through but what a checkpoint is opened with.
struct Files {
    address: SocketAddr,
    open: Arc<std::sync::atomic::AtomicBool>,
}

impl Files {
    async fn serve(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let through = open.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (folder, through) = (folder.clone(), through.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                    let name = head.split(' ').nth(1).unwrap().trim_start_matches("/m/");
                    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
                    let Ok(bytes) = std::fs::read(folder.join(name)) else {
                        return stream.write_all(b"HTTP/1.1 404 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                    };
                    let wholly = range.is_none_or(|(_, last)| last.is_empty());
                    if wholly && name.ends_with("safetensors") && !through.load(std::sync::atomic::Ordering::Relaxed) {
                        // Silent until it is asked by another connection.
                        std::future::pending::<()>().await;
                    }
                    let (first, last) = range.unwrap_or(("0", ""));
                    let first: usize = first.parse().unwrap();
                    let last = last.parse::<usize>().unwrap_or(usize::MAX).min(bytes.len() - 1);
                    let (status, length) = (if range.is_some() { 206 } else { 200 }, last + 1 - first);
                    let head = format!(
                        "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\ncontent-range: bytes {first}-{last}/{}\r\nconnection: close\r\n\r\n",
                        bytes.len()
                    );
                    stream.write_all(head.as_bytes()).await?;
                    stream.write_all(&bytes[first..=last]).await
                });
            }
        });
        Self { address, open }
    }

    async fn pod(&self, cache: &Path, path: &str) -> Pod {
        let model = format!("http://{}/{path}", self.address);
        let flags = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cache", cache.to_str().unwrap()];
        Pod::start_with(&[&["m1-worker", "serve", "--model", &model][..], &flags[..]].concat()).await
    }
}

fn whole_group(pod: &Pod) -> pb::ApplyPlacementRequest {
    let pods = vec![pb::PodPlacement { pod: 0, address: pod.address.to_string(), holds: "ffffffff".repeat(8) }];
    pb::ApplyPlacementRequest { lease_transitions: 0, epoch: 3, layers: 8, experts: 32, pods, model: String::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_from_elsewhere_is_fetched_with_words_and_a_signal_ends_that_at_once() {
    let (files, cache) = (Files::serve(demo()).await, tempfile::tempdir().unwrap());
    let pod = files.pod(cache.path(), "m").await;
    pod.until("/startupz", 503, "no placement yet").await;
    for _ in 0..2 {
        // The second is one that the operator says again.
        pod.client().await.apply_placement(whole_group(&pod)).await.unwrap();
    }
    pod.until("/startupz", 503, "{\"reason\":\"Loading\",\"message\":\"fetching: 0 of 15146448 bytes, 0 of 2 shards\"}").await;
    assert_eq!(pod.ask("/livez").await.0, 200);
    let status = pod.client().await.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.phase(), status.bytes_loaded, status.bytes_to_load), (pb::Phase::Loading, 0, 15_146_448));
    let refused = pod.client().await.generate(request(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::Unavailable, "NotReady"));
    let began = Instant::now();
    pod.signal().await;
    pod.ended().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    files.open.store(true, std::sync::atomic::Ordering::Relaxed);
    let pod = files.pod(cache.path(), "m").await;
    pod.until("/startupz", 503, "no placement yet").await;
    place(&[&pod]).await;
    assert_eq!(end(pod.begin(8).await).await, (pb::FinishReason::FinishLength, 8, String::new()));
    pod.signal().await;
    pod.ended().await;
}

/// The ids of a short answer.
async fn ids(pod: &Pod) -> Vec<u32> {
    let mut events = pod.client().await.generate(request(12)).await.unwrap().into_inner();
    let mut ids = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(Event::Tokens(tokens)) = event.event {
            ids.extend(tokens.ids);
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_another_pod_has_fetched_meanwhile_are_read() {
    let (files, cache) = (Files::serve(demo()).await, tempfile::tempdir().unwrap());
    files.open.store(true, std::sync::atomic::Ordering::Relaxed);
    // Both have opened a checkpoint of headers before either has fetched a shard.
    let (one, other) = (files.pod(cache.path(), "m").await, files.pod(cache.path(), "m").await);
    for pod in [&one, &other] {
        pod.until("/startupz", 503, "no placement yet").await;
    }
    let local = Pod::start(&demo(), "0", "5").await;
    let mut answers = Vec::new();
    for pod in [&one, &other, &local] {
        pod.until("/startupz", 503, "no placement yet").await;
        place(&[pod]).await;
        answers.push(ids(pod).await);
    }
    assert_eq!(answers[0], answers[2], "what was fetched is the model");
    assert_eq!(answers[1], answers[2], "a header with holes behind it is no shard");
    for pod in [one, other, local] {
        pod.signal().await;
        pod.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_fetch_is_said_and_is_no_reason_to_restart() {
    let (files, cache) = (Files::serve(demo()).await, tempfile::tempdir().unwrap());
    let pod = files.pod(cache.path(), "m/nowhere").await;
    pod.until("/readyz", 503, "{\"reason\":\"FileNotFound\",\"message\":\"config.json: http://127.0.0.1:").await;
    assert_eq!((pod.ask("/startupz").await.0, pod.ask("/livez").await.0), (200, 200));
    pod.signal().await;
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_meant_for_somebody_else_is_refused_by_name() {
    use m1_proto::dispatch::expert_dispatch_client::ExpertDispatchClient;
    use m1_runtime::member::{MeantFor, Member, is_for_another};

    let own = "local/m1/0b54/0/0";
    let line =
        ["m1-worker", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--member", "local/m1/0b54/0", "--model"];
    let pod = Pod::start_with(&line.into_iter().chain([demo().to_str().unwrap()]).collect::<Vec<_>>()).await;
    let channel = || Channel::from_shared(format!("http://{}", pod.address)).unwrap().connect_lazy();
    let meant = |text: &str| MeantFor::new(Some(&text.parse::<Member>().unwrap()));
    let status = WorkerClient::with_interceptor(channel(), meant(own)).status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.member, own);
    let mut nameless = pod.client().await;
    assert!(nameless.status(pb::StatusRequest {}).await.is_ok(), "who means nobody may look");
    for refusal in [
        nameless.apply_placement(pb::ApplyPlacementRequest::default()).await.unwrap_err(),
        nameless.drain(pb::DrainRequest { deadline_ms: 0 }).await.unwrap_err(),
        ExpertDispatchClient::new(channel()).exchange(tokio_stream::empty()).await.unwrap_err(),
    ] {
        assert!(is_for_another(&refusal) && refusal.message().contains("does not say for whom"), "{refusal}");
    }
    for other in ["local/m1/77aa/0/0", "local/m1/0b54/1/0", "local/m1/0b54/0/1"] {
        let words = format!("the call is meant for {other}; this is {own}");
        let mut worker = WorkerClient::with_interceptor(channel(), meant(other));
        let refused = [
            worker.status(pb::StatusRequest {}).await.unwrap_err(),
            worker.watch_stats(pb::WatchStatsRequest::default()).await.unwrap_err(),
            worker.apply_placement(pb::ApplyPlacementRequest::default()).await.unwrap_err(),
            worker.generate(request(1)).await.unwrap_err(),
            worker.drain(pb::DrainRequest { deadline_ms: 0 }).await.unwrap_err(),
            ExpertDispatchClient::with_interceptor(channel(), meant(other)).exchange(tokio_stream::empty()).await.unwrap_err(),
        ];
        for refusal in refused {
            assert_eq!((refusal.code(), refusal.message()), (tonic::Code::FailedPrecondition, words.as_str()));
            assert!(is_for_another(&refusal));
        }
    }
    pod.signal().await;
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_deployment_serves_no_rows() {
    use m1_runtime::member::MeantFor;

    let start = async |member: &str, pod: &str| {
        let flags = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--member", member, "--pod", pod, "--drain-seconds", "0"];
        let line = ["m1-worker", "serve", "--model", demo().to_str().unwrap()].map(str::to_owned);
        let line: Vec<&str> = line.iter().map(String::as_str).chain(flags).collect();
        Pod::start_with(&line).await
    };
    let (own, other) = (start("local/m1/0b54/0", "0").await, start("local/m1/77aa/0", "1").await);
    let placed = [(&own, "ffff0000"), (&other, "0000ffff")].into_iter().enumerate().map(|(pod, (at, holds))| pb::PodPlacement {
        pod: pod as u32,
        address: at.address.to_string(),
        holds: holds.repeat(8),
    });
    let request = pb::ApplyPlacementRequest { epoch: 3, layers: 8, experts: 32, pods: placed.collect(), ..Default::default() };
    let channel = Channel::from_shared(format!("http://{}", own.address)).unwrap().connect_lazy();
    let meant = MeantFor::new(Some(&"local/m1/0b54/0/0".parse().unwrap()));
    WorkerClient::with_interceptor(channel, meant).apply_placement(request).await.unwrap();
    let words = "pod 1: refuses this pod: WrongMember: the call is meant for local/m1/0b54/0/1; this is local/m1/77aa/0/1";
    eventually(words, async || {
        let status = own.client().await.status(pb::StatusRequest {}).await.unwrap().into_inner();
        status.phase() == pb::Phase::Connecting && status.message.contains(words)
    })
    .await;
    for pod in [own, other] {
        pod.signal().await;
        pod.ended().await;
    }
}
