//! The requester's side over gRPC: one stream per peer and lane, kept up with a bounded back-off until it is cancelled, and the
//! opening of a stream for any purpose.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_client::ExpertDispatchClient;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Frame, Hello, Refused};
use m1_runtime::member::{MeantFor, Member, WRONG_MEMBER};
use m1_runtime::tls::{self, Tls, urgent};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::coop::consume_budget;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use super::device_io::{DeviceIoHandle, looked_for};
use super::device_stream::DeviceConnector;
use super::driven::{DRIVEN, DRIVEN_GREETING};
use super::outgoing::Outgoing;
use super::wire::{Identity, Purpose, WireError, check_answer};
use super::{HTTP2_FRAME, HTTP2_WINDOW, Inbound, Link, PeerAddress, Said, Transport, pulse};
use crate::device::DeviceHandle;
use crate::status::SharedStatus;

/// Half of the first pause between two attempts to connect, and the longest: a restarted pod is found within half a second, a dead one
/// costs two attempts a second for each of its lanes.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// A connection attempt beyond this counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is not greeted within this is given up, at either end.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is probed after this and given up after as much again: a pod lost with its node shows no other sign.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Longest word of a refusal by metadata.
const REASON: usize = 64;

/// Opens and keeps this pod's connections to its peers.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// What peers must agree with.
    pub identity: Arc<Identity>,
    /// Where frames go.
    pub events: DeviceHandle,
    /// This pod's placement epoch.
    pub status: Arc<SharedStatus>,
    /// Tracks the connection tasks, so that drain can wait for them.
    pub tasks: TaskTracker,
    /// Numbers connections.
    pub generations: Arc<AtomicU64>,
    /// This pod's identity; none where nothing is encrypted.
    pub tls: Option<Tls>,
    /// Drives the decode lane where the peer's device does so too; none: it is like any other.
    pub device: Option<DeviceIoHandle>,
    /// Who this pod is; its peers are the other pods of the same group of the same deployment. None where nobody said it: then
    /// whoever answers at a peer's address is believed to be that peer.
    pub member: Option<Member>,
}

