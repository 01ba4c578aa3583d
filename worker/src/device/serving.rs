//! Peers' requests: their payloads between arrival and answer. The exchange decides the order, the executor computes them.

use std::collections::HashMap;

use bytes::Bytes;
use m1_engine::{Command, ExecutorError, Request, RequestKey};
use m1_exchange::{Event, Lane, PodId, RequestId, Serve};

use super::Device;
use super::dispatch::Payload;
use crate::transport::RequestFrame;

/// Rows that are computed together at most, unless one request alone has more. With more of them weights are not what takes the time.
const TOGETHER: usize = 128;

/// A request among all peers'.
pub(super) type Asked = (PodId, Lane, RequestId);

/// What peers asked for and is not answered. Bounded by the credits of every connection.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: HashMap<Asked, RequestFrame>,
    /// Handed over to the executor.
    computing: HashMap<RequestKey, (Asked, u32)>,
    last_key: u64,
    /// Rows computed for peers.
    pub rows: u64,
}

impl Requests {
    /// How many are not answered.
    pub fn owed(&self) -> usize {
        self.waiting.len() + self.computing.len()
    }

    /// Whether rows of peers' prompts are being computed.
    fn computes_prompts(&self) -> bool {
        self.computing.values().any(|((_, lane, _), _)| *lane != Lane::Decode)
    }

    /// Nobody waits for it. One that is being computed is thrown away when it is done.
    pub fn forget(&mut self, asked: Asked) {
        self.waiting.remove(&asked);
    }

    /// All of a connection.
    pub fn forget_client(&mut self, peer: PodId, lane: Lane) {
        self.waiting.retain(|asked, _| (asked.0, asked.1) != (peer, lane));
    }
}

impl Device {
    /// Takes a request in.
    pub(super) fn requested(&mut self, peer: PodId, lane: Lane, frame: RequestFrame) {
        let asked = (peer, lane, RequestId(frame.id));
        let experts = frame.experts.clone();
        let (id, epoch, layer, rows) = (RequestId(frame.id), frame.epoch, frame.layer, frame.tokens as usize);
        let event = Event::Request { peer, lane, id, epoch, layer, rows, experts: &experts };
        // What the exchange refuses takes the payload with it.
        if let Payload::Request(_, frame) = self.tell_with(event, Payload::Request(asked, frame)) {
            self.requests.waiting.insert(asked, frame);
            self.status.set_owed(self.requests.owed());
        }
    }

    /// Hands over what peers ask for: all of their streams, and of their prompts one request after another, so that what streams ask for later is not
    /// behind them all.
    pub(super) fn hand_over_requests(&mut self) {
        while self.serve(Lane::Decode) {}
        if !self.requests.computes_prompts() {
            self.serve(Lane::Bulk);
        }
    }

    /// Hands over the oldest request that is at most as patient as `least_urgent`, and others of its layer beside it, so that weights are
    /// read once. False: there is none.
    fn serve(&mut self, least_urgent: Lane) -> bool {
        if self.executor.is_none() {
            return false;
        }
        let Some(first) = self.exchange.next_request(least_urgent) else { return false };
        let (mut rows, mut next, mut requests) = (0, Some(first), Vec::new());
        while let Some(due) = next {
            rows += due.rows;
            requests.extend(self.payload_of(due));
            next = if rows < TOGETHER { self.exchange.next_beside(&first) } else { None };
        }
        if !requests.is_empty() {
            self.submit(Command::Serve { urgent: first.lane == Lane::Decode, layer: first.layer, requests });
        }
        true
    }

    fn payload_of(&mut self, due: Serve) -> Option<Request> {
        let asked = (due.peer, due.lane, due.id);
        let Some(RequestFrame { tokens, hidden, experts, weights, .. }) = self.requests.waiting.remove(&asked) else {
            self.give_up(asked, "PayloadMissing", "the request has no payload");
            return None;
        };
        self.requests.last_key += 1;
        let key = RequestKey(self.requests.last_key);
        self.requests.computing.insert(key, (asked, tokens));
        Some(Request { key, hidden, rows: tokens, experts, weights })
    }

    /// A request was computed.
    pub(super) fn served(&mut self, key: RequestKey, sums: Result<Bytes, ExecutorError>) {
        let Some((asked, rows)) = self.requests.computing.remove(&key) else { return };
        let (peer, lane, id) = asked;
        match sums {
            Ok(sums) => {
                self.requests.rows += u64::from(rows);
                self.tell_with(Event::Served { peer, lane, id }, Payload::Sums(sums));
            }
            Err(error) => {
                self.give_up(asked, error.reason(), &error.to_string());
                self.end_if_changed(&error);
            }
        }
        // Only now: the one that was being computed was owed until its answer was on its way.
        self.status.set_owed(self.requests.owed());
    }

    /// The executor is gone, and with it what it was computing for peers.
    pub(super) fn give_up_computing(&mut self, reason: &str, message: &str) {
        for (asked, _) in std::mem::take(&mut self.requests.computing).into_values() {
            self.give_up(asked, reason, message);
        }
    }

    /// A request that cannot be computed ends its connection: the requester asks elsewhere or again. The exchange forgets the
    /// request when it is told as served, because nobody waits for it any more.
    fn give_up(&mut self, (peer, lane, id): Asked, reason: &str, message: &str) {
        tracing::error!(peer = peer.0, id = id.0, reason, message, "a peer's rows could not be computed");
        self.drop_client(peer, lane, reason, message);
        self.tell(Event::ClientDown { peer, lane });
        self.tell(Event::Served { peer, lane, id });
    }
}
