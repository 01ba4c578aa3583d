//! A folder behind a web address. What it holds is asked file by file, because a server need not list its folders. Checksums come
//! from a file `SHA256SUMS` (what `sha256sum *` writes), where the folder has one; else length and ETag must stay what they were.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode, header};

use super::checksum::{Promise, hex};
use super::error::{Refusal, SourceError};
use super::http::{Client, Failure, Target, segment};
use super::listing::RemoteFile;

/// The list of checksums.
const SUMS: &str = "SHA256SUMS";
/// Digits of a SHA-256.
const SUM_DIGITS: usize = 64;

/// A folder.
#[derive(Debug)]
pub(super) struct Folder {
    url: String,
    /// SHA-256 by file name; empty where the server has no list.
    sums: BTreeMap<String, String>,
}

impl Folder {
    /// Reads the list of checksums.
    pub fn open(url: &str, client: &Client, halt: &AtomicBool) -> Result<Self, SourceError> {
        let sums_url = format!("{url}/{SUMS}");
        let sums = match client.text(Target { file: SUMS, url: &sums_url }, halt) {
            Ok((_, text)) => parse_sums(&String::from_utf8_lossy(&text)),
            Err(error) if is_absent(&error) => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { url: url.to_owned(), sums })
    }

    /// One file; none where the server has none.
    pub fn look_up(&self, name: &str, client: &Client, halt: &AtomicBool) -> Result<Option<RemoteFile>, SourceError> {
        let url = format!("{}/{}", self.url, segment(name));
        let target = Target { file: name, url: &url };
        // Every server answers a GET of one byte; not every one answers HEAD.
        let first_byte = [("range", "bytes=0-0".to_owned())];
        let asked = client.tries(halt).until(target, || {
            let response = client.get(target, &first_byte)?;
            let size = length(&response).ok_or_else(|| Failure::from(target.answer("it does not say how long the file is")))?;
            Ok((size, etag(response.headers()), validator(response.headers())))
        });
        let (size, etag, validator) = match asked {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (promise, etag, blob) = match self.sums.get(name) {
            Some(sum) => (Promise::Sha256(sum.clone()), None, sum.clone()),
            None => {
                let content = format!("{url}\0{size}\0{}", validator.unwrap_or_default());
                (Promise::Nothing, etag, hex(&Sha256::digest(content)))
            }
        };
        Ok(Some(RemoteFile { name: name.to_owned(), url, size, promise, etag, blob }))
    }
}

/// Object stores answer 403 for what is not there, where the folder may not be listed.
fn is_absent(error: &SourceError) -> bool {
    matches!(error, SourceError::Refused { why: Refusal::NoFile | Refusal::AccessDenied, .. })
}

/// Lines of `SUM  NAME` or `SUM *NAME`; other lines and names in other folders do not count.
fn parse_sums(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (sum, name) = line.split_once([' ', '\t'])?;
        let name = name.trim_start_matches([' ', '\t', '*']);
        let name = name.strip_prefix("./").unwrap_or(name).trim_end();
        let whole = sum.len() == SUM_DIGITS && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        whole.then(|| (name.to_owned(), sum.to_ascii_lowercase()))
    };
    text.lines().filter_map(line).collect()
}

/// Length of the whole file, from an answer to a request for a part of it.
pub(super) fn length(response: &Response<Body>) -> Option<u64> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => content_range(response.headers())?.1,
        _ => response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok(),
    }
}

/// First byte and whole length of `Content-Range: bytes FIRST-LAST/LENGTH`; the length may be `*`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, length) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, length.trim().parse().ok()))
}

/// The ETag as it was sent.
pub(super) fn etag(headers: &HeaderMap) -> Option<String> {
    headers.get(header::ETAG)?.to_str().ok().map(str::to_owned)
}

/// What tells contents apart: the ETag, or the time of the last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    etag(headers).or_else(|| headers.get(header::LAST_MODIFIED)?.to_str().ok().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_as_sha256sum_writes_them() {
        let sum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let text = format!("{sum}  a\n{} *b c\n# no\n{sum}  ./d\nabc  e\n", sum.to_uppercase());
        let names: Vec<_> = parse_sums(&text).into_iter().map(|(name, given)| (name, given == sum)).collect();
        assert_eq!(names, [("a".to_owned(), true), ("b c".to_owned(), true), ("d".to_owned(), true)]);
    }

    #[test]
    fn ranges() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(of("bytes 5-9/20"), Some((5, Some(20))));
        assert_eq!(of("bytes 5-9/*"), Some((5, None)));
        assert_eq!(of("bytes */20"), None);
    }
}
