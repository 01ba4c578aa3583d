//! HTTP for fetches: one request at a time, redirects followed by hand, so that a token goes to its own host and to no other; what
//! a refusal means; how often and when something is tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::error::{Refusal, SourceError};
use super::settings::{Retry, Token};

/// Redirects of one request: the hub needs one, a mirror of it perhaps three.
const MOST_REDIRECTS: usize = 10;
/// Until a connection stands, an answer begins, or the next bytes of a body come. A healthy server needs a second; what is
/// silent for longer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait that a server may ask for with Retry-After.
const LONGEST_WISH: Duration = Duration::from_secs(300);
/// How often a pause looks whether it still makes sense.
const LOOK: Duration = Duration::from_millis(50);
/// Longest JSON or list of sums: the tree of a repository has some hundred bytes a file.
const LONGEST_TEXT: u64 = 64 << 20;

/// Why one request had no usable answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may have one when it is sent again, at the earliest after the time the server names.
    Passing { what: String, after: Option<Duration> },
    /// It will not.
    Final(SourceError),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::Final(error)
    }
}

impl Failure {
    pub fn passing(what: impl ToString) -> Self {
        Failure::Passing { what: what.to_string(), after: None }
    }
}

/// What is asked for: its name for messages, and its address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub file: &'a str,
    pub url: &'a str,
}

impl Target<'_> {
    /// An answer that breaks the protocol.
    pub fn answer(&self, what: impl ToString) -> SourceError {
        SourceError::Answer { file: self.file.to_owned(), url: self.url.to_owned(), what: what.to_string() }
    }
}

/// Sends requests to one source.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// The token, and the scheme, host and port that may see it.
    token: Option<(Token, String)>,
    retry: Retry,
}

impl Client {
    /// `home` is the address of the source; a token goes nowhere else.
    pub fn new(home: &str, token: Option<Token>, retry: Retry) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("minimax-m1/", env!("CARGO_PKG_VERSION")))
            // The bytes of a file are what ranges and checksums count.
            .accept_encoding("identity")
            // The system's certificates, so that a mirror with a company's own works.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        let token = token.and_then(|token| Some((token, origin(home)?)));
        Self { agent: config.build().into(), token, retry }
    }

    /// Sends one GET, with these headers, and follows redirects. Any status but success is a failure.
    pub fn get(&self, target: Target<'_>, headers: &[(&str, String)]) -> Result<Response<Body>, Failure> {
        let mut url = target.url.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.agent.get(&url);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let token = self.token.as_ref().filter(|(_, home)| origin(&url).as_ref() == Some(home));
            if let Some((token, _)) = token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(ureq::Error::BadUri(what)) => return Err(target.answer(format!("address {what}")).into()),
                Err(error) => return Err(Failure::passing(error)),
            };
            if response.status().is_success() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(location) => url = join(&url, location),
                None => return Err(failure(target, &response, token.is_some())),
            }
        }
        Err(target.answer(format!("more than {MOST_REDIRECTS} redirects")).into())
    }

    /// Sends a GET until its whole answer has been read.
    pub fn text(&self, target: Target<'_>, halt: &AtomicBool) -> Result<(HeaderMap, Vec<u8>), SourceError> {
        self.tries(halt).until(target, || {
            let (parts, mut body) = self.get(target, &[])?.into_parts();
            let text = body.with_config().limit(LONGEST_TEXT).read_to_vec();
            match text {
                Ok(text) => Ok((parts.headers, text)),
                Err(ureq::Error::BodyExceedsLimit(limit)) => Err(target.answer(format!("more than {limit} bytes")).into()),
                Err(error) => Err(Failure::passing(error)),
            }
        })
    }

    /// The same for JSON.
    pub fn json<T: DeserializeOwned>(&self, target: Target<'_>, halt: &AtomicBool) -> Result<(HeaderMap, T), SourceError> {
        let (headers, text) = self.text(target, halt)?;
        let value = serde_json::from_slice(&text).map_err(|error| target.answer(format!("no JSON of this kind: {error}")))?;
        Ok((headers, value))
    }

    /// A count of tries, at its beginning.
    pub fn tries<'a>(&self, halt: &'a AtomicBool) -> Tries<'a> {
        Tries { retry: self.retry, failed: 0, halt }
    }
}

