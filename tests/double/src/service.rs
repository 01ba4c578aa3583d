//! `m1.worker.v1.Worker` of a double.

use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::Stream;
use m1_proto::worker::worker_server::Worker;
use m1_proto::worker::{
    ApplyPlacementRequest, ApplyPlacementResponse, DrainRequest, DrainResponse, GenerateEvent, GenerateRequest, Phase,
    StatusRequest, StatusResponse, WatchStatsRequest,
};
use m1_runtime::member::Guard;
use tonic::{Request, Response, Status};

use crate::board::Board;
use crate::play::{Playing, die, silence};
use crate::script::{Reply, Script};
use crate::status::{Watching, status};

/// What all calls share.
pub struct Stage {
    /// What is kept of the sequences.
    pub board: Arc<Board>,
    /// What is done for those that come.
    pub script: RwLock<Arc<dyn Script>>,
}

/// The service.
#[derive(Clone)]
pub struct Service {
    stage: Arc<Stage>,
    guard: Guard,
}

impl Service {
    /// Serves a stage.
    pub fn new(stage: Arc<Stage>) -> Self {
        let guard = Guard::new(stage.board.settings.member.clone());
        Self { stage, guard }
    }
}

type Watch = Pin<Box<dyn Stream<Item = Result<StatusResponse, Status>> + Send>>;
type Sequence = Pin<Box<dyn Stream<Item = Result<GenerateEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Service {
    type GenerateStream = Sequence;
    type WatchStatsStream = Watch;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Sequence>, Status> {
        self.guard.check(request.metadata())?;
        let request = request.into_inner();
        let nth = self.stage.board.call();
        let script = self.stage.script.read().unwrap_or_else(PoisonError::into_inner).clone();
        match script.reply(&request, nth) {
            Reply::Refuse(status) => Err(status),
            Reply::Die => die(),
            Reply::Silence => silence(self.stage.board.seat(&request)?).await,
            Reply::Play(acts) => {
                let seat = self.stage.board.seat(&request)?;
                Ok(Response::new(Box::pin(Playing::new(seat, request, acts))))
            }
        }
    }

    async fn watch_stats(&self, request: Request<WatchStatsRequest>) -> Result<Response<Watch>, Status> {
        self.guard.check(request.metadata())?;
        Ok(Response::new(Box::pin(Watching::new(Arc::clone(&self.stage.board), request.into_inner()))))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.guard.check(request.metadata())?;
        Ok(Response::new(status(&self.stage.board, "", false)))
    }

    async fn apply_placement(&self, request: Request<ApplyPlacementRequest>) -> Result<Response<ApplyPlacementResponse>, Status> {
        self.guard.check(request.metadata())?;
        let epoch = request.into_inner().epoch;
        self.stage.board.change(|state| state.epoch = epoch);
        Ok(Response::new(ApplyPlacementResponse { epoch }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.guard.check(request.metadata())?;
        let deadline = Duration::from_millis(request.into_inner().deadline_ms.into());
        self.stage.board.change(|state| state.phase = Phase::Draining);
        let mut tally = self.stage.board.tally();
        let _ = tokio::time::timeout(deadline, tally.wait_for(|tally| tally.running == 0)).await;
        let left = tally.borrow().running;
        Ok(Response::new(DrainResponse { left }))
    }
}
