//! What was generated for one request, in order. Written by its session, read by whoever tells the client; neither waits for the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use m1_proto::worker::{TokenLogprobs, Tokens};

use super::Finished;
use crate::error::ApiError;
use crate::server::Backlog;

/// Tokens that a reader gets at a time: he makes a text of each, with log-probabilities some kilobytes, and others wait meanwhile.
const PORTION: usize = 32;

#[derive(Default)]
struct Inner {
    accepted: bool,
    ids: Vec<u32>,
    /// One for each id where they were asked for, else none.
    logprobs: Vec<TokenLogprobs>,
    end: Option<Result<Finished, ApiError>>,
    reader: Option<Waker>,
}

/// The log.
pub struct Log {
    inner: Mutex<Inner>,
    with_logprobs: bool,
    backlog: Arc<Backlog>,
}

/// How far a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(usize);

/// What a reader finds.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The reader's lists hold the next tokens.
    Tokens,
    /// Nothing comes after what was read.
    End(Result<Finished, ApiError>),
}

impl Log {
    /// Nothing was generated yet.
    pub fn new(with_logprobs: bool, backlog: Arc<Backlog>) -> Self {
        Self { inner: Mutex::default(), with_logprobs, backlog }
    }

    /// A worker has the sequence.
    pub fn accept(&self) {
        let mut inner = self.lock();
        inner.accepted = true;
        wake(inner);
    }

    /// Takes the next tokens. False: there would be more than `most`, and they are left out.
    pub fn push(&self, tokens: Tokens, most: u32) -> bool {
        let mut inner = self.lock();
        if inner.ids.len().saturating_add(tokens.ids.len()) > most as usize {
            return false;
        }
        inner.ids.extend_from_slice(&tokens.ids);
        if self.with_logprobs {
            self.backlog.add(tokens.logprobs.iter().map(TokenLogprobs::kept).sum());
            inner.logprobs.extend(tokens.logprobs);
            // A worker that says none for a token says nothing of it.
            let ids = inner.ids.len();
            inner.logprobs.resize_with(ids, TokenLogprobs::default);
        }
        wake(inner);
        true
    }

    /// Nothing more comes. Only the first end counts.
    pub fn end(&self, end: Result<Finished, ApiError>) {
        let mut inner = self.lock();
        if inner.end.is_none() {
            inner.end = Some(end);
            wake(inner);
        }
    }

    /// Ready once a worker has the sequence, or with the error that it ended with before.
    pub fn poll_accepted(&self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let mut inner = self.lock();
        match &inner.end {
            _ if inner.accepted => Poll::Ready(Ok(())),
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            Some(Ok(_)) => Poll::Ready(Ok(())),
            None => {
                register(&mut inner, cx);
                Poll::Pending
            }
        }
    }

    /// Moves what comes after `place` into the reader's lists, whose content it replaces. Log-probabilities are read once: they are the most of a log.
    pub fn poll(
        &self,
        place: &mut Place,
        ids: &mut Vec<u32>,
        logprobs: &mut Vec<TokenLogprobs>,
        cx: &mut Context<'_>,
    ) -> Poll<News> {
        let mut inner = self.lock();
        ids.clear();
        logprobs.clear();
        let end = inner.ids.len().min(place.0.saturating_add(PORTION));
        let inner = &mut *inner;
        if let Some(new) = inner.ids.get(place.0..end).filter(|new| !new.is_empty()) {
            ids.extend_from_slice(new);
            let read = inner.logprobs.get_mut(place.0..end).unwrap_or_default();
            self.backlog.remove(read.iter().map(TokenLogprobs::kept).sum());
            logprobs.extend(read.iter_mut().map(std::mem::take));
            place.0 = end;
            return Poll::Ready(News::Tokens);
        }
        match &inner.end {
            Some(end) => Poll::Ready(News::End(end.clone())),
            None => {
                register(inner, cx);
                Poll::Pending
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let unread = self.lock().logprobs.iter().map(TokenLogprobs::kept).sum();
        self.backlog.remove(unread);
    }
}

fn register(inner: &mut Inner, cx: &Context<'_>) {
    if !inner.reader.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
        inner.reader = Some(cx.waker().clone());
    }
}

/// Wakes outside the lock, so that the reader does not run into it.
fn wake(mut inner: MutexGuard<'_, Inner>) {
    let reader = inner.reader.take();
    drop(inner);
    if let Some(reader) = reader {
        reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Tokens {
        Tokens { ids: ids.to_vec(), logprobs: Vec::new() }
    }

    fn read(log: &Log, place: &mut Place) -> Option<Vec<u32>> {
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        match log.poll(place, &mut ids, &mut logprobs, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(News::Tokens) => Some(ids),
            Poll::Ready(News::End(_)) => Some(Vec::new()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn every_reader_sees_all_in_order_at_his_own_place() {
        let log = Log::new(false, Backlog::new());
        let (mut one, mut two) = (Place::default(), Place::default());
        assert_eq!(read(&log, &mut one), None);
        assert!(log.push(tokens(&[1, 2]), 9));
        assert_eq!(read(&log, &mut one), Some(vec![1, 2]));
        assert!(log.push(tokens(&[3]), 9));
        log.end(Err(ApiError::Cancelled));
        log.end(Err(ApiError::BadHead));
        assert_eq!(read(&log, &mut one), Some(vec![3]));
        assert_eq!(read(&log, &mut two), Some(vec![1, 2, 3]));
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        let end = log.poll(&mut two, &mut ids, &mut logprobs, &mut Context::from_waker(Waker::noop()));
        assert_eq!(end, Poll::Ready(News::End(Err(ApiError::Cancelled))), "the first end counts");
    }

    #[test]
    fn a_reader_that_was_away_gets_it_in_portions() {
        let log = Log::new(false, Backlog::new());
        assert!(log.push(tokens(&(0..100).collect::<Vec<u32>>()), 100));
        let mut place = Place::default();
        let portions: Vec<usize> = (0..4).map(|_| read(&log, &mut place).unwrap().len()).collect();
        assert_eq!((portions, read(&log, &mut place)), (vec![32, 32, 32, 4], None));
    }

    #[test]
    fn it_holds_no_more_than_was_asked_for() {
        let log = Log::new(true, Backlog::new());
        assert!(log.push(tokens(&[1, 2]), 3));
        assert!(!log.push(tokens(&[3, 4]), 3));
        let mut place = Place::default();
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        let _ = log.poll(&mut place, &mut ids, &mut logprobs, &mut Context::from_waker(Waker::noop()));
        assert_eq!((ids, logprobs.len()), (vec![1, 2], 2));
    }
}
