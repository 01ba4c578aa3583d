//! Heartbeats between two pods over loopback: the dispatch service of one, the connections of the other, and a test in the
//! place of both device threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support {
    pub mod dialer;
    pub mod service;
}

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use m1_exchange::{Lane, Life, PodId};
use m1_proto::dispatch::expert_dispatch_client::ExpertDispatchClient;
use m1_proto::dispatch::expert_dispatch_server::{ExpertDispatch, ExpertDispatchServer};
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Answer, Credit, Frame, Heartbeat, Lane as WireLane, Refused};
use m1_runtime::member::{Guard, Member};
use m1_worker::device::{DeviceHandle, DeviceMessage};
use m1_worker::status::SharedStatus;
use m1_worker::transport::{Dialer, Inbound, Link, PeerAddress, Transport};
use support::dialer::dialer;
use support::service::{identity, service};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(20);
const SUSPECT: Duration = Duration::from_millis(300);
const DEAD: Duration = Duration::from_secs(2);
const SERVER: PodId = PodId(0);

async fn serve<S: ExpertDispatch>(service: S) -> String {
    serve_guarded(service, None).await
}

async fn serve_guarded<S: ExpertDispatch>(service: S, member: Option<Member>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = ExpertDispatchServer::with_interceptor(service, Guard::new(member));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// A pod that is asked. Its device turns while it is told to.
struct Server {
    address: String,
    inbox: mpsc::Receiver<DeviceMessage>,
    status: Arc<SharedStatus>,
    turns: Arc<AtomicBool>,
}

impl Server {
    async fn new() -> Self {
        Self::guarded(None).await
    }

    async fn guarded(member: Option<Member>) -> Self {
        let (events, inbox) = DeviceHandle::channel();
        let status = Arc::new(SharedStatus::new(Default::default()));
        status.serve_peers(true);
        let service = service(events, status.clone());
        // Its first turn is before anybody asks: a heartbeat that tells of none would be right, and not what is tested.
        status.turn();
        let turns = Arc::new(AtomicBool::new(true));
        let (device, turning) = (status.clone(), turns.clone());
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(20));
            loop {
                interval.tick().await;
                if turning.load(Ordering::Relaxed) {
                    device.turn();
                }
            }
        });
        Self { address: serve_guarded(service, member).await, inbox, status, turns }
    }

    fn turn(&self, turns: bool) {
        self.turns.store(turns, Ordering::Relaxed);
    }
}

/// A pod that asks, with the clock that its IO side keeps.
struct Requester {
    events: DeviceHandle,
    inbox: mpsc::Receiver<DeviceMessage>,
    status: Arc<SharedStatus>,
    _stop: DropGuard,
}

impl Requester {
    fn dial(address: &str, member: Option<Member>) -> Self {
        Self::dial_pod(SERVER, address, member)
    }

