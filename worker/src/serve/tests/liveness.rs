//! A whole worker beside a pod whose device is played: what becomes of a step while that one is busy, and when it hangs.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use m1_exchange::Lane;
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Answer, Credit};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::transport::{Inbound, Link};

/// What the other pod's device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Turns and answers.
    Serves,
    /// Neither, as it announced for so long.
    Announced(Duration),
    /// Neither.
    Hangs,
}

/// Pod 1 of a group, with the worker's own service and a device of its own kind.
struct Double {
    address: SocketAddr,
    does: watch::Sender<Does>,
    answered: Arc<AtomicU64>,
}

impl Double {
    async fn start() -> Self {
        let text = std::fs::read_to_string(demo().join("config.json")).unwrap();
        let arch = m1_arch::Architecture::from_json(&text).unwrap();
        let checkpoint = m1_weights::Checkpoint::open(&demo()).unwrap();
        let (digest, values) = crate::open::digests(&checkpoint, None).unwrap();
        let (events, inbox) = DeviceHandle::channel();
        let status = Arc::new(SharedStatus::new(Default::default()));
        status.serve_peers(true);
        let service = DispatchService {
            guard: Default::default(),
            identity: Some(Arc::new(Identity { pod: 1, digest, values, arch })),
            events,
            status: status.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            generations: Arc::default(),
            driven: Default::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(ExpertDispatchServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (does, told) = watch::channel(Does::Serves);
        let answered = Arc::new(AtomicU64::new(0));
        tokio::spawn(device(inbox, status, told, answered.clone()));
        Self { address, does, answered }
    }
}

/// Turns every 20 ms and answers every request with sums of zeros, while it is told to.
async fn device(
    mut inbox: mpsc::Receiver<DeviceMessage>,
    status: Arc<SharedStatus>,
    mut told: watch::Receiver<Does>,
    answered: Arc<AtomicU64>,
) {
    let mut links: [Option<Link>; 3] = Default::default();
    let at = |lane: Lane| Lane::ALL.iter().position(|other| *other == lane).unwrap();
    let mut turn = tokio::time::interval(TICK);
    loop {
        let does = *told.borrow_and_update();
        match does {
            Does::Serves => {}
            Does::Announced(length) => status.announce(length),
            Does::Hangs => {}
        }
        if does != Does::Serves {
            if told.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            _ = turn.tick() => status.turn(),
            message = inbox.recv() => match message {
                Some(DeviceMessage::Dispatch(Inbound::ClientUp { lane, link, .. })) => links[at(lane)] = Some(link),
                Some(DeviceMessage::Dispatch(Inbound::ClientAsks { lane, request, .. })) => {
                    let Some(link) = &links[at(lane)] else { continue };
                    let sums = Bytes::from(vec![0; request.hidden.len()]);
                    link.send(Kind::Answer(Answer { id: request.id, tokens: request.tokens, sums }));
                    link.send(Kind::Credit(Credit { frames: 1 }));
                    answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                Some(_) => {}
                None => return,
            },
        }
    }
}

/// The worker, the double, and a sequence that needs both for every token.
async fn group() -> (Pod, Double, Streaming<pb::GenerateEvent>) {
    let (pod, double) = (Pod::start(&demo(), "0", "0").await, Double::start().await);
    let placed = [(0, pod.address, "ffff0000"), (1, double.address, "0000ffff")];
    let pods = placed.map(|(pod, address, holds)| pb::PodPlacement { pod, address: address.to_string(), holds: holds.repeat(8) });
    let request = pb::ApplyPlacementRequest {
        lease_transitions: 0,
        epoch: 3,
        layers: 8,
        experts: 32,
        pods: pods.to_vec(),
        model: String::new(),
    };
    pod.client().await.apply_placement(request).await.unwrap();
    pod.until("/readyz", 200, "ok").await;
    let events = pod.begin(30_000).await;
    assert!(double.answered.load(std::sync::atomic::Ordering::Relaxed) > 0, "a token needs both pods");
    (pod, double, events)
}

/// What the worker thinks of the double.
async fn state(client: &mut WorkerClient<Channel>) -> String {
    client.status(pb::StatusRequest {}).await.unwrap().into_inner().peers[0].state.clone()
}

/// How long it takes until the worker thinks so.
async fn until_state(client: &mut WorkerClient<Channel>, wanted: &str) -> Duration {
    let began = Instant::now();
    while state(client).await != wanted {
        assert!(began.elapsed() < LONG, "it is never {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_waits_for_a_pod_that_is_busy_as_it_said() {
    let (pod, double, mut events) = group().await;
    let mut client = pod.client().await;
    double.does.send_replace(Does::Announced(Duration::from_secs(4)));
    let began = Instant::now();
    let mut tokens = 0;
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(state(&mut client).await, "connected", "after {:?}", began.elapsed());
        // What was on its way comes; nothing ends.
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(5), events.message()).await {
            assert!(matches!(event.unwrap().unwrap().event, Some(Event::Tokens(_))));
            tokens += 1;
        }
    }
    let served = double.answered.load(std::sync::atomic::Ordering::Relaxed);
    double.does.send_replace(Does::Serves);
    let event = tokio::time::timeout(LONG, events.message()).await.expect("it goes on").unwrap().unwrap();
    assert!(matches!(event.event, Some(Event::Tokens(_))), "{tokens} tokens before: {event:?}");
    assert!(double.answered.load(std::sync::atomic::Ordering::Relaxed) > served, "it waited for the double");
    pod.signal().await;
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_hangs_is_dead_in_two_seconds_and_what_waits_for_it_ends() {
    let (pod, double, events) = group().await;
    let mut client = pod.client().await;
    double.does.send_replace(Does::Hangs);
    let took = until_state(&mut client, "dead").await;
    assert!(took > Duration::from_millis(1700) && took < Duration::from_millis(2500), "dead after {took:?}");
    let (reason, _, word) = end(events).await;
    assert_eq!((reason, word.as_str()), (pb::FinishReason::FinishError, "ExpertUnavailable"));
    double.does.send_replace(Does::Serves);
    until_state(&mut client, "connected").await;
    // One that stays longer than it said is dead two seconds after that.
    double.does.send_replace(Does::Announced(Duration::from_secs(1)));
    let took = until_state(&mut client, "dead").await;
    assert!(took > Duration::from_millis(2700) && took < Duration::from_millis(3500), "dead after {took:?}");
    pod.signal().await;
    pod.ended().await;
}
