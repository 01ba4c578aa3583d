//! One client's connection below HTTP: bytes in and out, what the client is waited for, and whether it is still there. hyper reads and writes through
//! [`Io`]; the task that owns the connection asks [`Link::watch`] whether the client is gone and [`Link::deadline`] how long it may stay silent.
//!
//! While an answer is made hyper does not read. Then this reads ahead, so that a client that has gone is seen whatever it had sent before: a reset ends
//! the connection; a FIN ends it where a whole answer is made, and makes a stream say something, which a client that is gone answers with a reset.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio::time::Instant;

use m1_runtime::process;

use super::backlog::Backlog;
use super::head::{Framing, Scanner};
use super::refusal;

/// Bytes kept that came ahead of an answer: a hundred pipelined requests. What comes beyond stays with the kernel, which says all the same that the client
/// has gone, or has finished where all that it sends fits there.
const AHEAD: usize = 256 << 10;
/// Where more than that waits for so long behind a whole answer, it is thrown away, so that a FIN behind it is seen: the connection ends with what is kept.
const FLOOD: Duration = Duration::from_millis(500);
/// After an answer that left a body unread the client may go on sending for this long, so that it sees the answer and not a reset.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes that a client takes in each second of its write deadline, at the least, where it takes too little for the kernel to want more.
const LEAST_PER_SECOND: u64 = 1 << 10;
/// Bytes thrown away in one go then.
const SCRATCH: usize = 16 << 10;

/// How often it is looked whether a client that takes nothing is a burden.
const LOOK: Duration = Duration::from_millis(250);

/// How long a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// To send the head of a request, from its first byte on.
    pub head: Duration,
    /// Between requests, and before the first byte.
    pub idle: Duration,
    /// To take something of what waits for it.
    pub write: Duration,
}

/// What the connection does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a request.
    Idle,
    /// Reads a head.
    Head,
    /// A request is here, its body perhaps not yet; whoever reads that watches the time.
    Request,
    /// The request is read; how it will be answered is not known yet.
    Reading,
    /// An answer is made that is sent in one.
    Whole,
    /// An answer is sent while it is made.
    Stream,
    /// The last answer is out.
    Closing,
}

/// What has become of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// As before.
    Same,
    /// It has finished sending; the stream should say something.
    Finished,
    /// Nobody waits for the answer.
    Gone,
}

/// Bytes wait that the kernel does not take.
#[derive(Clone, Copy)]
struct Blocked {
    since: Instant,
    /// Bytes with the kernel then.
    unsent: usize,
}

struct State {
    phase: Phase,
    since: Instant,
    blocked: Option<Blocked>,
    /// Bytes of a whole answer that hyper has and the kernel has not, more or less: its head counts as part of it.
    unread: usize,
    /// A request has begun since the connection's task had its last turn.
    had_turn: bool,
    /// When it was last looked whether the client is a burden.
    looked: Instant,
    scanner: Scanner,
    ahead: Vec<u8>,
    /// Bytes that hyper got behind the head of this request, and how long its body is, where that was told.
    behind: u64,
    body: Option<u64>,
    /// hyper has got bytes of another request before it had answered one, so it may hold half a head when it waits.
    pipelines: bool,
    /// All that the client sends has come.
    fin: bool,
    /// The client has finished sending, but not all of it has been read.
    finished: bool,
    /// Since when no more is kept of what comes ahead.
    full: Option<Instant>,
    /// Bytes were thrown away: what is read ends with what came before them.
    flooded: bool,
    probe: bool,
    /// The client may still send what nobody reads.
    lingers: bool,
    /// Completes when the client has reset the connection, or has finished sending where that is not known yet; only needed while nothing is read.
    end: Option<Pin<Box<dyn Future<Output = io::Result<Ready>> + Send>>>,
}

/// A connection.
pub struct Link {
    stream: Arc<TcpStream>,
    times: Times,
    backlog: Arc<Backlog>,
    state: Mutex<State>,
}

impl Link {
    /// A connection that was just made.
    pub fn new(stream: TcpStream, times: Times) -> Arc<Self> {
        let state = State {
            phase: Phase::Idle,
            since: Instant::now(),
            blocked: None,
            unread: 0,
            had_turn: false,
            looked: Instant::now(),
            scanner: Scanner::default(),
            ahead: Vec::new(),
            behind: 0,
            body: None,
            pipelines: false,
            fin: false,
            finished: false,
            full: None,
            flooded: false,
            probe: false,
            lingers: false,
            end: None,
        };
        Arc::new(Self { stream: Arc::new(stream), times, backlog: Backlog::new(), state: Mutex::new(state) })
    }

