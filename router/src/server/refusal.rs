//! Answers that are written without HTTP's machinery: to a head that hyper refuses, and to a connection that is one too many. Both have OpenAI's shape
//! and end the connection.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::error::ApiError;
use crate::http::{REQUEST_ID, request_id};

/// The whole answer, in bytes. Its request has no head that could be read, so the name in it is ours.
pub fn answer(error: &ApiError) -> Vec<u8> {
    let id = request_id(RandomState::new().build_hasher().finish());
    let (status, body) = (error.status(), error.body().to_string());
    let reason = status.canonical_reason().unwrap_or("Error");
    let retry = error.retry_after().map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{REQUEST_ID}: {id}\r\n{retry}connection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    )
    .into_bytes()
}

/// What takes the place of hyper's own answer to a head that it refuses; none where these bytes are something else. Hyper's has no body, and none of the
/// headers that every answer of this server has.
pub fn of_hyper(bytes: &[u8]) -> Option<Vec<u8>> {
    let status = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    if status.first() != Some(&b'4') {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    if !head.contains("content-length: 0\r\n") || head.contains(REQUEST_ID) || !head.ends_with("\r\n\r\n") {
        return None;
    }
    let error = match status {
        b"431" => ApiError::HeadTooLarge,
        b"414" => ApiError::UriTooLong,
        _ => ApiError::BadHead,
    };
    Some(answer(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_answers_are_replaced() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let answer = String::from_utf8(of_hyper(own).unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("\"code\":\"head_too_large\""), "{answer}");
        assert!(answer.contains("\r\nx-request-id: req-"), "{answer}");
        assert_ne!(of_hyper(own).unwrap(), answer.into_bytes(), "another request has another name");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n",
            "data: {}",
        ] {
            assert_eq!(of_hyper(other.as_bytes()), None, "{other}");
        }
    }
}
