//! Followers and a worker double that speaks the real protocol: somebody else at the address is named and told nothing.

use std::pin::Pin;
use std::task::{Context, Poll};

use m1_proto::worker as pb;
use m1_proto::worker::worker_server::{Worker, WorkerServer};
use m1_runtime::member::Guard;
use tonic::codegen::tokio_stream::Stream;
use tonic::service::InterceptorLayer;
use tonic::{Request, Response};

use super::*;

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(20);
const OWN: &str = "local/m1/0b54/0/1";

/// A worker that says once who it is.
struct Double(&'static str);

/// One thing, then the end.
struct Once<T>(Option<T>);

impl<T: Unpin> Stream for Once<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

#[tonic::async_trait]
impl Worker for Double {
    type GenerateStream = Once<pb::GenerateEvent>;
    type WatchStatsStream = Once<pb::StatusResponse>;

    async fn generate(&self, _: Request<pb::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn watch_stats(&self, _: Request<WatchStatsRequest>) -> Result<Response<Self::WatchStatsStream>, Status> {
        Ok(Response::new(Once(Some(pb::StatusResponse { member: self.0.to_owned(), ..Default::default() }))))
    }

    async fn apply_placement(
        &self,
        request: Request<ApplyPlacementRequest>,
    ) -> Result<Response<pb::ApplyPlacementResponse>, Status> {
        Ok(Response::new(pb::ApplyPlacementResponse { epoch: request.into_inner().epoch }))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// Serves a worker that says one thing, with a guard that stands for another.
async fn serve(says: &'static str, guard: Option<&str>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let guard = Guard::new(guard.map(|own| own.parse().unwrap()));
    let server =
        tonic::transport::Server::builder().layer(InterceptorLayer::new(guard)).add_service(WorkerServer::new(Double(says)));
    tokio::spawn(server.serve_with_incoming(m1_runtime::tls::incoming(listener, None)));
    address
}

/// The first thing that is heard of whoever is followed.
async fn first(address: SocketAddr) -> Event {
    let (events, mut heard) = mpsc::channel(4);
    tokio::spawn(follow(1, address, OWN.parse().unwrap(), events));
    tokio::time::timeout(LONG, heard.recv()).await.expect("something is heard").unwrap()
}

#[tokio::test]
async fn somebody_else_is_named_and_not_believed() {
    let other = "local/m1/77aa/0/1";
    match first(serve("", Some(other)).await).await {
        Event::Unheard { seat: 1, why, stranger: true } => {
            assert_eq!(why, format!("the call is meant for {OWN}; this is {other}"));
        }
        event => panic!("{event:?}"),
    }
    for (says, words) in [(other, other), ("", "a worker that was not told whose it is")] {
        match first(serve(says, None).await).await {
            Event::Unheard { seat: 1, why, stranger: true } => assert_eq!(why, format!("{words} answers in its place")),
            event => panic!("{event:?}"),
        }
    }
    assert!(matches!(first(serve(OWN, None).await).await, Event::Status { seat: 1, .. }));
}

/// What comes of telling whoever listens there its placement.
async fn pushed(address: SocketAddr) -> Result<(), Status> {
    let (events, mut heard) = mpsc::channel(1);
    push((1, address), OWN.parse().unwrap(), ApplyPlacementRequest::default(), events).await;
    match heard.recv().await.unwrap() {
        Event::Pushed { result, .. } => result,
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_real_worker_of_another_deployment_gets_no_placement() {
    let worker = m1_tests::Worker::start("local/m1/77aa/0", 1);
    let words = format!("the call is meant for {OWN}; this is local/m1/77aa/0/1");
    match first(worker.address).await {
        Event::Unheard { seat: 1, why, stranger: true } => assert_eq!(why, words),
        event => panic!("{event:?}"),
    }
    let refused = pushed(worker.address).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, words.as_str()));
}

#[tokio::test]
async fn a_placement_that_somebody_else_refuses_is_pushed_again() {
    assert!(pushed(serve("", Some(OWN)).await).await.is_ok());
    let refused = pushed(serve("", Some("local/m1/77aa/0/1")).await).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && is_transient(&refused), "{refused}");
    assert!(!is_transient(&Status::failed_precondition("the placement is older")));
}

#[tokio::test]
async fn nobody_is_unheard_and_no_stranger() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(first(address).await, Event::Unheard { seat: 1, stranger: false, .. }));
}
