//! Connections of either sort as tonic takes them: those that come in, and those that go out.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::Tls;

/// Connections that are greeted and wait to be taken.
const GREETED: usize = 16;
/// After an error of the listener, for want of file descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection, plain or encrypted.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Plain(TcpStream),
    /// Encrypted, with a member at the other end.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        match self {
            Self::Plain(stream) => stream.connect_info(),
            Self::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

/// What connects to a listener. Greetings run beside each other, so that a peer that says nothing holds nobody up. Small answers are
/// not held back (TCP_NODELAY): they would wait for delayed acknowledgements, 40 ms.
pub fn incoming(listener: TcpListener, tls: Option<Tls>) -> ReceiverStream<io::Result<Stream>> {
    let (sender, receiver) = mpsc::channel(GREETED);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = accept(&listener, tls.as_ref(), &sender) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept(listener: &TcpListener, tls: Option<&Tls>, sender: &mpsc::Sender<io::Result<Stream>>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY refused");
        }
        let (tls, sender) = (tls.cloned(), sender.clone());
        tokio::spawn(async move {
            let greeted = match tls {
                None => Ok(Stream::Plain(stream)),
                Some(tls) => tls.accept(stream).await,
            };
            match greeted {
                // Nobody takes it: the server has ended.
                Ok(stream) => drop(sender.send(Ok(stream)).await),
                Err(error) => tracing::debug!(%peer, %error, "a peer that is no member was let go"),
            }
        });
    }
}

/// Makes encrypted connections for a channel.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Tls,
}

impl Connector {
    /// With the identity of `tls`, as it is at each connection.
    pub fn new(tls: Tls) -> Self {
        Self { tls }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{uri}: not HOST:PORT")));
            };
            // A URI writes IPv6 addresses in brackets.
            let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.greet(stream).await?))
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }

    // Heads and bodies of frames go out in one system call on plain connections.
    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
