//! Connections: how many there may be, how long a client may take over each part, and how they end. HTTP is hyper's; what is asked and answered is
//! [`crate::http`]'s. HTTP/1.1 only: the OpenAI clients and the proxies in front speak it, and a streamed answer gains nothing from HTTP/2.

mod backlog;
mod head;
mod link;
mod refusal;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::App;
use crate::alarm::Alarm;
use crate::error::ApiError;
use crate::http;
use crate::loops::Loops;

pub use backlog::Backlog;
pub use head::Framing;
pub use link::{Client, Io, Link, Phase, Times};

/// Headers of a request; browsers and proxies send thirty.
const MOST_HEADERS: usize = 128;
/// A head may have so many bytes. It is also what hyper keeps of a body that is read slower than it comes.
const BUFFER: usize = 64 << 10;
/// Bytes that wait in the kernel for a client that is slow: left to itself it takes megabytes, for each of them.
const KERNEL_BUFFER: usize = 128 << 10;
/// Pause after the system refused a connection for want of file descriptors.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// Clients that are told at once that there is no room for their connection; those beyond are just closed.
const REFUSALS: usize = 64;
/// How long telling one may take.
const REFUSAL: Duration = Duration::from_secs(1);

/// Serves until `closing`; then takes no more connections and lets requests under way end, until `cut`.
pub async fn serve(app: Arc<App>, loops: &Loops, listener: TcpListener, closing: CancellationToken, cut: CancellationToken) {
    let (room, refusals) = (Arc::new(Semaphore::new(app.config.max_connections)), Arc::new(Semaphore::new(REFUSALS)));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // One client's trouble, or no descriptors left: both pass.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        let stream = match prepare(stream, app.config.times.write) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be set up");
                continue;
            }
        };
        match Arc::clone(&room).try_acquire_owned() {
            Ok(place) => {
                let (app, closing, cut) = (Arc::clone(&app), closing.clone(), cut.clone());
                loops.spawn(&connections, async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => connection(app, stream, closing, cut).await,
                        Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
                    }
                    drop(place);
                });
            }
            Err(_) => {
                app.metrics.connections_refused.inc();
                if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                    let error = ApiError::TooManyConnections { most: app.config.max_connections };
                    loops.spawn(&connections, async move {
                        if let Ok(stream) = TcpStream::from_std(stream) {
                            // Whoever does not take it in time is closed all the same.
                            drop(tokio::time::timeout(REFUSAL, refuse(stream, &error)).await);
                        }
                        drop(place);
                    });
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A connection on which nothing has come for so long is asked whether its client is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two such questions.
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);
/// Questions without an answer that end it.
const KEEPALIVE_PROBES: u32 = 3;
/// What was sent and is not acknowledged for so long has nobody to take it: while anything is on the way nobody is asked. A client that takes nothing
/// acknowledges nothing either, so it has its write deadline before.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Sends at once, lets the kernel keep little of what a client does not take, and is free to go to any loop.
fn prepare(stream: TcpStream, write: Duration) -> std::io::Result<std::net::TcpStream> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, KERNEL_BUFFER)?;
    // A client that has vanished without a word (power, a network that forgets) is found after a minute.
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    rustix::net::sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_PAUSE)?;
    rustix::net::sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
    let most = UNACKNOWLEDGED.max(write.saturating_mul(2)).as_millis();
    rustix::net::sockopt::set_tcp_user_timeout(&stream, u32::try_from(most).unwrap_or(u32::MAX))?;
    stream.into_std()
}

async fn refuse(mut stream: TcpStream, error: &ApiError) {
    let mut scratch = [0u8; 1024];
    // What was sent is read, so that the client sees the answer and not a reset.
    drop(stream.readable().await);
    drop(stream.try_read(&mut scratch));
    drop(stream.write_all(&refusal::answer(error)).await);
    drop(stream.shutdown().await);
}

async fn connection(app: Arc<App>, stream: TcpStream, closing: CancellationToken, cut: CancellationToken) {
    let link = Link::new(stream, app.config.times);
    app.metrics.connections.inc();
    let _counted = Counted(&app);
    let service = {
        let (app, link) = (Arc::clone(&app), Arc::clone(&link));
        service_fn(move |request: hyper::Request<Incoming>| {
            let (app, link) = (Arc::clone(&app), Arc::clone(&link));
            // In a box of its own, which is gone while an answer streams: hyper keeps the room for it as long as the connection lives.
            Box::pin(async move { Ok::<_, Infallible>(http::answer(app, link, request).await) })
        })
    };
    let mut builder = http1::Builder::new();
    builder.half_close(true).header_read_timeout(None).max_headers(MOST_HEADERS).max_buf_size(BUFFER);
    let mut http = pin!(builder.serve_connection(TokioIo::new(Io(Arc::clone(&link))), service));
    let (mut closing, mut cut) = (pin!(closing.cancelled_owned()), pin!(cut.cancelled_owned()));
    let mut alarm = Alarm::default();
    let mut told = false;
    std::future::poll_fn(|cx| {
        link.turn();
        if !told && closing.as_mut().poll(cx).is_ready() {
            told = true;
            http.as_mut().graceful_shutdown();
        }
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if http.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match link.watch(cx) {
                Client::Same => {}
                Client::Finished => continue,
                Client::Gone => return Poll::Ready(()),
            }
            match link.deadline().map(|deadline| alarm.poll(deadline, cx)) {
                Some(Poll::Ready(())) if link.gives_up() => return Poll::Ready(()),
                Some(Poll::Ready(())) => {}
                Some(Poll::Pending) | None => return Poll::Pending,
            }
        }
    })
    .await;
}

/// A connection in the gauge.
struct Counted<'a>(&'a App);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}
