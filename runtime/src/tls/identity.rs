//! A certificate with its key and the authorities whose certificates are accepted, as rustls wants them. TLS 1.3 only: both ends
//! are ours.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version::TLS13};

use super::{FILES, TlsError, urgent};

/// gRPC is HTTP/2.
const PROTOCOL: &[u8] = b"h2";

/// One identity: what is shown to peers, and whom it believes.
#[derive(Debug)]
pub struct Identity {
    files: [Vec<u8>; 3],
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    urgent_client: Arc<ClientConfig>,
}

impl Identity {
    /// From PEM texts: a certificate (the chain may follow it), its key, and the authorities.
    ///
    /// # Errors
    /// A text holds no such thing, or key and certificate do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8], authorities: &[u8]) -> Result<Self, TlsError> {
        let [certificate_file, key_file, authorities_file] = FILES;
        let roots = Arc::new(roots(authorities)?);
        let chain = certificates(certificate, certificate_file)?;
        let parsed = || PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::content(key_file, error));
        let wrong = |error: rustls::Error| TlsError::content(certificate_file, error);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|error| TlsError::content(authorities_file, error))?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), parsed()?)
            .map_err(wrong)?;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, parsed()?)
            .map_err(wrong)?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        let mut urgent_client = client.clone();
        server.alpn_protocols = vec![urgent::PROTOCOL.to_vec(), PROTOCOL.to_vec()];
        urgent_client.alpn_protocols = server.alpn_protocols.clone();
        let files = [certificate, key, authorities].map(<[u8]>::to_vec);
        Ok(Self { files, server: Arc::new(server), client: Arc::new(client), urgent_client: Arc::new(urgent_client) })
    }

    /// Whether it was made from these texts.
    pub fn is_of(&self, files: [&[u8]; 3]) -> bool {
        self.files.each_ref().map(Vec::as_slice) == files
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(super) fn urgent_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.urgent_client)
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

/// Whether a certificate for `name` from one of `authorities` is accepted at a time: both as PEM texts.
pub fn accepts(authorities: &[u8], certificate: &[u8], name: &str, at: SystemTime) -> bool {
    let judged = || {
        let chain = certificates(certificate, FILES[0]).ok()?;
        let (first, rest) = chain.split_first()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(authorities).ok()?), provider()).build().ok()?;
        let name = ServerName::try_from(name.to_owned()).ok()?;
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).ok()?);
        verifier.verify_server_cert(first, rest, &name, &[], at).ok()
    };
    judged().is_some()
}

fn certificates(pem: &[u8], file: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| TlsError::content(file, error))?;
    if read.is_empty() { Err(TlsError::content(file, "no certificate in it")) } else { Ok(read) }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for authority in certificates(pem, FILES[2])? {
        store.add(authority).map_err(|error| TlsError::content(FILES[2], error))?;
    }
    Ok(store)
}

/// Named, because a process may hold several and rustls would not guess.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
