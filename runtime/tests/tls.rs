//! Members reach each other and nobody else does, also while certificates and authorities change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use m1_runtime::tls::{Identity, Stream, Tls, accepts, incoming};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt;
use tower_service::Service;

const NAME: &str = "m1.serving.svc";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { issuer: Issuer::new(params, key), pem }
}

impl Authority {
    /// Certificate and key for a name, good for an hour from now.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = SystemTime::now().into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn member(signer: &Authority, trusted: &[&Authority], name: &str) -> Tls {
    let (certificate, key) = signer.sign(name);
    let authorities: String = trusted.iter().map(|authority| authority.pem.as_str()).collect();
    let tls = Tls::new(NAME).unwrap();
    tls.replace(Identity::from_pem(certificate.as_bytes(), key.as_bytes(), authorities.as_bytes()).unwrap());
    tls
}

/// A server that says what it is told; returns its address.
async fn echo(tls: Tls) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut streams = incoming(listener, Some(tls));
    tokio::spawn(async move {
        while let Some(Ok(mut stream)) = streams.next().await {
            tokio::spawn(async move {
                let mut word = [0; 5];
                stream.read_exact(&mut word).await?;
                stream.write_all(&word).await
            });
        }
    });
    address
}

async fn say(stream: &mut Stream) -> std::io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut word = [0; 5];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut word)).await??;
    assert_eq!(&word, b"hello");
    Ok(())
}

/// In TLS 1.3 a client learns that it was refused when it first reads.
async fn talk(tls: &Tls, address: &str) -> std::io::Result<()> {
    let mut connector = m1_runtime::tls::Connector::new(tls.clone());
    let stream: TokioIo<Stream> = connector.call(format!("http://{address}").parse().unwrap()).await?;
    say(&mut stream.into_inner()).await
}

#[tokio::test]
async fn members_talk_and_strangers_do_not() {
    let (ours, theirs) = (authority(), authority());
    let address = echo(member(&ours, &[&ours], NAME)).await;
    talk(&member(&ours, &[&ours], NAME), &address).await.unwrap();
    // Another deployment's certificate, though it would believe this one.
    assert!(talk(&member(&theirs, &[&ours, &theirs], NAME), &address).await.is_err());
    // This server's certificate is for another name.
    let other = echo(member(&ours, &[&ours], "m2.serving.svc")).await;
    assert!(talk(&member(&ours, &[&ours], NAME), &other).await.is_err());
    // No certificate at all, and no greeting at all.
    assert!(talk(&Tls::new(NAME).unwrap(), &address).await.is_err());
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.windows(5).any(|word| word == b"hello"));
}

#[tokio::test]
async fn a_silent_peer_holds_nobody_up() {
    let ours = authority();
    let address = echo(member(&ours, &[&ours], NAME)).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    tokio::time::timeout(Duration::from_secs(2), talk(&member(&ours, &[&ours], NAME), &address)).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_authority_is_exchanged_without_a_gap() {
    let (old, new) = (authority(), authority());
    // First everybody believes both, one after the other; then everybody shows the new one's, one after the other.
    let (first, between) = ([&old], [&new, &old]);
    let steps =
        [member(&old, &first, NAME), member(&old, &between, NAME), member(&new, &between, NAME), member(&new, &[&new], NAME)];
    for pair in steps.windows(2) {
        for (server, client) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
            let address = echo(server.clone()).await;
            talk(client, &address).await.unwrap();
        }
    }
    assert!(talk(&steps[2], &echo(steps[0].clone()).await).await.is_err());
}

#[tokio::test]
async fn new_files_are_used_by_new_connections_and_standing_ones_stay() {
    let (old, new) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &old);
    let tls = Tls::new(NAME).unwrap();
    assert!(tls.read(folder.path()).unwrap());
    assert!(!tls.read(folder.path()).unwrap());
    let address = echo(tls.clone()).await;
    let follower = tokio::spawn(tls.clone().follow(folder.path().to_owned(), Duration::from_millis(20)));
    let mut connector = m1_runtime::tls::Connector::new(member(&old, &[&old], NAME));
    let mut standing = connector.call(format!("http://{address}").parse().unwrap()).await.unwrap().into_inner();
    // Half of an exchange changes nothing.
    std::fs::write(folder.path().join("tls.key"), "no key").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    talk(&member(&old, &[&old], NAME), &address).await.unwrap();
    write(folder.path(), &new);
    let newer = member(&new, &[&new], NAME);
    let reached = async {
        while talk(&newer, &address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), reached).await.unwrap();
    assert!(talk(&member(&old, &[&old], NAME), &address).await.is_err());
    say(&mut standing).await.unwrap();
    follower.abort();
}

fn write(folder: &Path, authority: &Authority) {
    let (certificate, key) = authority.sign(NAME);
    for (file, text) in [("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", &authority.pem)] {
        std::fs::write(folder.join(file), text).unwrap();
    }
}

#[test]
fn what_is_wrong_is_named() {
    let ours = authority();
    let ((certificate, key), (other, _)) = (ours.sign(NAME), ours.sign(NAME));
    let error = |certificate: &str, key: &str, authorities: &str| {
        Identity::from_pem(certificate.as_bytes(), key.as_bytes(), authorities.as_bytes()).unwrap_err().to_string()
    };
    assert_eq!(error("", &key, &ours.pem), "tls.crt: no certificate in it");
    assert!(error(&certificate, "x", &ours.pem).starts_with("tls.key: "));
    assert_eq!(error(&certificate, &key, "x"), "ca.crt: no certificate in it");
    assert!(error(&other, &key, &ours.pem).starts_with("tls.crt: "), "{}", error(&other, &key, &ours.pem));
    assert_eq!(Tls::new("a b").unwrap_err().to_string(), "\"a b\" is no DNS name");
    let folder = tempfile::tempdir().unwrap();
    let missing = Tls::new(NAME).unwrap().read(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("tls.crt: No such file"), "{missing}");
}

#[test]
fn a_certificate_is_accepted_from_its_authority_for_its_name_in_its_time() {
    let (ours, theirs) = (authority(), authority());
    let (certificate, _) = ours.sign(NAME);
    let (certificate, ours, theirs) = (certificate.as_bytes(), ours.pem.as_bytes(), theirs.pem.as_bytes());
    let after = |minutes: u64| SystemTime::now() + Duration::from_secs(60 * minutes);
    assert!(accepts(ours, certificate, NAME, after(1)));
    assert!(!accepts(ours, certificate, NAME, after(61)));
    assert!(!accepts(theirs, certificate, NAME, after(1)));
    assert!(!accepts(ours, certificate, "m2.serving.svc", after(1)));
    assert!(!accepts(ours, b"", NAME, after(1)));
}