    /// What it does from now on.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        state.since = Instant::now();
        state.end = None;
        if phase == Phase::Idle {
            let behind = std::mem::take(&mut state.behind);
            state.pipelines |= state.body.is_some_and(|length| behind > length);
        }
        // It had finished sending before it was known that this is a stream.
        state.probe |= state.has_finished() && phase == Phase::Stream;
    }

    /// A request's head is complete, and its body has so many bytes, where that was told; how it is framed, as it was written.
    pub fn begin(&self, body: Option<u64>) -> Framing {
        let mut state = self.lock();
        state.phase = Phase::Request;
        state.body = body;
        state.since = Instant::now();
        std::mem::take(&mut state.scanner).framing()
    }

    /// The connection's task has its turn.
    pub fn turn(&self) {
        self.lock().had_turn = false;
    }

    /// Whether the connection has begun another request in this turn of its task, and others on its loop should have theirs first: hyper goes on as long
    /// as there are requests.
    pub fn take_turn(&self) -> bool {
        std::mem::replace(&mut self.lock().had_turn, true)
    }

    /// A request is refused. Of its body there may be something to come that nobody reads.
    pub fn refused(&self) {
        let mut state = self.lock();
        state.lingers |= state.body.is_none_or(|length| state.behind < length);
    }

    /// A whole answer of so many bytes is on its way.
    pub fn owes(&self, bytes: usize) {
        self.lock().unread += bytes;
        self.backlog.add(bytes);
    }

    /// What is kept for the client.
    pub fn backlog(&self) -> &Arc<Backlog> {
        &self.backlog
    }

    /// Whether a comment is due because the client has finished sending; asked once.
    pub fn take_probe(&self) -> bool {
        std::mem::take(&mut self.lock().probe)
    }

    /// Whether the client has finished sending.
    pub fn has_finished(&self) -> bool {
        self.lock().has_finished()
    }

    /// Until when the client may stay as it is.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let blocked = state.blocked.map(|blocked| {
            let late = blocked.since + self.times.write;
            if self.backlog.is_empty() { late } else { late.min(state.looked.max(blocked.since) + LOOK) }
        });
        [blocked, state.due(&self.times), state.floods()].into_iter().flatten().min()
    }

    /// The deadline has passed: whether the client is given up. One that reads slowly is not: the kernel takes more only when a good part of what it has
    /// is gone. Of one that is given up what it did not take is thrown away: the kernel would keep it for minutes, for each of them.
    pub fn gives_up(&self) -> bool {
        let (mut state, now) = (self.lock(), Instant::now());
        if state.floods().is_some_and(|due| due <= now) {
            (state.flooded, state.end) = (true, None);
            return false;
        }
        let Some(blocked) = state.blocked else { return true };
        state.looked = now;
        let is_due = state.due(&self.times).is_some_and(|due| due <= now);
        if !is_due && !self.backlog.is_hog(now - blocked.since) {
            if now < blocked.since + self.times.write {
                return false;
            }
            let unsent = process::unsent(&*self.stream).unwrap_or(usize::MAX);
            let least = self.times.write.as_secs().saturating_mul(LEAST_PER_SECOND);
            if blocked.unsent.saturating_sub(unsent) as u64 >= least {
                state.blocked = Some(Blocked { since: now, unsent });
                return false;
            }
        }
        let reset = rustix::net::sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO));
        reset.unwrap_or_else(|error| tracing::debug!(%error, "a connection could not be reset"));
        true
    }

    /// Looks, while an answer is made, whether the client is still there.
    pub fn watch(&self, cx: &mut Context<'_>) -> Client {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Reading | Phase::Whole | Phase::Stream) {
            return Client::Same;
        }
        loop {
            if state.has_finished() {
                return if state.phase == Phase::Whole { Client::Gone } else { self.watch_end(&mut state, cx) };
            }
            if state.ahead.len() >= AHEAD && !state.flooded {
                state.full.get_or_insert_with(Instant::now);
                return self.watch_end(&mut state, cx);
            }
            match self.stream.poll_read_ready(cx) {
                Poll::Pending => return Client::Same,
                Poll::Ready(Err(_)) => return Client::Gone,
                Poll::Ready(Ok(())) => {}
            }
            let mut scratch = [0u8; 4096];
            match self.stream.try_read(&mut scratch) {
                Ok(0) => {
                    state.fin = true;
                    return state.finishes();
                }
                Ok(_) if state.flooded => {}
                Ok(count) => state.ahead.extend_from_slice(scratch.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Client::Gone,
            }
        }
    }

    /// Looks at what the kernel says of a client of whom nothing is read.
    fn watch_end(&self, state: &mut State, cx: &mut Context<'_>) -> Client {
        let (stream, has_finished) = (&self.stream, state.has_finished());
        let end = state.end.get_or_insert_with(|| {
            let stream = Arc::clone(stream);
            // What is urgent never comes; with it goes that the other side has finished.
            let interest = if has_finished { Interest::ERROR } else { Interest::ERROR.add(Interest::PRIORITY) };
            Box::pin(async move { stream.ready(interest).await })
        });
        match end.as_mut().poll(cx) {
            Poll::Pending => Client::Same,
            Poll::Ready(Ok(ready)) if !has_finished && !ready.is_error() => {
                (state.finished, state.end) = (true, None);
                state.finishes()
            }
            Poll::Ready(_) => Client::Gone,
        }
    }

    fn read(&self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if !state.ahead.is_empty() {
            let count = state.ahead.len().min(out.remaining());
            let part: Vec<u8> = state.ahead.drain(..count).collect();
            state.full = None;
            out.put_slice(&part);
            state.pipelines = true;
            state.seen(&mut []);
            return Poll::Ready(Ok(()));
        }
        if state.fin || state.flooded {
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        loop {
            // Into room that nobody has written to: most of hyper's buffer never becomes memory.
            match self.stream.try_read_buf(out) {
                Ok(0) => {
                    state.fin = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(_) => {
                    state.seen(out.filled_mut().get_mut(before..).unwrap_or_default());
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.stream.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(body) = parts.first().and_then(|part| refusal::of_hyper(part)) {
            // hyper's own word on a head that it refuses has no body; nothing follows it but the end.
            let _ = self.stream.try_write(&body);
            self.lock().lingers = true;
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        loop {
            match self.stream.try_write_vectored(parts) {
                Ok(count) => {
                    let mut state = self.lock();
                    state.blocked = None;
                    let taken = state.unread.min(count);
                    state.unread -= taken;
                    self.backlog.remove(taken);
                    if state.phase == Phase::Idle {
                        // The time between requests begins when the answer is with the kernel.
                        state.since = Instant::now();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let blocked = || Blocked { since: Instant::now(), unsent: process::unsent(&*self.stream).unwrap_or_default() };
                    self.lock().blocked.get_or_insert_with(blocked);
                    ready!(self.stream.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Says that nothing more comes. Where a request was not read whole, reads what the client still sends until it says so too.
    fn close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.phase != Phase::Closing {
            state.phase = Phase::Closing;
            state.since = Instant::now();
            rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write)?;
        }
        if !state.lingers && state.ahead.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0u8; SCRATCH];
        while !state.fin {
            match self.stream.try_read(&mut scratch) {
                Ok(0) => state.fin = true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.stream.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let unread = self.lock().unread;
        self.backlog.remove(unread);
    }
}

impl State {
    /// Whether the client has finished sending.
    fn has_finished(&self) -> bool {
        self.fin || self.finished
    }

    /// When what waits behind a whole answer is thrown away.
    fn floods(&self) -> Option<Instant> {
        self.full.filter(|_| self.phase == Phase::Whole && !self.flooded).map(|full| full + FLOOD)
    }

    /// Until when what the connection does now may last, whatever waits to be written.
    fn due(&self, times: &Times) -> Option<Instant> {
        match self.phase {
            // It takes the answer still, as fast as it can.
            Phase::Idle if self.blocked.is_some() => None,
            Phase::Idle if self.pipelines => Some(self.since + times.idle.min(times.head)),
            Phase::Idle => Some(self.since + times.idle),
            Phase::Head => Some(self.since + times.head),
            Phase::Closing => Some(self.since + LINGER),
            Phase::Request | Phase::Reading | Phase::Whole | Phase::Stream => None,
        }
    }

    /// The client has finished sending: nobody waits for a whole answer, as far as can be known, and a stream should say something.
    fn finishes(&mut self) -> Client {
        match self.phase {
            Phase::Whole => return Client::Gone,
            Phase::Stream => self.probe = true,
            _ => {}
        }
        Client::Finished
    }

    /// Bytes came that hyper reads now.
    fn seen(&mut self, bytes: &mut [u8]) {
        if self.phase == Phase::Idle {
            self.phase = Phase::Head;
            self.since = Instant::now();
        }
        let behind = if self.phase == Phase::Head { self.scanner.feed(bytes) } else { bytes.len() };
        self.behind = self.behind.saturating_add(behind as u64);
    }
}

/// A [`Link`] as hyper reads and writes it.
pub struct Io(pub Arc<Link>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.read(cx, out)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close(cx)
    }
}
