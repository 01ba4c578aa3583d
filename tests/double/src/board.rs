//! What a double keeps of all its sequences: slots, KV blocks, who runs, counts for each router. A [`Seat`] is one sequence's place on it and is given back when
//! it is dropped. It is locked where a sequence comes or goes, never for a token.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use m1_proto::worker::{GenerateRequest, Phase};
use tokio::sync::watch;
use tonic::Status;

use crate::Settings;

/// What has come of the calls so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls of `Generate`.
    pub calls: u64,
    /// Refused for room, or because the pair runs already.
    pub refused: u64,
    /// Sequences that hold a slot now.
    pub running: u32,
    /// Ended by the script or by the request's bound.
    pub finished: u64,
    /// Dropped by their caller before they ended.
    pub cancelled: u64,
    /// Status streams that are open.
    pub followers: u32,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    /// What the double says that it is.
    pub settings: Settings,
    /// When it started, in microseconds since 1970.
    pub incarnation: u64,
    tally: watch::Sender<Tally>,
    released: watch::Sender<bool>,
    state: Mutex<State>,
}

/// What a status tells.
#[derive(Debug, Default)]
pub struct State {
    /// Of the worker.
    pub phase: Phase,
    /// Of the placement it was given.
    pub epoch: u64,
    /// KV blocks that sequences hold.
    pub kv_used: u32,
    /// Tokens that were routed, in all.
    pub routed: u64,
    /// Tokens that were routed for each router that was named.
    pub routed_for: HashMap<String, u64>,
    /// Grows with every change.
    pub version: u64,
    pairs: HashSet<(String, u32)>,
}

impl State {
    /// Sequences that hold a slot.
    pub fn running(&self) -> u32 {
        u32::try_from(self.pairs.len()).unwrap_or(u32::MAX)
    }
}

impl Board {
    /// An empty board of a ready worker.
    pub fn new(settings: Settings) -> Self {
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_micros() as u64);
        let state = Mutex::new(State { phase: Phase::Ready, ..State::default() });
        Self { settings, incarnation, tally: watch::Sender::default(), released: watch::Sender::new(false), state }
    }

    /// The state, to read.
    pub fn read(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; status streams will tell.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.read();
        state.version += 1;
        change(&mut state)
    }

    /// Counts a call; which one it is, from 0.
    pub fn call(&self) -> u64 {
        let mut nth = 0;
        self.tally.send_modify(|tally| {
            nth = tally.calls;
            tally.calls += 1;
        });
        nth
    }

    /// What has come of the calls.
    pub fn tally(&self) -> watch::Receiver<Tally> {
        self.tally.subscribe()
    }

    /// Whether those that hold may go on; changes at most once.
    pub fn released(&self) -> watch::Receiver<bool> {
        self.released.subscribe()
    }

    /// Lets every hold, now and later, go on.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// A status stream came or went.
    pub fn follow(&self, by: i32) {
        self.tally.send_modify(|tally| tally.followers = tally.followers.saturating_add_signed(by));
    }

    /// Takes a sequence in.
    ///
    /// # Errors
    /// It drains, there is no room, or the pair of id and attempt runs already.
    pub fn seat(self: &Arc<Self>, request: &GenerateRequest) -> Result<Seat, Status> {
        let blocks =
            self.settings.blocks(u32::try_from(request.prompt.len()).unwrap_or(u32::MAX).saturating_add(request.max_tokens));
        let pair = (request.request_id.clone(), request.attempt);
        let taken = self.change(|state| {
            if state.phase != Phase::Ready {
                return Err(refusal(Status::unavailable("this worker admits no more"), "Draining"));
            }
            let full = state.running() >= self.settings.slots || state.kv_used.saturating_add(blocks) > self.settings.kv_total();
            if full {
                return Err(refusal(Status::resource_exhausted("no slot or no KV blocks are left"), "Full"));
            }
            if !state.pairs.insert(pair.clone()) {
                return Err(Status::already_exists(format!("request {} attempt {} runs already", pair.0, pair.1)));
            }
            state.kv_used += blocks;
            Ok(())
        });
        self.tally.send_modify(|tally| match &taken {
            Ok(()) => tally.running += 1,
            Err(_) => tally.refused += 1,
        });
        taken?;
        Ok(Seat { board: Arc::clone(self), pair, blocks, router: request.router.clone(), ended: false })
    }
}

fn refusal(mut status: Status, word: &'static str) -> Status {
    status.metadata_mut().insert("m1-reason", tonic::metadata::MetadataValue::from_static(word));
    status
}

/// One sequence's place.
#[derive(Debug)]
pub struct Seat {
    board: Arc<Board>,
    pair: (String, u32),
    blocks: u32,
    router: String,
    ended: bool,
}

impl Seat {
    /// The board it is on.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Counts the tokens that this sequence has routed. Gives what its router's count is now; 0 where none is named.
    pub fn count(&self, tokens: u64) -> u64 {
        self.board.change(|state| {
            state.routed += tokens;
            if self.router.is_empty() {
                return 0;
            }
            let of = state.routed_for.entry(self.router.clone()).or_default();
            *of += tokens;
            *of
        })
    }

    /// The sequence has come to its end.
    pub fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.board.change(|state| {
            state.pairs.remove(&self.pair);
            state.kv_used -= self.blocks;
        });
        self.board.tally.send_modify(|tally| {
            tally.running -= 1;
            if self.ended { tally.finished += 1 } else { tally.cancelled += 1 }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(slots: u32, kv_blocks: u32) -> Arc<Board> {
        Arc::new(Board::new(Settings { slots, kv_blocks, ..Settings::default() }))
    }

    fn request(id: &str, max_tokens: u32) -> GenerateRequest {
        GenerateRequest { request_id: id.into(), prompt: vec![1], max_tokens, router: "r".into(), ..GenerateRequest::default() }
    }

    #[test]
    fn slots_and_blocks_bound_it() {
        let board = board(2, 3);
        let first = board.seat(&request("a", 31)).unwrap();
        assert_eq!(board.seat(&request("b", 31)).unwrap_err().code(), tonic::Code::ResourceExhausted, "two blocks do not fit");
        let _second = board.seat(&request("b", 15)).unwrap();
        assert_eq!(board.seat(&request("c", 1)).unwrap_err().code(), tonic::Code::ResourceExhausted, "no slot is left");
        drop(first);
        assert!(board.seat(&request("c", 15)).is_ok());
        let tally = *board.tally().borrow();
        assert_eq!((tally.refused, tally.running, tally.cancelled, tally.finished), (2, 1, 2, 0));
    }

    #[test]
    fn a_pair_runs_once() {
        let board = board(9, 0);
        let seat = board.seat(&request("a", 1)).unwrap();
        assert_eq!(board.seat(&request("a", 1)).unwrap_err().code(), tonic::Code::AlreadyExists);
        assert!(board.seat(&GenerateRequest { attempt: 1, ..request("a", 1) }).is_ok());
        drop(seat);
        assert!(board.seat(&request("a", 1)).is_ok());
    }

    #[test]
    fn tokens_count_for_who_is_named() {
        let board = board(9, 0);
        let seat = board.seat(&request("a", 1)).unwrap();
        let nobody = board.seat(&GenerateRequest { router: String::new(), ..request("b", 1) }).unwrap();
        assert_eq!((seat.count(3), nobody.count(5), seat.count(1)), (3, 0, 4));
        let state = board.read();
        assert_eq!((state.routed, state.routed_for["r"]), (9, 4));
        // A seat that is dropped counts itself off.
        drop(state);
    }
}
