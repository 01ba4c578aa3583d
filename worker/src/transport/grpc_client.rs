//! The requester's side over gRPC: one stream per peer and lane, kept up with a bounded back-off until it is cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_client::ExpertDispatchClient;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Frame, Heartbeat};
use m1_runtime::tls::{self, Tls};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Endpoint;

use super::wire::{Identity, WireError, check_answer};
use super::{HTTP2_FRAME, HTTP2_WINDOW, Inbound, Link, PeerAddress, Said, Transport};
use crate::device::Events;
use crate::status::SharedStatus;

/// First and longest pause between two attempts to connect: a restarted pod is found within half a second, a dead one
/// costs two connection attempts a second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// A connection attempt beyond this counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is not greeted within this is given up, at either end.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is probed after this and given up after as much again: a pod lost with its node shows no other sign.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Interval of heartbeats, from which a peer's progress and the round trip are read.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(100);

/// Opens and keeps this pod's connections to its peers.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// What peers must agree with.
    pub identity: Arc<Identity>,
    /// Where frames go.
    pub events: Events,
    /// This pod's placement epoch.
    pub status: Arc<SharedStatus>,
    /// Tracks the connection tasks, so that drain can wait for them.
    pub tasks: TaskTracker,
    /// Numbers connections.
    pub generations: Arc<AtomicU64>,
    /// This pod's identity; none where nothing is encrypted.
    pub tls: Option<Tls>,
}

/// Why one connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the address is not host:port")]
    Address(#[source] tonic::transport::Error),
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    #[error("stream ended: {0}")]
    Stream(#[from] tonic::Status),
    #[error("the peer closed the stream")]
    Closed,
    #[error("no greeting within {GREETING_TIMEOUT:?}")]
    Silent,
    #[error("dropped by this pod")]
    Dropped,
    #[error("protocol: {0}")]
    Wire(#[from] WireError),
    #[error("refused: {reason}: {message}")]
    Refused { reason: String, message: String },
}

impl Transport for Dialer {
    fn dial(&self, peer: &PeerAddress, stop: &CancellationToken) {
        for lane in [Lane::Decode, Lane::Prefill] {
            let (dialer, peer, stop) = (self.clone(), peer.clone(), stop.clone());
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = dialer.keep(peer, lane) => {}
                }
            });
        }
    }
}

impl Dialer {
    async fn keep(self, peer: PeerAddress, lane: Lane) {
        let mut pause = BACKOFF.0;
        let mut said = String::new();
        loop {
            let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
            let began = Instant::now();
            let Err(error) = self.connection(&peer, lane, generation).await;
            if self.events.dispatch(Inbound::RequesterDown { peer: peer.pod, lane, generation }).await.is_err() {
                return;
            }
            self.report(&peer, lane, error, &mut said).await;
            pause = if began.elapsed() > CONNECT_TIMEOUT { BACKOFF.0 } else { (pause * 2).min(BACKOFF.1) };
            tokio::time::sleep(pause).await;
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

    async fn connection(&self, peer: &PeerAddress, lane: Lane, generation: u64) -> Result<std::convert::Infallible, LinkError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
            .map_err(LinkError::Address)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .max_frame_size(HTTP2_FRAME)
            .initial_stream_window_size(HTTP2_WINDOW)
            .initial_connection_window_size(HTTP2_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = tls::connect(endpoint, self.tls.as_ref()).await.map_err(LinkError::Connect)?;
        let (link, outgoing) = Link::new(generation);
        link.send(Kind::Hello(self.identity.hello(lane, self.status.epoch(), 0)));
        let mut client = ExpertDispatchClient::new(channel);
        let greeting = async {
            let mut answers = client.exchange(ReceiverStream::new(outgoing)).await?.into_inner();
            let credits = self.greeted(answers.next().await).await?;
            Ok::<_, LinkError>((answers, credits))
        };
        let (answers, credits) = tokio::time::timeout(GREETING_TIMEOUT, greeting).await.map_err(|_| LinkError::Silent)??;
        let up = Inbound::RequesterUp { peer: peer.pod, lane, link: link.clone(), credits };
        self.events.dispatch(up).await.map_err(|_| LinkError::Closed)?;
        tracing::info!(peer = peer.pod.0, address = %peer.address, ?lane, credits, "dispatch link is up");
        self.relay(peer.pod, lane, link, answers).await
    }

    async fn greeted(&self, first: Option<Result<Frame, tonic::Status>>) -> Result<u32, LinkError> {
        match first.ok_or(LinkError::Closed)??.kind {
            Some(Kind::Hello(hello)) => {
                self.identity.check(&hello)?;
                Ok(hello.credits)
            }
            Some(Kind::Refused(refused)) => Err(LinkError::Refused { reason: refused.reason, message: refused.message }),
            _ => Err(WireError::Order { given: "another frame", allowed: "Hello" }.into()),
        }
    }

    async fn relay(
        &self,
        peer: PodId,
        lane: Lane,
        link: Link,
        mut answers: tonic::Streaming<Frame>,
    ) -> Result<std::convert::Infallible, LinkError> {
        let clock = Instant::now();
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            let frame = tokio::select! {
                biased;
                () = link.until_closed() => return Err(LinkError::Dropped),
                frame = answers.next() => frame.ok_or(LinkError::Closed)??,
                _ = beat.tick(), if lane == Lane::Decode => {
                    let sent_us = clock.elapsed().as_micros() as u64;
                    link.send(Kind::Heartbeat(Heartbeat { sent_us, epoch: self.status.epoch(), ..Default::default() }));
                    continue;
                }
            };
            if let Some(said) = self.said(frame, &clock)? {
                let generation = link.generation;
                self.events.dispatch(Inbound::Server { peer, lane, generation, said }).await.map_err(|_| LinkError::Closed)?;
            }
        }
    }

    fn said(&self, frame: Frame, clock: &Instant) -> Result<Option<Said>, LinkError> {
        Ok(Some(match frame.kind {
            Some(Kind::Answer(answer)) => {
                check_answer(&self.identity.arch, &answer)?;
                Said::Answer { id: answer.id, tokens: answer.tokens, sums: answer.sums }
            }
            Some(Kind::NotHere(n)) => Said::NotHere { id: n.id, epoch: n.epoch },
            Some(Kind::Credit(c)) => Said::Credit { frames: c.frames },
            Some(Kind::Heartbeat(h)) => {
                let echoed = (h.echo_us > 0).then(|| (clock.elapsed().as_micros() as u64).saturating_sub(h.echo_us) as u32);
                Said::Heartbeat { progress: h.progress, epoch: h.epoch, round_trip_us: echoed }
            }
            Some(Kind::Refused(refused)) => return Err(LinkError::Refused { reason: refused.reason, message: refused.message }),
            Some(_) => {
                return Err(
                    WireError::Order { given: "a requester's frame", allowed: "Answer, NotHere, Credit or Heartbeat" }.into()
                );
            }
            None => return Ok(None),
        }))
    }
}
