//! Two pods over loopback, each with a device that drives its decode lane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::dialer::dialer;
use crate::support::service::service;
use bytes::Bytes;
use m1_arch::LayerId;
use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Answer, Credit};
use m1_runtime::tls::{self, Tls};
use m1_worker::device::{DeviceHandle, DeviceMessage};
use m1_worker::status::SharedStatus;
use m1_worker::transport::{
    DeviceIo, Dialer, Inbound, Link, PeerAddress, RequestHead, Said, Transport, request_frame, serve_driven,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Nothing here takes as long.
pub const LONG: Duration = Duration::from_secs(20);
pub const TICK: Duration = Duration::from_millis(20);
pub const SERVER: PodId = PodId(0);
/// One row of the demo.
const ROW: usize = 128 * 4;

/// An identity that all members share.
pub fn member() -> Tls {
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
pub fn threads() -> Runtime {
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
pub struct Told {
    /// To compute for so many ms, once.
    pub compute: AtomicU64,
    /// To do pieces of 1 ms all the time.
    pub busy: AtomicBool,
    pub turns: AtomicU64,
    pub answered: AtomicU64,
    over: AtomicBool,
}

/// A pod that is asked.
pub struct Server {
    pub address: SocketAddr,
    pub status: Arc<SharedStatus>,
    pub told: Arc<Told>,
    thread: Option<std::thread::JoinHandle<()>>,
    runtime: Option<Runtime>,
}

impl Server {
    pub fn new(tls: Option<Tls>) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), tls, true)
    }

    /// `drives`: whether its device drives anything.
    pub fn at(address: SocketAddr, tls: Option<Tls>, drives: bool) -> Self {
        let runtime = threads();
        let (events, inbox) = DeviceHandle::channel();
        let (status, told) = (Arc::new(SharedStatus::new(Default::default())), Arc::<Told>::default());
        status.serve_peers(true);
        let io = DeviceIo::new().unwrap();
        let service = service(events.clone(), status.clone());
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

    pub fn computes(&self, length: Duration) {
        self.status.announce(length + Duration::from_secs(1));
        self.told.compute.store(length.as_millis() as u64, Ordering::Release);
        eventually("a device that computes", || self.told.compute.load(Ordering::Acquire) == 0);
    }

    pub fn answered(&self) -> u64 {
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
pub struct Requester {
    pub io: DeviceIo,
    inbox: mpsc::Receiver<DeviceMessage>,
    pub status: Arc<SharedStatus>,
    pub link: Option<Link>,
    _stop: DropGuard,
    _runtime: Runtime,
}

impl Requester {
    /// Dials, and waits until the decode lane stands.
    pub fn up(address: SocketAddr, tls: Option<Tls>) -> Self {
        let mut requester = Self::dial(address, tls);
        requester.link_up();
        requester
    }

    pub fn dial(address: SocketAddr, tls: Option<Tls>) -> Self {
        let runtime = threads();
        let (events, inbox) = DeviceHandle::channel();
        let (status, stop, io) =
            (Arc::new(SharedStatus::new(Default::default())), CancellationToken::new(), DeviceIo::new().unwrap());
        let dialer = Dialer { tls, device: Some(io.handle()), ..dialer(events.clone(), status.clone()) };
        let entered = runtime.enter();
        dialer.dial(&PeerAddress { pod: SERVER, address: address.to_string() }, &stop);
        drop(entered);
        tick(&runtime, events, status.clone());
        Self { io, inbox, status, link: None, _stop: stop.drop_guard(), _runtime: runtime }
    }

    /// The next message about the decode lane.
    pub fn heard(&mut self) -> Inbound {
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
    pub fn link_up(&mut self) {
        let began = Instant::now();
        while began.elapsed() < LONG {
            if let Inbound::LinkUp { link, .. } = self.heard() {
                return self.link = Some(link);
            }
        }
        panic!("no link");
    }

    pub fn generation(&self) -> u64 {
        self.link.as_ref().unwrap().generation
    }

    /// Hands a request to the lane.
    pub fn ask(&self, id: u64, rows: usize) {
        let head = RequestHead { id, epoch: 1, layer: LayerId(0), tokens: rows as u32 };
        let frame = request_frame(head, &[1, 2].repeat(rows), &[0.5, 0.5].repeat(rows), Bytes::from(vec![id as u8; rows * ROW]));
        assert!(self.link.as_ref().unwrap().send(Kind::Request(frame)));
    }

    /// Waits for the answer, on the connection that was asked.
    pub fn answer(&mut self, wanted: u64, rows: usize) {
        match self.heard() {
            Inbound::LinkSays { said: Said::Answer { id, tokens, sums }, generation, .. } => {
                assert_eq!((id, tokens as usize, generation), (wanted, rows, self.generation()));
                assert!(sums.len() == rows * ROW && sums.iter().all(|byte| *byte == id as u8));
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn round_trip(&mut self, id: u64, rows: usize) {
        self.ask(id, rows);
        self.answer(id, rows);
    }
}

/// Waits for what another thread does, without looking.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
