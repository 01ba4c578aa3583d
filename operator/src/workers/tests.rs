//! A follower and a worker double that speaks the real protocol: who is believed, and who is told what.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::Stream;
use m1_proto::worker as pb;
use m1_proto::worker::worker_server::{Worker, WorkerServer};
use m1_runtime::member::Guard;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::service::InterceptorLayer;
use tonic::{Request, Response};

use super::*;

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(20);
const OWN: &str = "serving/m1/0b54-11/m1-0-abc/0";

/// A worker that says who it is, and forgets every placement at once.
#[derive(Clone, Default)]
struct Double {
    says: String,
    told: Arc<AtomicU32>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Double {
    type GenerateStream = Streamed<pb::GenerateEvent>;
    type WatchStatsStream = Streamed<StatusResponse>;

    async fn generate(&self, _: Request<pb::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn watch_stats(&self, _: Request<WatchStatsRequest>) -> Result<Response<Self::WatchStatsStream>, Status> {
        let status = StatusResponse { phase: Phase::Waiting.into(), member: self.says.clone(), ..StatusResponse::default() };
        let stream = futures_util::stream::unfold(tokio::time::interval(Duration::from_millis(5)), move |mut ticks| {
            let status = status.clone();
            async move {
                ticks.tick().await;
                Some((Ok(status), ticks))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn apply_placement(
        &self,
        request: Request<ApplyPlacementRequest>,
    ) -> Result<Response<pb::ApplyPlacementResponse>, Status> {
        self.told.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(pb::ApplyPlacementResponse { epoch: request.into_inner().epoch }))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// Serves a double whose guard stands for `own`; gives its address.
async fn serve(double: Double, own: Option<&str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let guard = Guard::new(own.map(|own| own.parse().unwrap()));
    let server = tonic::transport::Server::builder().layer(InterceptorLayer::new(guard)).add_service(WorkerServer::new(double));
    tokio::spawn(server.serve_with_incoming(tls::incoming(listener, None)));
    address
}

/// Follows whoever answers at an address as pod 0 of the group, with a placement to tell.
struct Watched {
    workers: Workers,
    key: Key,
    changes: mpsc::Receiver<Key>,
}

impl Watched {
    fn new(address: String) -> Self {
        let (sender, changes) = mpsc::channel(64);
        let workers = Workers::new(sender);
        let key = Key { namespace: "serving".into(), name: "m1".into() };
        let member = Some(OWN.parse().unwrap());
        let life = Life { pod: "m1-0-abc-0".into(), uid: "u".into(), address, encrypted: false, member };
        let placement = Some(Arc::new(ApplyPlacementRequest { epoch: 1, ..ApplyPlacementRequest::default() }));
        let link = workers.link(&key, &life, placement, None);
        workers.lock().entry(key.clone()).or_default().links.insert(life, link);
        Self { workers, key, changes }
    }

    fn seen(&self) -> (Option<WorkerSeen>, Option<String>) {
        self.workers.seen(&self.key, "m1-0-abc-0", "u")
    }

    /// Waits until what is seen fits; each change is told, and nothing is asked in between.
    async fn until(
        &mut self,
        fits: impl Fn(&(Option<WorkerSeen>, Option<String>)) -> bool,
    ) -> (Option<WorkerSeen>, Option<String>) {
        let waits = async {
            loop {
                assert_eq!(self.changes.recv().await.as_ref(), Some(&self.key));
                let seen = self.workers.seen(&self.key, "m1-0-abc-0", "u");
                if fits(&seen) {
                    return seen;
                }
            }
        };
        tokio::time::timeout(LONG, waits).await.expect("it is told")
    }
}

#[tokio::test]
async fn another_deployments_worker_is_refused_by_name() {
    let other = "serving/m2/77-aa/m2-0-xyz/0";
    let double = Double::default();
    let address = serve(double.clone(), Some(other)).await;
    let mut watched = Watched::new(address);
    let (worker, stranger) = watched.until(|(_, stranger)| stranger.is_some()).await;
    assert_eq!((worker, stranger.unwrap()), (None, format!("the call is meant for {OWN}; this is {other}")));
    assert_eq!(double.told.load(Ordering::Relaxed), 0, "it got no placement");
}

#[tokio::test]
async fn a_real_worker_of_another_deployment_gets_no_placement() {
    let worker = m1_tests::Worker::start("serving/m2/77-aa/m2-0-xyz", 0);
    let mut watched = Watched::new(worker.address.to_string());
    let (seen, stranger) = watched.until(|(_, stranger)| stranger.is_some()).await;
    let words = format!("the call is meant for {OWN}; this is serving/m2/77-aa/m2-0-xyz/0");
    assert_eq!((seen, stranger), (None, Some(words)));
    let mut client = m1_proto::worker::worker_client::WorkerClient::connect(format!("http://{}", worker.address)).await.unwrap();
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.phase(), Phase::Waiting, "it got no placement");
}

#[tokio::test]
async fn who_names_somebody_else_or_nobody_is_not_believed() {
    let (other, nobody) = ("serving/m1/0b54-11/m1-0-abc/1", "a worker that was not told whose it is");
    for (says, words) in [(other, other), ("", nobody)] {
        let double = Double { says: says.into(), ..Double::default() };
        let mut watched = Watched::new(serve(double.clone(), None).await);
        let (worker, stranger) = watched.until(|(_, stranger)| stranger.is_some()).await;
        assert_eq!((worker, stranger), (None, Some(format!("{words} answers"))));
        assert_eq!(double.told.load(Ordering::Relaxed), 0, "it got no placement");
    }
}

#[tokio::test]
async fn a_worker_that_waits_is_told_again_and_again() {
    let double = Double { says: OWN.into(), ..Double::default() };
    let mut watched = Watched::new(serve(double.clone(), Some(OWN)).await);
    let (worker, _) = watched.until(|(worker, _)| worker.is_some()).await;
    assert_eq!(worker.unwrap().phase, WorkerPhase::Waiting);
    let told = async {
        while double.told.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, told).await.expect("one answer is not enough");
    assert_eq!(watched.seen().1, None);
}

#[test]
fn a_pod_is_its_owners() {
    let key = Key { namespace: "serving".into(), name: "m1".into() };
    let owned = |uid: &str| {
        let owner = json!({"apiVersion": "v1", "kind": "MiniMaxM1Deployment", "name": "m1", "uid": uid, "controller": true});
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "m1-0-abc", "ownerReferences": [owner]}})
    };
    let labels = json!({m1_operator_api::labels::APP_COMPONENT: WORKER, m1_operator_api::labels::POD_INDEX: "2"});
    let pod = json!({"metadata": {"name": "m1-0-abc-2", "labels": labels}});
    let member_of = |objects: &[(Kind, serde_json::Value)]| {
        let family = Family::of(objects, std::slice::from_ref(&pod));
        let pod = family.component(WORKER).next().unwrap();
        member(&key, &family, pod).map(|member| member.to_string())
    };
    assert_eq!(member_of(&[(Kind::StatefulSet, owned("0b54-11"))]).as_deref(), Some("serving/m1/0b54-11/m1-0-abc/2"));
    assert_eq!(member_of(&[(Kind::ExpertPlacement, owned("gone"))]).as_deref(), Some("serving/m1/gone/m1-0-abc/2"));
    assert_eq!(member_of(&[]), None);
}