    fn dial_pod(pod: PodId, address: &str, member: Option<Member>) -> Self {
        let (events, inbox) = DeviceHandle::channel();
        let (status, stop) = (Arc::new(SharedStatus::new(Default::default())), CancellationToken::new());
        let dialer = Dialer { member, ..dialer(events.clone(), status.clone()) };
        dialer.dial(&PeerAddress { pod, address: address.into() }, &stop);
        let looking = status.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(20));
            loop {
                interval.tick().await;
                looking.pulses().look();
            }
        });
        Self { events, inbox, status, _stop: stop.drop_guard() }
    }

    /// Why a peer cannot be asked.
    async fn refusal(&mut self) -> (PodId, String, String) {
        loop {
            if let Inbound::PeerRefused { peer, reason, message } = heard(&mut self.inbox).await {
                return (peer, reason, message);
            }
        }
    }

    /// What is known of the server.
    fn life(&self) -> Option<Life> {
        self.status.pulses().life(SERVER)
    }

    async fn heard_of_it(&self) {
        eventually("a heartbeat", || self.life().is_some_and(|life| life.epoch.is_some())).await;
    }

    /// Watches for so long; the longest that the server stood still.
    async fn watch(&self, span: Duration) -> Duration {
        let (began, mut worst) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < span {
            worst = worst.max(self.life().unwrap().still);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worst
    }

    /// How long it takes until the server has stood still for so long.
    async fn stands_still(&self, still: Duration) -> Duration {
        let began = Instant::now();
        eventually("silence", || self.life().unwrap().still >= still).await;
        began.elapsed()
    }

    async fn comes_back(&self) {
        eventually("life", || self.life().unwrap().still < SUSPECT).await;
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn heard(inbox: &mut mpsc::Receiver<DeviceMessage>) -> Inbound {
    match tokio::time::timeout(LONG, inbox.recv()).await.expect("something is heard").unwrap() {
        DeviceMessage::Dispatch(inbound) => inbound,
        other => panic!("{other:?}"),
    }
}

/// The server's side of the requester's decode lane.
async fn decode_lane(server: &mut Server) -> Link {
    loop {
        if let Inbound::ClientUp { lane: Lane::Decode, link, .. } = heard(&mut server.inbox).await {
            return link;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_wait_for_no_data_no_inbox_and_no_device() {
    let mut server = Server::new().await;
    let requester = Requester::dial(&server.address, None);
    let lane = decode_lane(&mut server).await;
    requester.heard_of_it().await;
    // The requester's device takes nothing: its inbox is full, so its lanes are not read, so their windows are.
    while tokio::time::timeout(Duration::from_millis(50), requester.events.send(DeviceMessage::Leave)).await.is_ok() {}
    let answer = || Kind::Answer(Answer { id: 1, tokens: 1024, sums: Bytes::from(vec![0; 1024 * 128 * 4]) });
    eventually("a lane that takes no more", || (0..64).any(|_| !lane.send(answer()))).await;
    let worst = requester.watch(DEAD + SUSPECT).await;
    assert!(worst < SUSPECT, "it was silent for {worst:?}");
    server.turn(false);
    let took = requester.stands_still(DEAD).await;
    assert!(took > DEAD - SUSPECT && took < DEAD + Duration::from_millis(500), "dead after {took:?}");
    server.turn(true);
    requester.comes_back().await;
    assert!(requester.inbox.len() > 1000, "nobody has read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_is_excused_and_what_overstays_is_dead() {
    let server = Server::new().await;
    let requester = Requester::dial(&server.address, None);
    requester.heard_of_it().await;
    server.turn(false);
    server.status.announce(Duration::from_secs(3));
    let worst = requester.watch(Duration::from_millis(2900)).await;
    assert!(worst < SUSPECT, "it was silent for {worst:?}");
    let life = requester.life().unwrap();
    assert!(life.busy > Duration::ZERO && life.busy < Duration::from_millis(400), "{life:?}");
    let took = requester.stands_still(DEAD).await;
    assert!(took > DEAD && took < DEAD + Duration::from_millis(700), "dead {took:?} after 2.9 s of 3 s");
    server.turn(true);
    requester.comes_back().await;
    assert_eq!(requester.life().unwrap().busy, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_of_the_version_before_gets_heartbeats_where_it_expects_them() {
    let server = Server::new().await;
    for (pulse, asked) in [(false, false), (true, false), (true, true)] {
        let (frames, outgoing) = mpsc::channel(16);
        let mut client = ExpertDispatchClient::connect(format!("http://{}", server.address)).await.unwrap();
        let mut answers = client.exchange(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let mut hello = identity(1).hello(Lane::Decode, 1, 0);
        hello.pulse = pulse;
        frames.send(Frame { kind: Some(Kind::Hello(hello)) }).await.unwrap();
        if asked {
            frames.send(Frame { kind: Some(Kind::Heartbeat(Heartbeat { sent_us: 5, ..Default::default() })) }).await.unwrap();
        }
        let first = answers.message().await.unwrap().unwrap().kind.unwrap();
        assert!(matches!(first, Kind::Hello(hello) if hello.pulse && hello.credits > 0), "the lane is known");
        let next = tokio::time::timeout(Duration::from_millis(500), answers.message()).await;
        match next {
            Ok(frame) => {
                let Some(Kind::Heartbeat(beat)) = frame.unwrap().unwrap().kind else { panic!("no heartbeat") };
                assert!((asked || !pulse) && beat.progress > 0 && (beat.echo_us == 5) == asked, "{beat:?}");
            }
            Err(_) => assert!(pulse && !asked, "no heartbeat came"),
        }
    }
}

/// A server of the version before: it knows three lanes, and tells of its device on the first.
#[derive(Clone, Default)]
struct Before {
    lanes: Arc<Mutex<Vec<i32>>>,
}

#[tonic::async_trait]
impl ExpertDispatch for Before {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn exchange(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let (frames, outgoing) = mpsc::channel(16);
        let (lanes, mut asked) = (self.lanes.clone(), request.into_inner());
        tokio::spawn(async move {
            let send = async |kind| frames.send(Frame { kind: Some(kind) }).await.is_ok();
            let Some(Ok(Frame { kind: Some(Kind::Hello(hello)) })) = asked.next().await else { return };
            lanes.lock().unwrap().push(hello.lane);
            if hello.lane > WireLane::Bulk as i32 {
                let refused = Refused { reason: "ValueOutOfRange".into(), message: "lane: 4 given, allowed: 1 to 3".into() };
                send(Kind::Refused(refused)).await;
                return;
            }
            let mut own = identity(0).hello(Lane::Decode, 7, 16);
            (own.lane, own.pulse) = (hello.lane, false);
            send(Kind::Hello(own)).await;
            let mut progress = 0;
            while let Some(Ok(frame)) = asked.next().await {
                let Some(Kind::Heartbeat(asked)) = frame.kind else { panic!("{frame:?}") };
                progress += 1;
                let echo_us = asked.sent_us;
                send(Kind::Heartbeat(Heartbeat { progress, epoch: 7, echo_us, ..Default::default() })).await;
                send(Kind::Credit(Credit { frames: 1 })).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_the_version_before_is_heard_on_its_decode_lane() {
    let before = Before::default();
    let requester = Requester::dial(&serve(before.clone()).await, None);
    requester.heard_of_it().await;
    let worst = requester.watch(Duration::from_secs(1)).await;
    assert!(worst < SUSPECT, "it was silent for {worst:?}");
    let known = requester.status.pulses().known().next().unwrap();
    assert!(known.life.epoch == Some(7) && known.round_trip_us.is_some(), "{known:?}");
    let mut lanes = before.lanes.lock().unwrap().clone();
    lanes.sort_unstable();
    assert_eq!(lanes, [WireLane::Decode as i32, WireLane::Prefill as i32], "it is asked for nothing that it does not know");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_names_the_pod_that_it_means() {
    let member = |text: &str| Some(text.parse::<Member>().unwrap());
    let own = member("models/m1/uid-1/m1-0/1");
    let server = Server::guarded(member("models/m1/uid-1/m1-0/0")).await;
    let requester = Requester::dial(&server.address, own.clone());
    requester.heard_of_it().await;
    // An address that has passed to another deployment's pod.
    let other = Server::guarded(member("models/m1/uid-2/m1-0/0")).await;
    let mut requester = Requester::dial(&other.address, own);
    let words = "the call is meant for models/m1/uid-1/m1-0/0; this is models/m1/uid-2/m1-0/0";
    assert_eq!(requester.refusal().await, (SERVER, "WrongMember".into(), words.into()));
    assert_eq!(requester.life(), None);
    // Whoever is not told who it is means nobody in particular.
    let requester = Requester::dial(&other.address, None);
    requester.heard_of_it().await;
    let mut requester = Requester::dial_pod(PodId(5), &other.address, None);
    let words = "pod 0 answers at the address of pod 5";
    assert_eq!(requester.refusal().await, (PodId(5), "WrongMember".into(), words.into()), "a greeting says who answers");
}
