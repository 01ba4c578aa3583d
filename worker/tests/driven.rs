//! The decode lane between two devices that drive it themselves, over loopback: the worker's own service and dialer, and a thread in the place of either
//! device, which answers at once or computes for as long as it is told to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use m1_arch::{Architecture, LayerId};
use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Answer, Credit};
use m1_runtime::tls::{self, Tls, urgent};
use m1_worker::device::{DeviceHandle, DeviceMessage};
use m1_worker::status::SharedStatus;
use m1_worker::transport::{
    DeviceIo, Dialer, DispatchService, Identity, Inbound, Link, PeerAddress, RequestHead, Said, Transport, request_frame,
    serve_driven,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);
const SERVER: PodId = PodId(0);
/// One row of the demo.
const ROW: usize = 128 * 4;

fn identity(pod: u16) -> Arc<Identity> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/m1-demo/config.json")).unwrap();
    Arc::new(Identity { pod, digest: "weights".into(), values: String::new(), arch: Architecture::from_json(&text).unwrap() })
}

/// An identity that all members share.
fn member() -> Tls {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (authority, issuer) = (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key));
    let (key, name) = (KeyPair::generate().unwrap(), "m1.serving.svc");
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = SystemTime::now().into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let tls = Tls::new(name).unwrap();
    tls.replace(tls::Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes(), authority.as_bytes()).unwrap());
    tls
}

/// The IO side of a pod.
fn threads() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Ticks, as a worker's IO side sends them: so no wait for a message is longer.
fn tick(runtime: &Runtime, events: DeviceHandle, status: Arc<SharedStatus>) {
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            events.tick(status.pulses());
        }
    });
}

/// What a device thread is told.
#[derive(Default)]
struct Told {
    /// To compute for so many ms, once.
    compute: AtomicU64,
    /// To do pieces of 1 ms all the time.
    busy: AtomicBool,
    turns: AtomicU64,
    answered: AtomicU64,
    over: AtomicBool,
}

/// A pod that is asked.
struct Server {
    address: SocketAddr,
    status: Arc<SharedStatus>,
    told: Arc<Told>,
    thread: Option<std::thread::JoinHandle<()>>,
    runtime: Option<Runtime>,
}