/// Counts tries without progress, and pauses between them.
pub(super) struct Tries<'a> {
    retry: Retry,
    failed: u32,
    halt: &'a AtomicBool,
}

impl Tries<'_> {
    /// Tries until it works, fails for good, or has failed too often.
    pub fn until<T>(mut self, target: Target<'_>, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, SourceError> {
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => self.again(target, failure)?,
            }
        }
    }

    /// Something came: the count begins anew.
    pub fn progress(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try; an error where there is none.
    pub fn again(&mut self, target: Target<'_>, failure: Failure) -> Result<(), SourceError> {
        let (what, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { what, after } => (what, after),
        };
        self.failed += 1;
        if self.failed >= self.retry.tries {
            let (file, url) = (target.file.to_owned(), target.url.to_owned());
            return Err(SourceError::Unreachable { file, url, tries: self.failed, what });
        }
        let doubled = self.retry.first_pause.saturating_mul(2_u32.saturating_pow(self.failed - 1));
        let pause = doubled.min(self.retry.longest_pause).max(after.unwrap_or_default().min(LONGEST_WISH));
        tracing::warn!(
            file = target.file,
            url = target.url,
            ?pause,
            failed = self.failed,
            of = self.retry.tries,
            what,
            "fetching again"
        );
        let end = Instant::now() + pause;
        loop {
            if self.halt.load(Ordering::Relaxed) {
                return Err(SourceError::Stopped);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

/// What an answer without success means.
fn failure(target: Target<'_>, response: &Response<Body>, token_sent: bool) -> Failure {
    let (status, headers) = (response.status(), response.headers());
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) {
        let after = text("retry-after").and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        return Failure::Passing { what: format!("status {status}"), after };
    }
    // The hub says what is missing in a header of its own; a repository that nobody may see is 401 there.
    let why = match (text("x-error-code"), status.as_u16()) {
        (Some("GatedRepo"), _) => Refusal::GatedRepository,
        (Some("RevisionNotFound"), _) => Refusal::NoRevision,
        (Some("EntryNotFound"), _) => Refusal::NoFile,
        (Some("RepoNotFound"), 404) => Refusal::NoRepository,
        (_, 401) if token_sent => Refusal::TokenRefused,
        (_, 401) => Refusal::TokenNeeded,
        (_, 403) => Refusal::AccessDenied,
        (_, 404 | 410) => Refusal::NoFile,
        _ => Refusal::Other,
    };
    let (file, url) = (target.file.to_owned(), target.url.to_owned());
    SourceError::Refused { file, url, status: status.as_u16(), why }.into()
}

/// Scheme, host and port of an address.
pub(super) fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some(format!("{scheme}://{}:{port}", uri.host()?.to_ascii_lowercase()))
}

/// The address that a redirect or a link leads to, seen from the page `base`.
pub(super) fn join(base: &str, location: &str) -> String {
    let scheme_end = base.find("://").map_or(0, |at| at + 3);
    let host_end = base[scheme_end..].find('/').map_or(base.len(), |at| scheme_end + at);
    if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}{location}", &base[..scheme_end.saturating_sub(2)])
    } else if location.starts_with('/') {
        format!("{}{location}", &base[..host_end])
    } else {
        let path = base.split(['?', '#']).next().unwrap_or(base);
        let folder = path.rfind('/').filter(|at| *at >= host_end).map_or(path, |at| &path[..at]);
        format!("{folder}/{location}")
    }
}

/// A text as one segment of an address's path.
pub(super) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_a_browser_would_go() {
        let base = "https://h.test/a/b?c=/d";
        for (location, url) in [
            ("https://cdn.test/x", "https://cdn.test/x"),
            ("//cdn.test/x", "https://cdn.test/x"),
            ("/x", "https://h.test/x"),
            ("x?y", "https://h.test/a/x?y"),
        ] {
            assert_eq!(join(base, location), url, "{location}");
        }
        assert_eq!(join("https://h.test", "/x"), "https://h.test/x");
        assert_eq!(join("https://h.test", "x"), "https://h.test/x");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://H.test/x"), origin("https://h.test:443"));
        assert_ne!(origin("http://h.test/x"), origin("https://h.test/x"));
        assert_ne!(origin("https://h.test/"), origin("https://h.test.evil/"));
        assert_eq!(segment("refs/pr/1 ä"), "refs%2Fpr%2F1%20%C3%A4");
    }
}
