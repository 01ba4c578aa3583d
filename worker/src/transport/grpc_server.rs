//! The server's side over gRPC: greets a requester, checks each request, hands it to the device thread, and sends back
//! what the device answers. A frame that breaks the protocol ends that stream with a status that says why; nothing else suffers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatch;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Frame, Heartbeat, Refused};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::grpc_client::GREETING_TIMEOUT;
use super::wire::{Identity, WireError, check_request, lane_from_wire};
use super::{CREDITS, Inbound, Link};
use crate::device::Events;
use crate::status::SharedStatus;

/// `m1.dispatch.v1.ExpertDispatch` of one pod.
#[derive(Debug, Clone)]
pub struct DispatchService {
    /// What peers must agree with; absent while the checkpoint is unreadable.
    pub identity: Option<Arc<Identity>>,
    /// Where requests go.
    pub events: Events,
    /// Epoch and device progress, for greetings and heartbeats.
    pub status: Arc<SharedStatus>,
    /// Tracks the stream tasks.
    pub tasks: TaskTracker,
    /// Ends every stream.
    pub stop: CancellationToken,
    /// Numbers connections.
    pub generations: Arc<AtomicU64>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl ExpertDispatch for DispatchService {
    type ExchangeStream = Answers;

    async fn exchange(&self, request: Request<Streaming<Frame>>) -> Result<Response<Answers>, Status> {
        let identity = self.identity.clone().ok_or_else(|| Status::failed_precondition("this pod has no readable checkpoint"))?;
        if !self.status.serves_peers() {
            return Err(Status::unavailable("this pod has not loaded its experts yet"));
        }
        let mut frames = request.into_inner();
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let (link, outgoing) = Link::new(generation);
        let answers = ReceiverStream::new(outgoing).map(Ok);
        let service = self.clone();
        self.tasks.spawn(async move {
            let stop = service.stop.clone();
            let greeting = tokio::time::timeout(GREETING_TIMEOUT, service.greet(&identity, &mut frames, &link));
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = greeting => ended,
            };
            let Ok(Ok((peer, lane))) = ended else { return };
            let session = Session { service: &service, identity: &identity, peer, lane, link };
            tokio::select! {
                () = stop.cancelled() => {}
                () = session.run(frames) => {}
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl DispatchService {
    async fn greet(&self, identity: &Identity, frames: &mut Streaming<Frame>, link: &Link) -> Result<(PodId, Lane), WireError> {
        let checked = match frames.next().await {
            Some(Ok(Frame { kind: Some(Kind::Hello(hello)) })) => {
                identity.check(&hello).and_then(|()| Ok((PodId(hello.pod as u16), lane_from_wire(hello.lane)?)))
            }
            _ => Err(WireError::Order { given: "another frame", allowed: "Hello" }),
        };
        match &checked {
            Ok((_, lane)) => {
                link.send(Kind::Hello(identity.hello(*lane, self.status.epoch(), CREDITS)));
            }
            Err(error) => {
                tracing::warn!(error = %error, "a peer is refused");
                link.send(Kind::Refused(Refused { reason: error.reason().into(), message: error.to_string() }));
            }
        }
        checked
    }
}

/// One greeted connection.
struct Session<'a> {
    service: &'a DispatchService,
    identity: &'a Identity,
    peer: PodId,
    lane: Lane,
    link: Link,
}

impl Session<'_> {
    async fn run(self, mut frames: Streaming<Frame>) {
        let (peer, lane, generation) = (self.peer, self.lane, self.link.generation);
        let up = Inbound::ServerUp { peer, lane, link: self.link.clone() };
        if self.service.events.dispatch(up).await.is_err() {
            return;
        }
        let mut beat = tokio::time::interval(super::grpc_client::HEARTBEAT);
        loop {
            let frame = tokio::select! {
                biased;
                () = self.link.until_closed() => break,
                frame = frames.next() => frame,
                _ = beat.tick(), if lane == Lane::Decode => { self.heartbeat(0); continue; }
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Err(error) = self.take(frame).await {
                        tracing::warn!(peer = peer.0, ?lane, error = %error, "a peer broke the protocol, its link is dropped");
                        self.link.send(Kind::Refused(Refused { reason: error.reason().into(), message: error.to_string() }));
                        break;
                    }
                }
                Some(Err(_)) | None => break,
            }
        }
        // A closed inbox means that the process ends.
        let _ = self.service.events.dispatch(Inbound::ServerDown { peer, lane, generation }).await;
    }

    async fn take(&self, frame: Frame) -> Result<(), WireError> {
        match frame.kind {
            Some(Kind::Request(request)) => {
                let request = check_request(&self.identity.arch, request)?;
                let event = Inbound::Request { peer: self.peer, lane: self.lane, generation: self.link.generation, request };
                // A closed inbox means that the process ends.
                let _ = self.service.events.dispatch(event).await;
                Ok(())
            }
            Some(Kind::Heartbeat(beat)) => {
                self.heartbeat(beat.sent_us);
                Ok(())
            }
            Some(_) => Err(WireError::Order { given: "a server's frame", allowed: "Request or Heartbeat" }),
            None => Err(WireError::Order { given: "an empty frame", allowed: "Request or Heartbeat" }),
        }
    }

    fn heartbeat(&self, echo_us: u64) {
        let (progress, epoch) = (self.service.status.progress(), self.service.status.epoch());
        self.link.send(Kind::Heartbeat(Heartbeat { progress, epoch, sent_us: 0, echo_us }));
    }
}
