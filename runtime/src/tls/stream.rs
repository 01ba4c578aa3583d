//! Connections of either sort as tonic takes them: those that come in, and those that go out.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
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

use super::{HANDSHAKE, Tls, urgent};

/// Connections that are greeted and wait to be taken.
const GREETED: usize = 16;
/// After an error of the listener, for want of file descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection, plain or encrypted.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Plain {
        /// What was read of it already.
        head: Vec<u8>,
        /// The rest.
        tcp: TcpStream,
    },
    /// Encrypted, with a member at the other end.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn plain(tcp: TcpStream) -> Self {
        Self::Plain { head: Vec::new(), tcp }
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain { tcp, .. } => tcp,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Takes the connection over to the runtime in which this is called: from now on that one waits for it.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn rehome(&mut self) -> io::Result<()> {
        let socket = match self {
            Self::Plain { tcp, .. } => tcp,
            Self::Tls(stream) => stream.get_mut().0,
        };
        // The other runtime forgets its number of the socket where that one is dropped.
        *socket = TcpStream::from_std(socket.as_fd().try_clone_to_owned()?.into())?;
        Ok(())
    }

    /// Whether whoever has connected asks for haste.
    fn urgent(&self) -> bool {
        match self {
            Self::Plain { head, .. } => urgent::marked(head) == Some(true),
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(urgent::PROTOCOL),
        }
    }
}

/// Takes urgent connections in; gives back what it does not take.
pub type TakeUrgent = Arc<dyn Fn(Stream) -> Result<(), Stream> + Send + Sync>;

impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.socket().connect_info()
    }
}

/// What connects to a listener. Greetings run beside each other, so that a peer that says nothing holds nobody up. Small answers are
/// not held back (TCP_NODELAY): they would wait for delayed acknowledgements, 40 ms.
pub fn incoming(listener: TcpListener, tls: Option<Tls>) -> ReceiverStream<io::Result<Stream>> {
    sorted(listener, tls, None)
}

/// The same, but for connections that ask for haste ([`connect_urgent`]), which are given to `urgent` first.
pub fn sorted(listener: TcpListener, tls: Option<Tls>, urgent: Option<TakeUrgent>) -> ReceiverStream<io::Result<Stream>> {
    let (sender, receiver) = mpsc::channel(GREETED);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = accept(&listener, tls.as_ref(), urgent.as_ref(), &sender) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept(listener: &TcpListener, tls: Option<&Tls>, urgent: Option<&TakeUrgent>, sender: &mpsc::Sender<io::Result<Stream>>) {
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
        let (tls, urgent, sender) = (tls.cloned(), urgent.cloned(), sender.clone());
        tokio::spawn(async move {
            let greeted = match tls {
                None if urgent.is_some() => first_words(stream).await,
                None => Ok(Stream::plain(stream)),
                Some(tls) => tls.accept(stream).await,
            };
            let stream = match greeted {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(%peer, %error, "a peer that is no member was let go"),
            };
            let left = match urgent.filter(|_| stream.urgent()) {
                None => Some(stream),
                Some(take) => take(stream).err(),
            };
            if let Some(stream) = left {
                // Nobody takes it: the server has ended.
                drop(sender.send(Ok(stream)).await);
            }
        });
    }
}

/// Reads so much of a plain connection that it is known whether it asks for haste. One that says nothing for a while does not.
async fn first_words(tcp: TcpStream) -> io::Result<Stream> {
    let mut stream = Stream::plain(tcp);
    let Stream::Plain { head, tcp } = &mut stream else { return Ok(stream) };
    let read = async {
        while urgent::marked(head).is_none() {
            tcp.readable().await?;
            let (known, mut more) = (head.len(), [0; urgent::HEAD]);
            match tcp.try_read(&mut more[known..]) {
                Ok(0) => return Ok(()),
                Ok(read) => head.extend_from_slice(&more[known..known + read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    if let Ok(read) = tokio::time::timeout(HANDSHAKE, read).await {
        read?;
    }
    Ok(stream)
}

/// Connects to `uri`'s host and port and asks for haste: with `tls` by the protocol that is agreed upon. Without, the caller says it in
/// the settings of HTTP/2, see [`urgent`](super::urgent).
///
/// # Errors
/// Nobody answers, or whoever does is no member.
pub async fn connect_urgent(uri: &Uri, tls: Option<&Tls>) -> io::Result<Stream> {
    let tcp = connect_tcp(uri).await?;
    match tls {
        None => Ok(Stream::plain(tcp)),
        Some(tls) => tls.greet_urgent(tcp).await,
    }
}

async fn connect_tcp(uri: &Uri) -> io::Result<TcpStream> {
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{uri}: not HOST:PORT")));
    };
    // A URI writes IPv6 addresses in brackets.
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
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
        Box::pin(async move { Ok(TokioIo::new(tls.greet(connect_tcp(&uri).await?).await?)) })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { head, .. } if !head.is_empty() => {
                let part = head.len().min(buffer.remaining());
                buffer.put_slice(&head[..part]);
                head.drain(..part);
                Poll::Ready(Ok(()))
            }
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }

    // Heads and bodies of frames go out in one system call on plain connections.
    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_write_vectored(context, parts),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain { tcp, .. } => tcp.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
