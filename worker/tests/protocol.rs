//! What a peer can send to the dispatch service: every frame that breaks the protocol is answered by `Refused` with its
//! reason, ends that connection only, and never reaches the device thread. The service is the worker's own, over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support {
    pub mod service;
}

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use m1_arch::LayerId;
use m1_exchange::Lane;
use m1_proto::dispatch::expert_dispatch_client::ExpertDispatchClient;
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Answer, Credit, Frame, Heartbeat, Hello, Request};
use m1_worker::device::{DeviceHandle, DeviceMessage};
use m1_worker::status::SharedStatus;
use m1_worker::transport::{Inbound, RequestHead, request_frame};
use support::service::{identity, service};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Streaming;

/// A dispatch service and what reaches its device thread.
struct Stand {
    address: String,
    inbox: mpsc::Receiver<DeviceMessage>,
    status: Arc<SharedStatus>,
}

impl Stand {
    async fn new() -> Self {
        let stand = Self::loading().await;
        stand.status.serve_peers(true);
        stand
    }

    /// A pod that has not loaded its experts.
    async fn loading() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (events, inbox) = DeviceHandle::channel();
        let status = Arc::new(SharedStatus::new(Default::default()));
        let service = service(events, status.clone());
        let server = tonic::transport::Server::builder().add_service(ExpertDispatchServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, inbox, status }
    }

    async fn connect(&self) -> Connection {
        let (frames, outgoing) = mpsc::channel(16);
        let mut client = ExpertDispatchClient::connect(self.address.clone()).await.unwrap();
        // The answer's head comes at once, before any frame.
        let answers = client.exchange(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Connection { frames, answers }
    }

    async fn greeted(&mut self) -> Connection {
        let mut connection = self.connect().await;
        connection.send(Kind::Hello(hello())).await;
        let Kind::Hello(answer) = connection.next().await.unwrap() else { panic!("no Hello") };
        assert!(answer.credits > 0);
        assert!(matches!(self.heard().await, Inbound::ClientUp { .. }));
        connection
    }

    async fn heard(&mut self) -> Inbound {
        match tokio::time::timeout(Duration::from_secs(5), self.inbox.recv()).await.expect("something is heard").unwrap() {
            DeviceMessage::Dispatch(inbound) => inbound,
            other => panic!("{other:?}"),
        }
    }
}

struct Connection {
    frames: mpsc::Sender<Frame>,
    answers: Streaming<Frame>,
}

impl Connection {
    async fn send(&self, kind: Kind) {
        self.frames.send(Frame { kind: Some(kind) }).await.unwrap();
    }

    /// The next frame that is no heartbeat; none at the end of the stream.
    async fn next(&mut self) -> Option<Kind> {
        loop {
            let frame = tokio::time::timeout(Duration::from_secs(5), self.answers.message()).await.expect("an answer");
            match frame.ok()??.kind? {
                Kind::Heartbeat(_) => continue,
                kind => return Some(kind),
            }
        }
    }

    /// (reason, message) of the refusal that ends the stream.
    async fn refusal(&mut self) -> (String, String) {
        let Some(Kind::Refused(refused)) = self.next().await else { panic!("no refusal") };
        assert!(self.next().await.is_none(), "the stream ends");
        (refused.reason, refused.message)
    }
}

/// Reason and first words of the refusal, and what brings it about.
type Change<T> = (&'static str, &'static str, fn(&mut T));

fn hello() -> Hello {
    identity(1).hello(Lane::Decode, 1, 0)
}

/// Two rows for layer 3.
fn request() -> Request {
    let head = RequestHead { id: 7, epoch: 1, layer: LayerId(3), tokens: 2 };
    request_frame(head, &[0, 31, u16::MAX, 4], &[0.5, 0.5, 0.0, 1.0], Bytes::from(vec![0; 2 * 128 * 4]))
}

#[tokio::test]
async fn a_good_request_reaches_the_device_and_heartbeats_come() {
    let mut stand = Stand::new().await;
    let mut connection = stand.greeted().await;
    connection.send(Kind::Request(request())).await;
    let Inbound::ClientAsks { request, .. } = stand.heard().await else { panic!("no request") };
    assert_eq!((request.id, request.tokens, request.slots), (7, 2, 2));
    connection.send(Kind::Heartbeat(Heartbeat { sent_us: 42, ..Default::default() })).await;
    stand.status.turn();
    let beat = loop {
        let frame = connection.answers.message().await.unwrap().unwrap();
        if let Some(Kind::Heartbeat(beat)) = frame.kind.filter(|kind| matches!(kind, Kind::Heartbeat(b) if b.echo_us == 42)) {
            break beat;
        }
    };
    assert_eq!(beat.echo_us, 42);
}