/// Why one connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the address is not host:port")]
    Address(#[source] tonic::transport::Error),
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    #[error("stream ended: {0}")]
    Stream(#[source] Status),
    #[error("the peer closed the stream")]
    Closed,
    #[error("no greeting in time")]
    Silent,
    #[error("dropped by this pod")]
    Dropped,
    #[error("its heartbeats have ended")]
    NoPulse,
    #[error("the peer's device does not drive it")]
    NotDriven,
    #[error("protocol: {0}")]
    Wire(#[from] WireError),
    #[error("refused: {reason}: {message}")]
    Refused { reason: String, message: String },
}

impl From<Status> for LinkError {
    /// A refusal that names its reason is one by the peer; whatever else ends a stream may pass.
    fn from(status: Status) -> Self {
        let reason = status.metadata().get("m1-reason").and_then(|reason| reason.to_str().ok());
        match reason.filter(|_| status.code() == tonic::Code::FailedPrecondition) {
            Some(reason) => Self::Refused { reason: reason.chars().take(REASON).collect(), message: status.message().to_owned() },
            None => Self::Stream(status),
        }
    }
}

impl From<Refused> for LinkError {
    fn from(Refused { reason, message }: Refused) -> Self {
        Self::Refused { reason, message }
    }
}

/// The pauses between attempts to connect: they grow while attempts fail at once.
#[derive(Debug)]
pub(super) struct Pause {
    length: Duration,
    began: Instant,
}

impl Default for Pause {
    fn default() -> Self {
        Self { length: BACKOFF.0, began: Instant::now() }
    }
}

impl Pause {
    /// An attempt begins.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// The attempt has failed, or its connection has ended.
    pub async fn wait(&mut self) {
        let held = self.began.elapsed() > CONNECT_TIMEOUT;
        self.length = if held { BACKOFF.0 } else { (self.length * 2).min(BACKOFF.1) };
        tokio::time::sleep(self.length).await;
    }
}

impl Transport for Dialer {
    fn dial(&self, peer: &PeerAddress, stop: &CancellationToken) {
        let (known, knows) = watch::channel(false);
        let (lost, losses) = watch::channel(0);
        self.spawn(stop, self.clone().keep(peer.clone(), Lane::Decode, Some((known, losses))));
        self.spawn(stop, self.clone().keep(peer.clone(), Lane::Prefill, None));
        self.spawn(stop, self.clone().keep_pulse(peer.clone(), knows, lost));
    }
}

impl Dialer {
    fn spawn(&self, stop: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        let stop = stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Keeps one lane up. `pulse`: is told whether the server has a lane for heartbeats, with every greeting, and tells how often those were lost.
    async fn keep(self, peer: PeerAddress, lane: Lane, mut pulse: Option<(watch::Sender<bool>, watch::Receiver<u64>)>) {
        let mut pause = Pause::default();
        let mut said = String::new();
        let mut driven = self.device.clone();
        loop {
            let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
            pause.begin();
            let error = match (&mut pulse, driven.take()) {
                (Some((known, losses)), Some(device)) => self.driven(&peer, generation, known, losses, device).await,
                (pulse, _) => {
                    let connection = self.clone().connection(
                        peer.clone(),
                        lane,
                        generation,
                        pulse.as_ref().map(|(known, _)| known.clone()),
                        None,
                    );
                    let Err(error) = connection.await;
                    error
                }
            };
            if self.events.dispatch(Inbound::LinkDown { peer: peer.pod, lane, generation }).await.is_err() {
                return;
            }
            // Such a peer is asked as if there were no other way, at once. When this connection has ended it may be another one.
            if matches!(error, LinkError::NotDriven) {
                continue;
            }
            driven = self.device.clone();
            // Whoever has lost the heartbeats has said so; attempts that end with it would say it again and again.
            if !matches!(error, LinkError::NoPulse) {
                self.report(&peer, lane, error, &mut said).await;
            }
            pause.wait().await;
        }
    }

    /// The decode lane, driven by the device, until it ends. All that must not wait for a device that computes is here: pauses, and what is known from
    /// heartbeats. Nothing else says that a peer is gone without a word while rows are on their way to it.
    async fn driven(
        &self,
        peer: &PeerAddress,
        generation: u64,
        known: &watch::Sender<bool>,
        losses: &mut watch::Receiver<u64>,
        device: DeviceIoHandle,
    ) -> LinkError {
        losses.mark_unchanged();
        let elsewhere = Handle::current();
        let connection =
            self.clone().connection(peer.clone(), Lane::Decode, generation, Some(known.clone()), Some((device.clone(), elsewhere)));
        let connection = AbortOnDropHandle::new(device.spawn(connection));
        tokio::select! {
            ended = connection => match ended {
                Ok(Err(error)) => error,
                // The device has ended.
                Err(_) => LinkError::Closed,
            },
            Ok(()) = losses.changed() => LinkError::NoPulse,
        }
    }

    /// Says a failure once, not at every attempt.
    async fn report(&self, peer: &PeerAddress, lane: Lane, error: LinkError, said: &mut String) {
        let words = error.to_string();
        if *said != words {
            tracing::info!(peer = peer.pod.0, address = %peer.address, ?lane, error = %words, "dispatch link is down");
            *said = words;
        }
        if let LinkError::Refused { reason, message } = error {
            // A closed inbox ends the loop at its next event.
            let _ = self.events.dispatch(Inbound::PeerRefused { peer: peer.pod, reason, message }).await;
        }
    }

    async fn connection(
        self,
        peer: PeerAddress,
        lane: Lane,
        generation: u64,
        pulse: Option<watch::Sender<bool>>,
        driven: Option<(DeviceIoHandle, Handle)>,
    ) -> Result<Infallible, LinkError> {
        let (link, outgoing) = Link::new(generation);
        let by_device = driven.is_some();
        let (hello, answers) = self.open(&peer, Purpose::Rows(lane), &link, outgoing, driven).await?;
        if let Some(pulse) = pulse {
            pulse.send_replace(hello.pulse);
        }
        self.status.pulses().greeted(peer.pod);
        let credits = hello.credits;
        let up = Inbound::LinkUp { peer: peer.pod, lane, link: link.clone(), credits };
        self.events.dispatch(up).await.map_err(|_| LinkError::Closed)?;
        tracing::info!(peer = peer.pod.0, address = %peer.address, ?lane, credits, by_device, "dispatch link is up");
        // A server without a lane for heartbeats sends them here, where it is asked for them. A device never has these: it may compute.
        let beats = lane == Lane::Decode && !hello.pulse && !by_device;
        self.relay(peer.pod, lane, link, answers, beats).await
    }

    /// Opens a stream on a connection of its own; done when it is greeted.
    pub(super) async fn open(
        &self,
        peer: &PeerAddress,
        purpose: Purpose,
        link: &Link,
        outgoing: mpsc::Receiver<Frame>,
        driven: Option<(DeviceIoHandle, Handle)>,
    ) -> Result<(Hello, Streaming<Frame>), LinkError> {
        let by_device = driven.is_some();
        let frames = Outgoing::new(outgoing, driven.as_ref().map(|(device, _)| device.shared().clone()));
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
            .map_err(LinkError::Address)?
            .max_frame_size(HTTP2_FRAME)
            .initial_stream_window_size(HTTP2_WINDOW)
            .initial_connection_window_size(HTTP2_WINDOW);
        let connected = match driven {
            Some((io, elsewhere)) => {
                let connector = DeviceConnector { tls: self.tls.clone(), io, elsewhere, limit: CONNECT_TIMEOUT };
                endpoint.http2_max_header_list_size(urgent::HEADER_LIST).connect_with_connector(connector).await
            }
            None => {
                let endpoint = endpoint
                    .connect_timeout(CONNECT_TIMEOUT)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .keep_alive_while_idle(true);
                tls::connect(endpoint, self.tls.as_ref()).await
            }
        };
        let channel = connected.map_err(LinkError::Connect)?;
        let meant = self.member.as_ref().map(|own| own.deployment.member(own.group.clone(), peer.pod.0));
        let mut client = ExpertDispatchClient::with_interceptor(channel, MeantFor::new(meant.as_ref()));
        let greeting = async {
            let response = client.exchange(frames).await?;
            if by_device && !response.metadata().contains_key(DRIVEN) {
                return Err(LinkError::NotDriven);
            }
            link.send(Kind::Hello(self.identity.greeting(purpose, self.status.epoch(), 0)));
            let mut answers = response.into_inner();
            let hello = self.greeted(peer.pod, answers.next().await)?;
            Ok((hello, answers))
        };
        let limit = async {
            match by_device {
                true => looked_for(DRIVEN_GREETING).await,
                false => tokio::time::sleep(GREETING_TIMEOUT).await,
            }
        };
        tokio::select! {
            biased;
            greeted = greeting => greeted,
            () = limit => Err(LinkError::Silent),
        }
    }

    fn greeted(&self, peer: PodId, first: Option<Result<Frame, Status>>) -> Result<Hello, LinkError> {
        match first.ok_or(LinkError::Closed)??.kind {
            Some(Kind::Hello(hello)) => {
                self.identity.check(&hello)?;
                // An address is no proof: another pod may have come to it.
                if hello.pod != u32::from(peer.0) {
                    let message = format!("pod {} answers at the address of pod {peer}", hello.pod);
                    return Err(LinkError::Refused { reason: WRONG_MEMBER.into(), message });
                }
                Ok(hello)
            }
            Some(Kind::Refused(refused)) => Err(refused.into()),
            _ => Err(WireError::Order { given: "another frame", allowed: "Hello" }.into()),
        }
    }

    async fn relay(
        &self,
        peer: PodId,
        lane: Lane,
        link: Link,
        mut answers: Streaming<Frame>,
        beats: bool,
    ) -> Result<Infallible, LinkError> {
        let clock = Instant::now();
        let mut beat = pulse::beats();
        let mut closed = pin!(link.until_closed());
        loop {
            let frame = tokio::select! {
                biased;
                () = &mut closed => return Err(LinkError::Dropped),
                frame = answers.next() => frame.ok_or(LinkError::Closed)??,
                _ = beat.tick(), if beats => {
                    link.send(pulse::question(&self.status, &clock));
                    continue;
                }
            };
            // A peer that says much does not keep others from being heard.
            consume_budget().await;
            if let Some(Kind::Heartbeat(heartbeat)) = &frame.kind {
                pulse::read(&self.status, peer, heartbeat, &clock);
                continue;
            }
            if let Some(said) = self.said(frame)? {
                let generation = link.generation;
                self.events.dispatch(Inbound::LinkSays { peer, lane, generation, said }).await.map_err(|_| LinkError::Closed)?;
            }
        }
    }

    fn said(&self, frame: Frame) -> Result<Option<Said>, LinkError> {
        Ok(Some(match frame.kind {
            Some(Kind::Answer(answer)) => {
                check_answer(&self.identity.arch, &answer)?;
                Said::Answer { id: answer.id, tokens: answer.tokens, sums: answer.sums }
            }
            Some(Kind::NotHere(n)) => Said::NotHere { id: n.id, epoch: n.epoch },
            Some(Kind::Credit(c)) => Said::Credit { frames: c.frames },
            Some(Kind::Refused(refused)) => return Err(refused.into()),
            Some(_) => {
                return Err(
                    WireError::Order { given: "a requester's frame", allowed: "Answer, NotHere, Credit or Heartbeat" }.into()
                );
            }
            None => return Ok(None),
        }))
    }
}
