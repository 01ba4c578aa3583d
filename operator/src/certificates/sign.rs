//! Making keys and certificates. ECDSA on P-256: every TLS library knows it, and a handshake takes well under a millisecond.

use std::time::{Duration, SystemTime};

use m1_operator_plan::render::CERTIFICATE_HOURS;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The common name of every authority; what it may sign is bounded by who believes it: the members of one deployment.
const AUTHORITY: &str = "minimax-m1 members";
/// Clocks of nodes differ.
const SKEW: Duration = Duration::from_secs(3600);
/// An authority is exchanged when somebody asks for it, not because time passes.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// A new authority: its certificate and its key, as PEM.
pub fn authority() -> Result<(Vec<u8>, Vec<u8>), Error> {
    let key = KeyPair::generate()?;
    let certificate = authority_params()?.self_signed(&key)?;
    Ok((certificate.pem().into_bytes(), key.serialize_pem().into_bytes()))
}

/// A new certificate for a name, signed by an authority's key: certificate and key, as PEM.
pub fn certificate(authority_key: &[u8], name: &str) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let authority_key = std::str::from_utf8(authority_key).map_err(|_| Error::CouldNotParseKeyPair)?;
    let issuer = Issuer::new(authority_params()?, KeyPair::from_pem(authority_key)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + Duration::from_secs(CERTIFICATE_HOURS * 3600)).into();
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate.pem().into_bytes(), key.serialize_pem().into_bytes()))
}

fn authority_params() -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