impl Server {
    fn new(tls: Option<Tls>) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), tls, true)
    }

    /// `drives`: whether its device drives anything.
    fn at(address: SocketAddr, tls: Option<Tls>, drives: bool) -> Self {
        let runtime = threads();
        let (events, inbox) = DeviceHandle::channel();
        let (status, told) = (Arc::new(SharedStatus::new(Default::default())), Arc::<Told>::default());
        status.serve_peers(true);
        let io = DeviceIo::new().unwrap();
        let service = DispatchService {
            guard: Default::default(),
            identity: Some(identity(0)),
            events: events.clone(),
            status: status.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            generations: Arc::default(),
            driven: Default::default(),
        };
        let urgent = drives.then(|| serve_driven(&io.handle(), service.clone(), Default::default(), CancellationToken::new()));
        let address = runtime.block_on(async {
            let listener = eventually_bound(address).await;
            let address = listener.local_addr().unwrap();
            let server = tonic::transport::Server::builder().add_service(ExpertDispatchServer::new(service));
            tokio::spawn(server.serve_with_incoming(tls::sorted(listener, tls, urgent)));
            address
        });
        tick(&runtime, events, status.clone());
        let (its, shown) = (told.clone(), status.clone());
        let thread = std::thread::spawn(move || device(io, inbox, &its, &shown));
        Self { address, status, told, thread: Some(thread), runtime: Some(runtime) }
    }

    fn computes(&self, length: Duration) {
        self.status.announce(length + Duration::from_secs(1));
        self.told.compute.store(length.as_millis() as u64, Ordering::Release);
        eventually("a device that computes", || self.told.compute.load(Ordering::Acquire) == 0);
    }

    fn answered(&self) -> u64 {
        self.told.answered.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    /// As a process ends that is killed.
    fn drop(&mut self) {
        self.told.over.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn eventually_bound(address: SocketAddr) -> tokio::net::TcpListener {
    let began = Instant::now();
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < LONG, "{error}"),
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Answers every request with what it holds.
fn device(mut io: DeviceIo, mut inbox: mpsc::Receiver<DeviceMessage>, told: &Told, status: &SharedStatus) {
    let mut links: [Option<Link>; 3] = Default::default();
    let at = |lane: Lane| Lane::ALL.iter().position(|other| *other == lane).unwrap();
    while !told.over.load(Ordering::Acquire) {
        let message = match told.busy.load(Ordering::Relaxed) {
            true => {
                std::thread::sleep(Duration::from_millis(1));
                io.look();
                inbox.try_recv().ok()
            }
            false => io.wait(&mut inbox),
        };
        status.turn();
        told.turns.fetch_add(1, Ordering::Relaxed);
        match message {
            Some(DeviceMessage::Tick) => status.pulses().unqueue_tick(),
            Some(DeviceMessage::Dispatch(Inbound::ClientUp { lane, link, .. })) => links[at(lane)] = Some(link),
            Some(DeviceMessage::Dispatch(Inbound::ClientAsks { lane, request, .. })) => {
                let link = links[at(lane)].as_ref().unwrap();
                link.send(Kind::Answer(Answer { id: request.id, tokens: request.tokens, sums: request.hidden }));
                link.send(Kind::Credit(Credit { frames: 1 }));
                told.answered.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
        let length = told.compute.swap(0, Ordering::AcqRel);
        if length > 0 {
            status.announce(Duration::from_millis(length + 1000));
            std::thread::sleep(Duration::from_millis(length));
        }
    }
}

/// A pod that asks; the test is its device.
struct Requester {
    io: DeviceIo,
    inbox: mpsc::Receiver<DeviceMessage>,
    status: Arc<SharedStatus>,
    link: Option<Link>,
    _stop: DropGuard,
    _runtime: Runtime,
}

impl Requester {
    /// Dials, and waits until the decode lane stands.
    fn up(address: SocketAddr, tls: Option<Tls>) -> Self {
        let mut requester = Self::dial(address, tls);
        requester.link_up();
        requester
    }

    fn dial(address: SocketAddr, tls: Option<Tls>) -> Self {
        let runtime = threads();
        let (events, inbox) = DeviceHandle::channel();
        let (status, stop, io) =
            (Arc::new(SharedStatus::new(Default::default())), CancellationToken::new(), DeviceIo::new().unwrap());
        let dialer = Dialer {
            identity: identity(1),
            events: events.clone(),
            status: status.clone(),
            tasks: TaskTracker::new(),
            generations: Arc::default(),
            tls,
            device: Some(io.handle()),
            member: None,
        };
        let entered = runtime.enter();
        dialer.dial(&PeerAddress { pod: SERVER, address: address.to_string() }, &stop);
        drop(entered);
        tick(&runtime, events, status.clone());
        Self { io, inbox, status, link: None, _stop: stop.drop_guard(), _runtime: runtime }
    }

    /// The next message about the decode lane.
    fn heard(&mut self) -> Inbound {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < LONG, "nothing is heard");
            match self.io.wait(&mut self.inbox).unwrap() {
                DeviceMessage::Tick => self.status.pulses().unqueue_tick(),
                DeviceMessage::Dispatch(
                    inbound @ (Inbound::LinkUp { lane: Lane::Decode, .. }
                    | Inbound::LinkDown { lane: Lane::Decode, .. }
                    | Inbound::LinkSays { lane: Lane::Decode, said: Said::Answer { .. }, .. }),
                ) => return inbound,
                _ => {}
            }
        }
    }

    /// Waits for a decode lane.
    fn link_up(&mut self) {
        let began = Instant::now();
        while began.elapsed() < LONG {
            if let Inbound::LinkUp { link, .. } = self.heard() {
                return self.link = Some(link);
            }
        }
        panic!("no link");
    }

    fn generation(&self) -> u64 {
        self.link.as_ref().unwrap().generation
    }

    /// Hands a request to the lane.
    fn ask(&self, id: u64, rows: usize) {
        let head = RequestHead { id, epoch: 1, layer: LayerId(0), tokens: rows as u32 };
        let frame = request_frame(head, &[1, 2].repeat(rows), &[0.5, 0.5].repeat(rows), Bytes::from(vec![id as u8; rows * ROW]));
        assert!(self.link.as_ref().unwrap().send(Kind::Request(frame)));
    }

    /// Waits for the answer, on the connection that was asked.
    fn answer(&mut self, wanted: u64, rows: usize) {
        match self.heard() {
            Inbound::LinkSays { said: Said::Answer { id, tokens, sums }, generation, .. } => {
                assert_eq!((id, tokens as usize, generation), (wanted, rows, self.generation()));
                assert!(sums.len() == rows * ROW && sums.iter().all(|byte| *byte == id as u8));
            }
            other => panic!("{other:?}"),
        }
    }

    fn round_trip(&mut self, id: u64, rows: usize) {
        self.ask(id, rows);
        self.answer(id, rows);
    }
}

/// Waits for what another thread does, without looking.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn rows_go_out_and_sums_come_back_where_devices_look() {
    for tls in [None, Some(member())] {
        let server = Server::new(tls.clone());
        let mut requester = Requester::up(server.address, tls);
        // The largest frames take more than any buffer holds at once.
        for (id, rows) in [(1, 1), (2, 1536), (3, 1024), (4, 1)] {
            requester.round_trip(id, rows);
        }
        requester.ask(5, 1);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(server.answered(), 4, "nobody else sends it");
        requester.io.look();
        eventually("a request that went out in one look", || server.answered() == 5);
        requester.answer(5, 1);
    }
}

#[test]
fn large_frames_pass_within_a_few_looks() {
    let server = Server::new(None);
    let mut requester = Requester::up(server.address, None);
    server.told.busy.store(true, Ordering::Relaxed);
    // A connection that has just begun, and 768 KB.
    for id in 1..5 {
        requester.ask(id, 1536);
        let mut looks = 0;
        while server.answered() < id {
            requester.io.look();
            std::thread::sleep(Duration::from_millis(2));
            looks += 1;
            assert!(looks < 50, "it is still on its way after {looks} looks");
        }
        requester.answer(id, 1536);
    }
}

#[test]
fn a_peer_whose_device_drives_nothing_is_asked_all_the_same() {
    for tls in [None, Some(member())] {
        let server = Server::at("127.0.0.1:0".parse().unwrap(), tls.clone(), false);
        let mut requester = Requester::up(server.address, tls);
        requester.round_trip(1, 4);
        requester.ask(2, 4);
        // Nobody looks here: the IO threads do all of it, heartbeats too.
        eventually("an answer", || server.answered() == 2);
        requester.answer(2, 4);
    }
}

#[test]
fn a_peer_that_serves_nobody_yet_is_found_when_it_does() {
    let server = Server::new(None);
    server.status.serve_peers(false);
    // Its device does not look meanwhile, and who asks is told so at once.
    server.computes(Duration::from_secs(3));
    let began = Instant::now();
    let mut requester = Requester::dial(server.address, None);
    assert!(matches!(requester.heard(), Inbound::LinkDown { .. }));
    assert!(began.elapsed() < Duration::from_secs(1), "told after {:?}", began.elapsed());
    server.status.serve_peers(true);
    requester.link_up();
    requester.round_trip(1, 1);
}

#[test]
fn links_outlive_devices_that_compute_for_long() {
    const COMPUTES: Duration = Duration::from_secs(5);
    let server = Server::new(None);
    let mut requester = Requester::up(server.address, None);
    requester.round_trip(1, 1);
    let alive = |requester: &Requester| requester.status.pulses().life(SERVER).filter(|life| life.epoch.is_some());
    eventually("heartbeats", || alive(&requester).is_some());
    server.computes(COMPUTES);
    requester.ask(2, 16);
    requester.io.look();
    let (began, mut quiet, mut last) = (Instant::now(), Duration::ZERO, Duration::MAX);
    while began.elapsed() < COMPUTES - Duration::from_millis(500) {
        // What is left of what was announced comes with every heartbeat.
        let busy = alive(&requester).unwrap().busy;
        quiet = if busy == last { quiet + TICK } else { Duration::ZERO };
        last = busy;
        assert!(quiet < Duration::from_secs(1), "no heartbeat after {:?}", began.elapsed());
        requester.io.look();
        std::thread::sleep(TICK);
    }
    assert_eq!(server.answered(), 1, "it computes");
    requester.answer(2, 16);
    // And the other way round: neither the answer's rest nor any clock makes up for the time in which nobody looked here.
    for id in 3..6 {
        requester.ask(id, 1536);
        requester.io.look();
        std::thread::sleep(COMPUTES / 2);
        requester.answer(id, 1536);
    }
    // Both at once, with a look now and then.
    server.computes(COMPUTES);
    requester.ask(6, 1);
    for _ in 0..3 {
        std::thread::sleep(COMPUTES / 2);
        requester.io.look();
    }
    requester.answer(6, 1);
}

#[test]
fn a_peer_that_dies_in_the_middle_is_asked_again_when_it_is_back() {
    let server = Server::new(None);
    let address = server.address;
    let mut requester = Requester::up(address, None);
    server.computes(Duration::from_millis(300));
    requester.ask(1, 1536);
    requester.io.look();
    let before = requester.generation();
    drop(server);
    loop {
        match requester.heard() {
            // It may still have answered.
            Inbound::LinkSays { .. } => {}
            Inbound::LinkDown { generation, .. } if generation == before => break,
            other => panic!("{other:?}"),
        }
    }
    let _server = Server::at(address, None, true);
    requester.link_up();
    assert!(requester.generation() > before);
    requester.round_trip(2, 1536);
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_missed_though_rows_are_on_their_way_to_it() {
    let server = Server::new(None);
    // What lies between two machines, until it does not.
    let cut = Arc::new(AtomicBool::new(false));
    let runtime = threads();
    let (through, target) = (cut.clone(), server.address);
    let address = runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = tokio::net::TcpStream::connect(target).await.unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near.0, far.1, through.clone()));
                tokio::spawn(pass(far.0, near.1, through.clone()));
            }
        });
        address
    });
    let mut requester = Requester::up(address, None);
    requester.round_trip(1, 1);
    eventually("heartbeats", || requester.status.pulses().life(SERVER).is_some_and(|life| life.epoch.is_some()));
    cut.store(true, Ordering::Release);
    requester.ask(2, 1536);
    let (began, before) = (Instant::now(), requester.generation());
    match requester.heard() {
        Inbound::LinkDown { generation, .. } => assert_eq!(generation, before),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < Duration::from_secs(10), "missed after {:?}", began.elapsed());
    cut.store(false, Ordering::Release);
    requester.link_up();
    requester.round_trip(3, 1);
}

