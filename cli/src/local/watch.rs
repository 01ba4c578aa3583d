//! What a group says to its workers and hears from them, over `m1.worker.v1`. Decides nothing: everything becomes an event.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{ApplyPlacementRequest, WatchStatsRequest};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Event;

/// Between two attempts to reach a worker. It binds within milliseconds of its start.
const RETRY: Duration = Duration::from_millis(50);
/// Interval of a worker's reports: what a person sees as at once.
const REPORTS: Duration = Duration::from_millis(100);
/// A local worker that takes longer to accept a connection does not run.
const CONNECT: Duration = Duration::from_secs(2);
/// HTTP/2 windows. Raw logits come as tens of megabytes; the default of 64 KB would stall on each piece.
const WINDOW: u32 = 16 << 20;

/// Connects to a worker. Its messages may be of any size: m1ctl asked for what is in them.
///
/// # Errors
/// Nobody accepts.
pub async fn connect(address: SocketAddr) -> Result<WorkerClient<Channel>, tonic::transport::Error> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .tcp_nodelay(true)
        .connect()
        .await?;
    Ok(WorkerClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// Sends the statuses of a worker as events, over all its lives, until nobody listens.
pub async fn follow(seat: usize, address: SocketAddr, events: mpsc::Sender<Event>) {
    while !events.is_closed() {
        // Not being there yet, and being gone again, are both said by the process itself.
        let _ = follow_once(seat, address, &events).await;
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_once(seat: usize, address: SocketAddr, events: &mpsc::Sender<Event>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut client = connect(address).await?;
    let request = WatchStatsRequest { interval_ms: REPORTS.as_millis() as u32 };
    let mut stream = client.watch_stats(request).await?.into_inner();
    while let Some(status) = stream.message().await? {
        events.send(Event::Status { seat, status: Box::new(status) }).await?;
    }
    Ok(())
}

/// Tells a worker its placement and says what came of it.
pub async fn push(seat: usize, address: SocketAddr, request: ApplyPlacementRequest, events: mpsc::Sender<Event>) {
    let epoch = request.epoch;
    let result = async {
        let mut client = connect(address).await.map_err(|error| Status::unavailable(chain(&error)))?;
        client.apply_placement(request).await.map(|_| ())
    };
    let result = result.await;
    let _ = events.send(Event::Pushed { seat, epoch, result }).await;
}

/// Whether the same call may succeed later.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented | Code::OutOfRange | Code::PermissionDenied => false,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => true,
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors print their cause themselves.
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    words
}