#[tokio::test]
async fn a_greeting_that_does_not_fit_is_refused() {
    let stand = Stand::new().await;
    let changes: [Change<Hello>; 7] = [
        ("ValueOutOfRange", "pod: 0 given, allowed: another one", |h| h.pod = 0),
        ("ValueOutOfRange", "pod: 65537 given, allowed: 0 to 63", |h| h.pod = 65_537),
        ("ProtocolMismatch", "protocol: the peer has 9", |h| h.protocol = 9),
        ("WeightsMismatch", "weights_digest: the peer has other", |h| h.weights_digest = "other".into()),
        ("ShapeMismatch", "dtype: the peer has bfloat16", |h| h.dtype = "bfloat16".into()),
        ("ShapeMismatch", "hidden_size: the peer has 6144", |h| h.hidden_size = 6144),
        ("ValueOutOfRange", "lane: 7 given", |h| h.lane = 7),
    ];
    for (reason, words, change) in changes {
        let mut connection = stand.connect().await;
        let mut hello = hello();
        change(&mut hello);
        connection.send(Kind::Hello(hello)).await;
        let (given, message) = connection.refusal().await;
        assert_eq!(given, reason, "{message}");
        assert!(message.starts_with(words), "{message}");
    }
    let mut connection = stand.connect().await;
    connection.send(Kind::Request(request())).await;
    assert_eq!(connection.refusal().await.0, "UnexpectedFrame");
}

#[tokio::test]
async fn a_frame_of_a_wrong_size_layer_or_expert_ends_its_connection_only() {
    let mut stand = Stand::new().await;
    let changes: [Change<Request>; 6] = [
        ("WrongSize", "hidden: 3 bytes given, 1024 needed for 2 tokens", |r| r.hidden = Bytes::from_static(b"abc")),
        ("WrongSize", "experts: 8 bytes given, 12 needed for 3 tokens", |r| r.tokens = 3),
        ("ValueOutOfRange", "layer: 8 given, allowed: 0 to 7", |r| r.layer = 8),
        ("ValueOutOfRange", "experts: 32 given, allowed: 0 to 31", |r| r.experts = Bytes::from_static(&[32, 0, 0, 0, 0, 0, 0, 0])),
        ("ValueOutOfRange", "slots: 0 given, allowed: 1 to 2", |r| r.slots = 0),
        ("ValueOutOfRange", "weights: ", |r| r.weights = Bytes::from([f32::INFINITY.to_le_bytes(); 4].concat())),
    ];
    for (reason, words, change) in changes {
        let mut connection = stand.greeted().await;
        let mut request = request();
        change(&mut request);
        connection.send(Kind::Request(request)).await;
        let (given, message) = connection.refusal().await;
        assert_eq!(given, reason, "{message}");
        assert!(message.starts_with(words), "{message}");
        assert!(matches!(stand.heard().await, Inbound::ClientDown { .. }), "the request did not get through");
    }
    for kind in [Kind::Answer(Answer::default()), Kind::Credit(Credit { frames: 1 }), Kind::Hello(hello())] {
        let mut connection = stand.greeted().await;
        connection.send(kind).await;
        assert_eq!(connection.refusal().await.0, "UnexpectedFrame");
        assert!(matches!(stand.heard().await, Inbound::ClientDown { .. }));
    }
    let connection = stand.greeted().await;
    connection.send(Kind::Request(request())).await;
    assert!(matches!(stand.heard().await, Inbound::ClientAsks { .. }), "others are served on");
}

#[tokio::test]
async fn nobody_is_greeted_before_the_experts_are_here() {
    let stand = Stand::loading().await;
    let mut client = ExpertDispatchClient::connect(stand.address).await.unwrap();
    let (_frames, outgoing) = mpsc::channel(1);
    let status = client.exchange(ReceiverStream::new(outgoing)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "this pod has not loaded its experts yet"));
}
