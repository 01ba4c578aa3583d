//! What the live calls of `Generate` hold: their (request id, attempt), which is unique, and the memory that their raw logits
//! may take until they are read. Everything is given back when its claim is dropped.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

use super::reasoned;

/// Longest request id and router name: several UUIDs.
const LONGEST_NAME: usize = 256;

/// All live calls of one worker.
#[derive(Debug)]
pub struct Live {
    attempts: Mutex<HashSet<(String, u32)>>,
    raw_logits: Mutex<u64>,
    raw_logits_limit: u64,
}

/// One call's part of it.
#[derive(Debug)]
pub struct Claim {
    live: Arc<Live>,
    attempt: Option<(String, u32)>,
    raw_logits: u64,
}

impl Live {
    /// No call yet; raw logits of all together take at most this many bytes.
    pub fn new(raw_logits_limit: u64) -> Arc<Self> {
        Arc::new(Self { attempts: Mutex::default(), raw_logits: Mutex::default(), raw_logits_limit })
    }

    /// Claims an attempt; one without a request id is not told from others.
    ///
    /// # Errors
    /// The pair lives already, or the id is no id.
    pub fn attempt(self: &Arc<Self>, request_id: &str, attempt: u32) -> Result<Claim, Status> {
        checked_name("request_id", request_id)?;
        let mut claim = Claim { live: self.clone(), attempt: None, raw_logits: 0 };
        if !request_id.is_empty() {
            let pair = (request_id.to_owned(), attempt);
            if !self.attempts.lock().unwrap_or_else(PoisonError::into_inner).insert(pair.clone()) {
                let message =
                    format!("attempt {attempt} of request {request_id:?} runs here already; a pair of its own is allowed");
                return Err(reasoned(Status::already_exists(message), "DuplicateAttempt"));
            }
            claim.attempt = Some(pair);
        }
        Ok(claim)
    }
}

impl Claim {
    /// Claims memory for raw logits as well.
    ///
    /// # Errors
    /// More than there may be at all, or than others leave now.
    pub fn raw_logits(&mut self, bytes: u64) -> Result<(), Status> {
        let (live, limit) = (self.live.clone(), self.live.raw_logits_limit);
        if bytes > limit {
            let message = format!("raw_logits of this request take {bytes} bytes; up to {limit} are allowed (--raw-logits-limit)");
            return Err(reasoned(Status::invalid_argument(message), "RawLogitsLimit"));
        }
        let mut claimed = live.raw_logits.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > limit - *claimed {
            let message = format!("raw_logits of this request take {bytes} bytes; {} of {limit} are free now", limit - *claimed);
            return Err(reasoned(Status::resource_exhausted(message), "RawLogitsFull"));
        }
        *claimed += bytes;
        self.raw_logits += bytes;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(pair) = &self.attempt {
            self.live.attempts.lock().unwrap_or_else(PoisonError::into_inner).remove(pair);
        }
        *self.live.raw_logits.lock().unwrap_or_else(PoisonError::into_inner) -= self.raw_logits;
    }
}

/// A name that is not too long to be kept.
pub fn checked_name(field: &str, name: &str) -> Result<(), Status> {
    if name.len() <= LONGEST_NAME {
        return Ok(());
    }
    let message = format!("{field} has {} bytes; up to {LONGEST_NAME} are allowed", name.len());
    Err(reasoned(Status::invalid_argument(message), "NameTooLong"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(status: &Status) -> (tonic::Code, String) {
        (status.code(), status.metadata().get("m1-reason").unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn an_attempt_lives_once_at_a_time() {
        let live = Live::new(0);
        let first = live.attempt("r", 1).unwrap();
        let error = live.attempt("r", 1).unwrap_err();
        assert_eq!(word(&error), (tonic::Code::AlreadyExists, "DuplicateAttempt".into()));
        assert_eq!(error.message(), "attempt 1 of request \"r\" runs here already; a pair of its own is allowed");
        let (_other, _none, _again) = (live.attempt("r", 2).unwrap(), live.attempt("", 1).unwrap(), live.attempt("", 1).unwrap());
        drop(first);
        assert!(live.attempt("r", 1).is_ok());
        assert_eq!(word(&live.attempt(&"r".repeat(257), 1).unwrap_err()), (tonic::Code::InvalidArgument, "NameTooLong".into()));
    }

    #[test]
    fn raw_logits_are_bounded_for_one_and_for_all() {
        let live = Live::new(100);
        let claim = |bytes| {
            let mut claim = live.attempt("", 0).unwrap();
            claim.raw_logits(bytes).map(|()| claim)
        };
        let error = claim(101).unwrap_err();
        assert_eq!(word(&error), (tonic::Code::InvalidArgument, "RawLogitsLimit".into()));
        assert_eq!(error.message(), "raw_logits of this request take 101 bytes; up to 100 are allowed (--raw-logits-limit)");
        let first = claim(60).unwrap();
        let error = claim(41).unwrap_err();
        assert_eq!(word(&error), (tonic::Code::ResourceExhausted, "RawLogitsFull".into()));
        assert_eq!(error.message(), "raw_logits of this request take 41 bytes; 40 of 100 are free now");
        drop(first);
        assert!(claim(100).is_ok());
    }
}
