//! The server's side over gRPC: greets a requester, checks each request, hands it to the device thread, and sends back
//! what the device answers. A frame that breaks the protocol ends that stream with a status that says why; nothing else suffers.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatch;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Frame, Hello, Refused};
use m1_runtime::member::Guard;
use tokio::task::coop::consume_budget;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::device_io::looked_for;
use super::device_stream::Driven;
use super::driven::{DRIVEN, DRIVEN_GREETING, DrivenPeers, GONE};
use super::grpc_client::GREETING_TIMEOUT;
use super::outgoing::Outgoing;
use super::wire::{Identity, Purpose, WireError, check_request, purpose_from_wire};
use super::{CREDITS, Inbound, Link, pulse};
use crate::device::DeviceHandle;
use crate::status::SharedStatus;

/// `m1.dispatch.v1.ExpertDispatch` of one pod.
#[derive(Debug, Clone)]
pub struct DispatchService {
    /// Who this is.
    pub guard: Guard,
    /// What peers must agree with; absent while the checkpoint is unreadable.
    pub identity: Option<Arc<Identity>>,
    /// Where requests go.
    pub events: DeviceHandle,
    /// Epoch and device progress, for greetings and heartbeats.
    pub status: Arc<SharedStatus>,
    /// Tracks the stream tasks.
    pub tasks: TaskTracker,
    /// Ends every stream.
    pub stop: CancellationToken,
    /// Numbers connections.
    pub generations: Arc<AtomicU64>,
    /// Peers whose connections the device drives.
    pub driven: DrivenPeers,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl ExpertDispatch for DispatchService {
    type ExchangeStream = Answers;

    async fn exchange(&self, request: Request<Streaming<Frame>>) -> Result<Response<Answers>, Status> {
        self.guard.demand(request.metadata())?;
        let identity = self.identity.clone().ok_or_else(|| Status::failed_precondition("this pod has no readable checkpoint"))?;
        if !self.status.serves_peers() {
            return Err(Status::unavailable("this pod has not loaded its experts yet"));
        }
        let driven = request.extensions().get::<Driven>().cloned();
        let by_device = driven.is_some();
        let mut frames = request.into_inner();
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let (link, outgoing) = Link::new(generation);
        let answers = Outgoing::new(outgoing, driven.as_ref().map(|driven| driven.device.clone())).map(Ok);
        let service = self.clone();
        self.tasks.spawn(async move {
            let stop = service.stop.clone();
            let limit = async {
                match by_device {
                    true => looked_for(DRIVEN_GREETING).await,
                    false => tokio::time::sleep(GREETING_TIMEOUT).await,
                }
            };
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = service.greet(&identity, &mut frames, &link, by_device) => ended,
                () = limit => return,
            };
            let Ok((hello, purpose)) = ended else { return };
            let peer = PodId(hello.pod as u16);
            let served = async {
                match purpose {
                    Purpose::Pulse => service.pulse(peer, &link, frames).await,
                    Purpose::Rows(lane) => {
                        let beats = lane == Lane::Decode && !hello.pulse && !by_device;
                        if let Some(driven) = &driven {
                            service.driven.takes_place(peer, driven);
                        }
                        Session { service: &service, identity: &identity, peer, lane, link, beats }.run(frames).await;
                    }
                }
            };
            let to_the_end = async {
                served.await;
                if let Some(Driven { end, .. }) = &driven {
                    // What was said last goes out; then the peer ends the connection, or this does.
                    looked_for(GONE).await;
                    end.cancel();
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = to_the_end => {}
            }
        });
        let mut response: Response<Answers> = Response::new(Box::pin(answers));
        if by_device {
            response.metadata_mut().insert(DRIVEN, MetadataValue::from_static("1"));
        }
        Ok(response)
    }
}

impl DispatchService {
    async fn greet(
        &self,
        identity: &Identity,
        frames: &mut Streaming<Frame>,
        link: &Link,
        by_device: bool,
    ) -> Result<(Hello, Purpose), WireError> {
        let checked = match frames.next().await {
            Some(Ok(Frame { kind: Some(Kind::Hello(hello)) })) => {
                let purpose = identity.check(&hello).and_then(|()| purpose_from_wire(hello.lane));
                match purpose {
                    Ok(purpose) if by_device && purpose != Purpose::Rows(Lane::Decode) => Err(WireError::Range {
                        field: "lane",
                        given: hello.lane as u64,
                        allowed: "1, where the device drives it".into(),
                    }),
                    purpose => purpose.map(|purpose| (hello, purpose)),
                }
            }
            _ => Err(WireError::Order { given: "another frame", allowed: "Hello" }),
        };
        match &checked {
            Ok((_, purpose)) => {
                let credits = if *purpose == Purpose::Pulse { 0 } else { CREDITS };
                link.send(Kind::Hello(identity.greeting(*purpose, self.status.epoch(), credits)));
            }
            Err(error) => {
                tracing::warn!(error = %error, "a peer is refused");
                link.send(Kind::Refused(Refused { reason: error.reason().into(), message: error.to_string() }));
            }
        }
        checked
    }

    /// Tells a peer of this pod's device. Nothing of that concerns the device itself.
    async fn pulse(&self, peer: PodId, link: &Link, frames: Streaming<Frame>) {
        if let Err(error) = pulse::tell(&self.status, link, frames).await {
            tracing::warn!(peer = peer.0, error = %error, "a peer broke the protocol, its heartbeats are dropped");
            link.send(Kind::Refused(Refused { reason: error.reason().into(), message: error.to_string() }));
        }
    }
}

/// One greeted connection.
struct Session<'a> {
    service: &'a DispatchService,
    identity: &'a Identity,
    peer: PodId,
    lane: Lane,
    link: Link,
    /// Heartbeats go here, because the requester knows no other way.
    beats: bool,
}

impl Session<'_> {
    async fn run(self, mut frames: Streaming<Frame>) {
        let (peer, lane, generation) = (self.peer, self.lane, self.link.generation);
        let up = Inbound::ClientUp { peer, lane, link: self.link.clone() };
        if self.service.events.dispatch(up).await.is_err() {
            return;
        }
        let mut beat = pulse::beats();
        let mut closed = pin!(self.link.until_closed());
        loop {
            let frame = tokio::select! {
                biased;
                () = &mut closed => break,
                frame = frames.next() => frame,
                _ = beat.tick(), if self.beats => { self.heartbeat(0); continue; }
            };
            match frame {
                Some(Ok(frame)) => {
                    // A peer that says much does not keep others from being heard.
                    consume_budget().await;
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
        let _ = self.service.events.dispatch(Inbound::ClientDown { peer, lane, generation }).await;
    }

    async fn take(&self, frame: Frame) -> Result<(), WireError> {
        match frame.kind {
            Some(Kind::Request(request)) => {
                let request = check_request(&self.identity.arch, request)?;
                let event = Inbound::ClientAsks { peer: self.peer, lane: self.lane, generation: self.link.generation, request };
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
        self.link.send(pulse::heartbeat(&self.service.status, echo_us));
    }
}
