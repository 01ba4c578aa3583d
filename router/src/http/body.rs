//! A request's body: bounded in bytes and in time, before and after it was unpacked.

use std::io::Read;
use std::pin::pin;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use http::{HeaderMap, header};
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use crate::error::{ApiError, cut};
use crate::reading::{Held, Readers};

/// The least that must come of a body in each [`WINDOW`], so that what came fast is no leave to stand still with it: 1 KiB per second.
const LEAST: usize = 10 << 10;
/// See [`LEAST`]. Also the longest pause.
const WINDOW: Duration = Duration::from_secs(10);
/// Bytes set aside for a body whose length is told; the rest grows as it comes, so that a promise costs nothing.
const SET_ASIDE: usize = 1 << 20;

/// What a body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes, packed and unpacked.
    pub bytes: usize,
    /// The longest wait for all of it.
    pub time: Duration,
}

/// A body as it came.
#[derive(Debug, Default)]
pub struct Given {
    bytes: Vec<u8>,
    gzip: bool,
    limit: usize,
    held: Held,
}

impl Given {
    /// Unpacks it, if that gives no more than so many bytes; else it stays as it came. Takes a moment for long ones.
    ///
    /// # Errors
    /// Damaged, or longer than allowed.
    pub fn unpack(&mut self, most: usize) -> Result<(), ApiError> {
        if !self.gzip {
            return Ok(());
        }
        let most = most.min(self.limit);
        let mut out = Vec::new();
        let read = MultiGzDecoder::new(self.bytes.as_slice()).take(most as u64 + 1).read_to_end(&mut out);
        read.map_err(|error| ApiError::Malformed(format!("the body is not gzip, as its Content-Encoding says: {error}")))?;
        match out.len() > most {
            true if most == self.limit => Err(ApiError::TooLarge { limit: self.limit }),
            true => Ok(()),
            false => {
                (self.bytes, self.gzip) = (out, false);
                Ok(())
            }
        }
    }

    /// Its bytes, and the memory that was set aside for them.
    pub fn into_parts(self) -> (Vec<u8>, Held) {
        (self.bytes, self.held)
    }

    /// Bytes that came.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether it has to be unpacked.
    pub fn is_packed(&self) -> bool {
        self.gzip
    }
}

/// Reads a body.
///
/// # Errors
/// An encoding that is not known, too many bytes (before they are read, where their number is told), too slow, or a client that breaks off.
pub async fn read(headers: &HeaderMap, body: Incoming, bounds: &Bounds, readers: &Readers) -> Result<Given, ApiError> {
    let gzip = is_gzip(headers)?;
    let told = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if told > bounds.bytes {
        return Err(ApiError::TooLarge { limit: bounds.bytes });
    }
    let mut held = Held::default();
    let mut started = Instant::now();
    let (mut window, mut enough) = (started + WINDOW, LEAST);
    let mut bytes = Vec::with_capacity(told.min(SET_ASIDE));
    let mut body = pin!(body);
    loop {
        let due = window.min(started + bounds.time);
        let next = tokio::time::timeout_at(due, std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)));
        let next = tokio::select! {
            next = next => next,
            error = held.gives_way() => return Err(error),
        };
        let slow = |_| ApiError::TooSlow { seconds: started.elapsed().as_secs(), most: bounds.time.as_secs() };
        match next.map_err(slow)? {
            None => {
                held.mark_complete();
                return Ok(Given { bytes, gzip, limit: bounds.bytes, held });
            }
            Some(Err(error)) => return Err(ApiError::Malformed(format!("the body could not be read: {error}"))),
            Some(Ok(frame)) => {
                let Ok(part) = frame.into_data() else { continue };
                if bytes.len().saturating_add(part.len()) > bounds.bytes {
                    return Err(ApiError::TooLarge { limit: bounds.bytes });
                }
                let came = Instant::now();
                readers.hold(&mut held, bytes.len() + part.len()).await?;
                // The wait for memory is not the client's.
                let waited = came.elapsed();
                started += waited;
                if bytes.len() + part.len() >= enough {
                    (window, enough) = (came + WINDOW, bytes.len() + part.len() + LEAST);
                }
                window += waited;
                if told > 0 && bytes.capacity() - bytes.len() < part.len() {
                    // Doubling would hold up to three times the body.
                    bytes.reserve_exact((told - bytes.len()).min(bytes.len()).max(part.len()));
                }
                bytes.extend_from_slice(&part);
            }
        }
    }
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, ApiError> {
    let mut all = headers.get_all(header::CONTENT_ENCODING).iter();
    let (first, second) = (all.next(), all.next());
    let named = first.map_or(Ok("identity"), |value| value.to_str().map(str::trim));
    match (named, second) {
        (Ok(name), None) if name.eq_ignore_ascii_case("identity") || name.is_empty() => Ok(false),
        (Ok(name), None) if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => Ok(true),
        (Ok(name), None) => Err(ApiError::Encoding { given: cut(name) }),
        _ => Err(ApiError::Encoding { given: "several, or one that is no text".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn given(bytes: Vec<u8>, limit: usize) -> Given {
        Given { bytes, gzip: true, limit, held: Held::default() }
    }

    fn unpacked(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, ApiError> {
        let mut given = given(bytes, limit);
        given.unpack(limit).map(|()| given.bytes)
    }

    #[test]
    fn gzip_is_unpacked_within_the_limit() {
        assert_eq!(unpacked(packed(b"hello"), 5), Ok(b"hello".to_vec()));
        assert_eq!(unpacked(packed(b"hello!"), 5), Err(ApiError::TooLarge { limit: 5 }));
        let bomb = packed(&vec![0; 16 << 20]);
        assert!(bomb.len() < 32 << 10);
        assert_eq!(unpacked(bomb, 1 << 20), Err(ApiError::TooLarge { limit: 1 << 20 }));
        let mut cut = packed(b"hello");
        cut.truncate(cut.len() - 3);
        for damaged in [cut, b"hello".to_vec(), Vec::new()] {
            assert_eq!(unpacked(damaged, 99).unwrap_err().reason(), "malformed_json");
        }
    }

    #[test]
    fn what_is_longer_unpacked_stays_as_it_came() {
        let bytes = packed(&[7; 100]);
        let mut body = given(bytes.clone(), 200);
        body.unpack(99).unwrap();
        assert!(body.is_packed() && body.len() == bytes.len());
        body.unpack(100).unwrap();
        assert!(!body.is_packed() && body.len() == 100);
        assert_eq!(given(bytes, 99).unpack(1000), Err(ApiError::TooLarge { limit: 99 }));
    }

    #[test]
    fn other_encodings_are_named() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, http::HeaderValue::from_static(value));
            }
            is_gzip(&headers)
        };
        assert_eq!((with(&[]), with(&["identity"]), with(&["GZIP"])), (Ok(false), Ok(false), Ok(true)));
        assert_eq!(with(&["br"]).unwrap_err().to_string(), "Content-Encoding: given \"br\", allowed: gzip, identity");
        assert!(with(&["gzip, gzip"]).is_err() && with(&["gzip", "gzip"]).is_err());
    }
}
