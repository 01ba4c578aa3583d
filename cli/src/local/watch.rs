//! What a group says to its workers and hears from them, over `m1.worker.v1`. Decides nothing: everything becomes an event.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{ApplyPlacementRequest, WatchStatsRequest};
use m1_runtime::member::{MeantFor, Member, is_for_another};
use tokio::sync::mpsc;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Event;

/// Shortest and longest pause between two attempts to reach a worker. It serves within a moment of its start.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Interval of a worker's reports: what a person sees as at once.
const REPORTS: Duration = Duration::from_millis(100);
/// A local worker that takes longer to accept a connection does not run.
const CONNECT: Duration = Duration::from_secs(2);
/// The socket of a worker that has died still takes connections, for the next process. One that is not answered for this long after this much silence is
/// given up: generous, because a machine on which many start at once is slow.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));
/// A device answers between two turns. One that has not within this is asked again after its next status.
const PUSH: Duration = Duration::from_secs(30);
/// HTTP/2 windows. Raw logits come as tens of megabytes; the default of 64 KB would stall on each piece.
const WINDOW: u32 = 16 << 20;

/// The way to one worker. Every call says whom it means.
pub type Client = WorkerClient<InterceptedService<Channel, MeantFor>>;

/// Connects to a worker. Its messages may be of any size: m1ctl asked for what is in them.
///
/// # Errors
/// Nobody accepts.
pub async fn connect(address: SocketAddr, meant: &Member) -> Result<Client, tonic::transport::Error> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .tcp_nodelay(true)
        .connect()
        .await?;
    Ok(WorkerClient::with_interceptor(channel, MeantFor::new(Some(meant))).max_decoding_message_size(usize::MAX))
}

/// Why a worker is not heard any more.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("{}", .0.message())]
    Refused(Status),
    #[error("{0} answers in its place")]
    Stranger(String),
    #[error("it ended its reports")]
    Ended,
    #[error("nobody listens")]
    Unwanted,
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// Sends the statuses of a worker as events, over all its lives, until nobody listens. Whoever else answers at its address is not believed.
pub async fn follow(seat: usize, address: SocketAddr, meant: Member, events: mpsc::Sender<Event>) {
    let (mut pause, mut said) = (PAUSES.0, String::new());
    while !events.is_closed() {
        let mut heard = false;
        let Err(lost) = follow_once(seat, address, &meant, &events, &mut heard).await;
        if heard {
            (pause, said) = (PAUSES.0, String::new());
        }
        let why = chain(&lost);
        if why != said {
            let stranger = matches!(&lost, Lost::Stranger(_)) || matches!(&lost, Lost::Refused(status) if is_for_another(status));
            let _ = events.send(Event::Unheard { seat, why: why.clone(), stranger }).await;
            said = why;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn follow_once(
    seat: usize,
    address: SocketAddr,
    meant: &Member,
    events: &mpsc::Sender<Event>,
    heard: &mut bool,
) -> Result<std::convert::Infallible, Lost> {
    let mut client = connect(address, meant).await?;
    let request = WatchStatsRequest { interval_ms: REPORTS.as_millis() as u32, ..WatchStatsRequest::default() };
    let mut stream = client.watch_stats(request).await?.into_inner();
    while let Some(status) = stream.message().await? {
        if let Some(other) = meant.instead(&status.member) {
            return Err(Lost::Stranger(other.to_owned()));
        }
        *heard = true;
        events.send(Event::Status { seat, status: Box::new(status) }).await.map_err(|_| Lost::Unwanted)?;
    }
    Err(Lost::Ended)
}

/// Tells a worker its placement and says what came of it.
pub async fn push(
    (seat, address): (usize, SocketAddr),
    meant: Member,
    request: ApplyPlacementRequest,
    events: mpsc::Sender<Event>,
) {
    let epoch = request.epoch;
    let told = async {
        let mut client = connect(address, &meant).await.map_err(|error| Status::unavailable(chain(&error)))?;
        client.apply_placement(request).await.map(|_| ())
    };
    let result = tokio::time::timeout(PUSH, told).await;
    let result = result.unwrap_or_else(|_| Err(Status::deadline_exceeded("it does not answer")));
    let _ = events.send(Event::Pushed { seat, epoch, result }).await;
}

/// Whether the same call may succeed later.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        // Somebody else has the address for now.
        Code::FailedPrecondition if is_for_another(status) => true,
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

#[cfg(test)]
mod tests;
