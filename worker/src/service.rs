//! `m1.worker.v1.Worker`: what routers, the operator and m1ctl ask of this pod. Checks requests and passes them to the
//! device thread; computes nothing.

mod generate;
mod live;
mod watching;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use m1_arch::ExpertSet;
use m1_exchange::PodId;
use m1_proto::worker as pb;
use m1_proto::worker::worker_server::Worker;
use m1_runtime::member::Guard;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::device::{DeviceHandle, DeviceMessage, Group, GroupPod};
use crate::status::SharedStatus;
use crate::tallies::Tallies;
use crate::transport::Identity;
use watching::Watching;

pub use generate::{error_status, reasoned};
pub use live::Live;

/// The gRPC service of one pod.
#[derive(Debug, Clone)]
pub struct WorkerService {
    /// Who this is.
    pub guard: Guard,
    /// To the device thread.
    pub events: DeviceHandle,
    /// From the device thread.
    pub status: Arc<SharedStatus>,
    /// The model and this pod; absent while the checkpoint is unreadable.
    pub identity: Option<Arc<Identity>>,
    /// Of the model, where it has one: stop strings and the thinking budget need it.
    pub tokenizer: Option<Arc<m1_text::Tokenizer>>,
    /// What a sequence may ask for; absent while the checkpoint is unreadable.
    pub limits: Option<m1_engine::Limits>,
    /// Whom sequences are counted for; absent while the checkpoint is unreadable.
    pub tallies: Option<Arc<Tallies>>,
    /// What running calls hold.
    pub live: Arc<Live>,
    /// Ends streams that have no end of their own.
    pub stop: CancellationToken,
}

type BoxedEvents = Pin<Box<dyn Stream<Item = Result<pb::GenerateEvent, Status>> + Send>>;
type Watch = Pin<Box<dyn Stream<Item = Result<pb::StatusResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for WorkerService {
    type GenerateStream = BoxedEvents;
    type WatchStatsStream = Watch;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<BoxedEvents>, Status> {
        let stream = generate::start(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        Ok(Response::new(self.status.read()))
    }

    async fn watch_stats(&self, request: Request<pb::WatchStatsRequest>) -> Result<Response<Watch>, Status> {
        let pb::WatchStatsRequest { interval_ms, router } = request.into_inner();
        live::checked_name("router", &router)?;
        let tally = self.tallies.as_ref().and_then(|tallies| tallies.open(&router, Instant::now()));
        let watching = Watching::new(self.status.clone(), interval_ms, !router.is_empty(), tally);
        let statuses = stream::unfold(watching, async |mut watching| Some((Ok(watching.next().await), watching)));
        Ok(Response::new(Box::pin(statuses.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn apply_placement(
        &self,
        request: Request<pb::ApplyPlacementRequest>,
    ) -> Result<Response<pb::ApplyPlacementResponse>, Status> {
        self.guard.demand(request.metadata())?;
        let identity = self.identity.as_ref().ok_or_else(|| Status::failed_precondition(self.status.brief().message))?;
        let group = checked_group(identity, request.into_inner()).map_err(Status::invalid_argument)?;
        let epoch = group.epoch;
        let (reply, answer) = oneshot::channel();
        self.events.send(DeviceMessage::Place { group, reply }).await?;
        answer.await.map_err(|_| Status::unavailable("the worker is stopping"))?.map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::ApplyPlacementResponse { epoch }))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        self.guard.demand(request.metadata())?;
        let deadline = Duration::from_millis(request.into_inner().deadline_ms.into());
        let left = match self.events.send(DeviceMessage::Drain).await {
            Ok(()) => crate::drain::drained(&self.status, deadline).await,
            // Nothing runs on a worker that has no device.
            Err(_) => 0,
        };
        Ok(Response::new(pb::DrainResponse { left }))
    }
}

/// Checks a placement against the model: dimensions, this pod in it, every bitmap, every expert of every layer held.
fn checked_group(identity: &Identity, request: pb::ApplyPlacementRequest) -> Result<Group, String> {
    let (layers, experts) = (identity.arch.layers.len(), identity.arch.experts);
    if (request.layers as usize, request.experts as usize) != (layers, experts) {
        return Err(format!(
            "layers x experts: {} x {} given, this model has {layers} x {experts}",
            request.layers, request.experts
        ));
    }
    let shape = identity.arch.shape();
    if !request.model.is_empty() && request.model != shape {
        return Err(format!("model: {} given, this one has {shape}", request.model));
    }
    let mut pods: Vec<GroupPod> = Vec::with_capacity(request.pods.len());
    for pod in request.pods {
        let id = u16::try_from(pod.pod).map_err(|_| format!("pods.pod: {} given, allowed: 0 to 65535", pod.pod))?;
        if pods.iter().any(|p| p.id.0 == id) {
            return Err(format!("pods.pod: {id} is given twice"));
        }
        let holds = ExpertSet::from_hex(layers, experts, &pod.holds).map_err(|e| format!("pods[{id}].holds: {e}"))?;
        pods.push(GroupPod { id: PodId(id), address: pod.address, holds });
    }
    if !pods.iter().any(|p| p.id.0 == identity.pod) {
        return Err(format!("pods: this pod is {} and is not in the placement", identity.pod));
    }
    Ok(Group { lease_transitions: request.lease_transitions, epoch: request.epoch, pods })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/m1-demo/config.json")).unwrap();
        Identity { pod: 0, digest: String::new(), values: String::new(), arch: m1_arch::Architecture::from_json(&text).unwrap() }
    }

    fn good() -> pb::ApplyPlacementRequest {
        let pod = |pod, holds: &str| pb::PodPlacement { pod, address: "127.0.0.1:1".into(), holds: holds.repeat(8) };
        pb::ApplyPlacementRequest {
            lease_transitions: 0,
            epoch: 1,
            layers: 8,
            experts: 32,
            pods: vec![pod(0, "ffff0000"), pod(1, "0000ffff")],
            model: identity().arch.shape(),
        }
    }

    fn error(change: impl FnOnce(&mut pb::ApplyPlacementRequest)) -> String {
        let mut request = good();
        change(&mut request);
        checked_group(&identity(), request).unwrap_err()
    }

    #[test]
    fn a_good_placement_passes() {
        assert!(
            checked_group(&identity(), pb::ApplyPlacementRequest { model: String::new(), ..good() }).is_ok(),
            "m1ctl up says nothing"
        );
        assert_eq!(checked_group(&identity(), good()).unwrap().pods.len(), 2);
    }

    #[test]
    fn wrong_placements_are_named() {
        assert_eq!(error(|r| r.layers = 9), "layers x experts: 9 x 32 given, this model has 8 x 32");
        assert!(
            error(|r| r.model = m1_arch::Architecture::minimax_m1().shape())
                .starts_with("model: 80 layers (10 softmax), hidden 6144")
        );
        assert_eq!(error(|r| r.pods[1].pod = 0), "pods.pod: 0 is given twice");
        assert_eq!(error(|r| r.pods[0].pod = 7), "pods: this pod is 0 and is not in the placement");
        assert!(error(|r| r.pods[1].holds = "zz".into()).starts_with("pods[1].holds: "));
    }
}