/// Passes bytes on while nothing is cut.
async fn pass(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, cut: Arc<AtomicBool>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read) = from.read(&mut bytes).await {
        if read == 0 {
            return;
        }
        if cut.load(Ordering::Acquire) {
            // Neither end is told.
            return std::future::pending().await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// The first bytes of an urgent connection without TLS.
fn first_bytes() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x06".to_vec();
    bytes.extend(urgent::HEADER_LIST.to_be_bytes());
    bytes
}

#[test]
fn a_flood_leaves_the_device_its_time() {
    let server = Server::new(None);
    let mut requester = Requester::up(server.address, None);
    requester.round_trip(1, 1);
    let over = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(server.address).unwrap();
            let mut answers = stream.try_clone().unwrap();
            answers.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let (over, reading) = (over.clone(), over.clone());
            // Acknowledges settings, then pings without end; each ping wants an answer, which is read.
            let mut bytes = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00".to_vec();
            stream.write_all(&first_bytes()).unwrap();
            stream.write_all(&bytes).unwrap();
            bytes = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00floods!!".repeat(4000);
            let writer = std::thread::spawn(move || while !over.load(Ordering::Relaxed) && stream.write_all(&bytes).is_ok() {});
            let reader = std::thread::spawn(move || {
                let (mut heard, mut bytes) = (0, vec![0; 1 << 16]);
                while !reading.load(Ordering::Relaxed) {
                    heard += answers.read(&mut bytes).unwrap_or(0);
                }
                heard
            });
            (writer, reader)
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    server.told.busy.store(true, Ordering::Relaxed);
    let (began, before) = (Instant::now(), server.told.turns.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(1));
    let (turns, took) = (server.told.turns.load(Ordering::Relaxed) - before, began.elapsed());
    // A peer is served meanwhile.
    let asked = Instant::now();
    requester.round_trip(2, 1);
    let waited = asked.elapsed();
    over.store(true, Ordering::Relaxed);
    let heard: usize = floods.into_iter().map(|(writer, reader)| (writer.join().unwrap(), reader.join().unwrap()).1).sum();
    assert!(heard > 100_000, "the flood is one: {heard} bytes of answers");
    // Pieces of 1 ms, and a look of at most 1 ms and as much again as it overstays before every other of them; other tests run beside.
    assert!(turns > 100, "{turns} turns in {took:?}");
    assert!(waited < Duration::from_secs(1), "an answer after {waited:?}");
}

#[test]
fn only_so_many_connections_are_the_devices_and_the_rest_is_served_elsewhere() {
    let server = Server::new(None);
    let connections: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.write_all(&first_bytes()).unwrap();
            // Settings of the server: this one is served.
            let mut head = [0; 9];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(head[3], 4);
            stream
        })
        .collect();
    // One that finds no room is served all the same.
    let mut requester = Requester::up(server.address, None);
    requester.ask(1, 1);
    eventually("an answer without a look", || server.answered() == 1);
    requester.answer(1, 1);
    drop(connections);
    // And the next one finds room again.
    let mut requester = Requester::up(server.address, None);
    requester.ask(2, 1);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.answered(), 1);
    requester.answer(2, 1);
}
