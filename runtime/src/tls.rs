//! Mutual TLS between the routers, the workers and the operator of one deployment. All of them have the same identity: a
//! certificate for the deployment's name, from an authority that signs for nobody else, in a folder that a Secret is mounted to
//! (`tls.crt`, `tls.key`, `ca.crt`). Who shows such a certificate is a member; nobody else is spoken to.
//!
//! Certificates change while processes run: [`Tls::follow`] reads them again, and every connection that is made afterwards uses
//! the new ones. Connections that stand stay.

mod identity;
mod stream;
pub mod urgent;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Endpoint};

pub use identity::{Identity, accepts};
pub use stream::{Connector, Stream, TakeUrgent, connect_urgent, incoming, sorted};

/// How often [`Tls::follow`] looks at the files. The kubelet takes a minute or two to bring a changed Secret to a pod.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// A peer that does not finish its greeting within this is let go.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The files of a Secret of type `kubernetes.io/tls`, and the authorities beside them.
const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// Why there is no identity, or none for this peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{file}: {message}")]
    Content {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Not a name that certificates can be for.
    #[error("{given:?} is no DNS name")]
    Name {
        /// What was given.
        given: String,
    },
}

impl TlsError {
    fn content(file: &'static str, message: impl std::fmt::Display) -> Self {
        Self::Content { file, message: message.to_string() }
    }
}

/// The identity of this process, as it is now. Cheap to clone; all clones see a change.
#[derive(Clone, Debug)]
pub struct Tls {
    name: ServerName<'static>,
    identity: Arc<RwLock<Option<Arc<Identity>>>>,
}

impl Tls {
    /// Without certificates yet: no connection is made or taken before there are some. `name` is whom every peer's certificate
    /// must be for.
    ///
    /// # Errors
    /// The name is none.
    pub fn new(name: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name { given: name.to_owned() })?;
        Ok(Self { name, identity: Arc::default() })
    }

    /// Takes an identity for the one before.
    pub fn replace(&self, identity: Identity) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(identity));
    }

    /// The identity, if there is one.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a folder's files if they have changed. True where they have. What cannot be used changes nothing.
    ///
    /// # Errors
    /// A file is missing or does not hold what it should; so it may be for a moment while the files are being exchanged.
    pub fn read(&self, folder: &Path) -> Result<bool, TlsError> {
        let [certificate, key, authorities] = FILES.map(|file| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        });
        let (certificate, key, authorities) = (certificate?, key?, authorities?);
        if self.identity().is_some_and(|known| known.is_of([&certificate, &key, &authorities])) {
            return Ok(false);
        }
        self.replace(Identity::from_pem(&certificate, &key, &authorities)?);
        Ok(true)
    }

    /// Looks at a folder's files for as long as the process runs. An empty folder is waited for.
    pub async fn follow(self, folder: PathBuf, every: Duration) {
        let mut said = String::new();
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            let (tls, path) = (self.clone(), folder.clone());
            // A file system that hangs must not hold the event loop.
            let read = tokio::task::spawn_blocking(move || tls.read(&path)).await;
            match read {
                Ok(Ok(false)) | Err(_) => {}
                Ok(Ok(true)) => {
                    tracing::info!(folder = %folder.display(), "certificates read");
                    said.clear();
                }
                Ok(Err(error)) => {
                    let words = error.to_string();
                    if words != said {
                        tracing::warn!(folder = %folder.display(), error = words, "certificates cannot be read; those known last stay");
                        said = words;
                    }
                }
            }
        }
    }

    /// Greets a peer that has connected.
    async fn accept(&self, stream: TcpStream) -> std::io::Result<Stream> {
        let identity = self.identity().ok_or_else(no_identity)?;
        let greeting = TlsAcceptor::from(identity.server()).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE, greeting).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    /// Greets the peer at the other end of a connection.
    async fn greet(&self, stream: TcpStream) -> std::io::Result<Stream> {
        let identity = self.identity().ok_or_else(no_identity)?;
        self.greet_with(identity.client(), stream).await
    }

    /// The same, asking for haste.
    async fn greet_urgent(&self, stream: TcpStream) -> std::io::Result<Stream> {
        let identity = self.identity().ok_or_else(no_identity)?;
        self.greet_with(identity.urgent_client(), stream).await
    }

    async fn greet_with(&self, client: Arc<ClientConfig>, stream: TcpStream) -> std::io::Result<Stream> {
        let greeting = TlsConnector::from(client).connect(self.name.clone(), stream);
        let stream = tokio::time::timeout(HANDSHAKE, greeting).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

fn no_identity() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::NotConnected, "there is no certificate yet")
}

/// Connects a channel now: with `tls` encrypted and to a member only, without it plainly. The endpoint's scheme is `http` either way.
///
/// # Errors
/// Nobody answers, or whoever does is no member.
pub async fn connect(endpoint: Endpoint, tls: Option<&Tls>) -> Result<Channel, tonic::transport::Error> {
    match tls {
        Some(tls) => endpoint.connect_with_connector(Connector::new(tls.clone())).await,
        None => endpoint.connect().await,
    }
}

/// A channel that connects when it is first used, and again after it broke. Otherwise as [`connect`].
pub fn connect_lazy(endpoint: &Endpoint, tls: Option<&Tls>) -> Channel {
    match tls {
        Some(tls) => endpoint.connect_with_connector_lazy(Connector::new(tls.clone())),
        None => endpoint.connect_lazy(),
    }
}
