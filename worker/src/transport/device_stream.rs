//! One connection that the device drives: counts what goes through it, stops reading where a look ends, and ends when it is told to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use m1_runtime::tls::{Stream, Tls, connect_urgent};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;

use super::device_io::{DeviceIoHandle, Shared};

/// A silent connection is probed by the kernel after this, which answers whether or not the device at the other end computes; see [`PROBE`].
const SILENT: Duration = Duration::from_secs(2);
/// Between probes, of which [`PROBES`] may stay without an answer.
const PROBE: Duration = Duration::from_secs(1);
const PROBES: u32 = 3;
/// Bytes that the kernel holds for a connection in each direction: a step's rows for one peer go out, and come in, though nobody reads or writes for a
/// while.
const BUFFER: usize = 2 << 20;

/// A connection on the runtime that it is made in.
#[derive(Debug)]
pub(super) struct DeviceStream {
    stream: Stream,
    shared: Arc<Shared>,
    driven: Driven,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The last look in which something was read.
    read_in: u64,
    /// Of a peer's connection.
    _room: Option<OwnedSemaphorePermit>,
}

/// What a service learns of a connection that the device drives.
#[derive(Debug, Clone)]
pub(super) struct Driven {
    /// Ends it; cancelled too when it has ended.
    pub end: CancellationToken,
    /// Its peer is known.
    pub greeted: CancellationToken,
    /// Who drives it.
    pub device: Arc<Shared>,
}

impl DeviceStream {
    /// Takes a connection over; call it where the device drives.
    pub fn new(mut stream: Stream, io: &DeviceIoHandle, room: Option<OwnedSemaphorePermit>) -> io::Result<Self> {
        stream.rehome()?;
        let shared = io.shared().clone();
        let driven = Driven { end: CancellationToken::new(), greeted: CancellationToken::new(), device: shared.clone() };
        let ended = Box::pin(driven.end.clone().cancelled_owned());
        shared.open.fetch_add(1, Ordering::Relaxed);
        let stream = Self { stream, shared, driven, ended, read_in: 0, _room: room };
        stream.tune()?;
        Ok(stream)
    }

    fn tune(&self) -> io::Result<()> {
        let socket = self.stream.socket();
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, SILENT)?;
        sockopt::set_tcp_keepintvl(socket, PROBE)?;
        sockopt::set_tcp_keepcnt(socket, PROBES)?;
        sockopt::set_socket_send_buffer_size(socket, BUFFER)?;
        sockopt::set_socket_recv_buffer_size(socket, BUFFER)?;
        Ok(())
    }

    fn counted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        written.map(|written| written.inspect(|bytes| self.shared.count(*bytes)))
    }
}

impl Drop for DeviceStream {
    fn drop(&mut self) {
        self.driven.end.cancel();
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for DeviceStream {
    type ConnectInfo = Driven;

    fn connect_info(&self) -> Driven {
        self.driven.clone()
    }
}

impl AsyncRead for DeviceStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match self.shared.over() {
            true => {
                self.shared.hold(context.waker(), self.read_in == self.shared.look());
                Poll::Pending
            }
            false => Pin::new(&mut self.stream).poll_read(context, buffer)?,
        };
        if read.is_pending() {
            // One that is told to end reads as if the peer had gone. It is asked now and then only: the runtime lets nobody read on and on.
            return self.ended.as_mut().poll(context).map(Ok);
        }
        self.read_in = self.shared.look();
        self.shared.count(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DeviceStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.counted(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.counted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Makes connections for a channel that the device drives. Reaching the peer and greeting it run on the IO threads, which do not compute.
#[derive(Clone, Debug)]
pub(super) struct DeviceConnector {
    pub tls: Option<Tls>,
    pub io: DeviceIoHandle,
    /// The IO threads.
    pub elsewhere: Handle,
    /// An attempt beyond this counts as failed.
    pub limit: Duration,
}

impl tower_service::Service<Uri> for DeviceConnector {
    type Response = TokioIo<DeviceStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tls, io, elsewhere, limit } = self.clone();
        Box::pin(async move {
            let connecting = async move { tokio::time::timeout(limit, connect_urgent(&uri, tls.as_ref())).await };
            let stream = elsewhere.spawn(connecting).await.map_err(io::Error::other)?.map_err(|_| io::ErrorKind::TimedOut)??;
            Ok(TokioIo::new(DeviceStream::new(stream, &io, None)?))
        })
    }
}
