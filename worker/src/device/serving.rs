//! Peers' requests: their payloads between arrival and answer, and the computing of one. The exchange decides the order.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use m1_engine::{Assignment, Executor};
use m1_exchange::{Event, Lane, PodId, RequestId, Serve};

use super::Device;
use crate::transport::RequestFrame;

/// A request among all peers'.
pub(super) type RequestKey = (PodId, Lane, RequestId);

/// What peers asked for and is not answered. Bounded by the credits of every connection.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: HashMap<RequestKey, RequestFrame>,
    /// The one whose event is being handled: kept only where the exchange takes it.
    incoming: Option<(RequestKey, RequestFrame)>,
    /// Sums of the one that was just computed.
    served: Option<(RequestKey, Bytes)>,
    /// Rows computed for peers.
    pub rows: u64,
    /// `0..n`, as long as the largest request so far.
    counting: Vec<u32>,
}

impl Requests {
    /// How many wait to be computed.
    pub fn owed(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody waits for it.
    pub fn forget(&mut self, key: RequestKey) {
        if self.incoming.take_if(|(incoming, _)| *incoming == key).is_some() {
            return;
        }
        if self.served.take_if(|(served, _)| *served == key).is_none() {
            self.waiting.remove(&key);
        }
    }

    /// All of a connection.
    pub fn forget_client(&mut self, peer: PodId, lane: Lane) {
        let of_client = |key: &RequestKey| (key.0, key.1) == (peer, lane);
        self.waiting.retain(|key, _| !of_client(key));
        self.incoming.take_if(|(key, _)| of_client(key));
    }

    /// The sums of the request just computed.
    pub fn take_served(&mut self, key: RequestKey) -> Option<Bytes> {
        self.served.take_if(|(served, _)| *served == key).map(|(_, sums)| sums)
    }
}

impl Device {
    /// Takes a request in.
    pub(super) fn requested(&mut self, peer: PodId, lane: Lane, frame: RequestFrame) {
        let key = (peer, lane, RequestId(frame.id));
        let experts = frame.experts.clone();
        let (id, epoch, layer, rows) = (RequestId(frame.id), frame.epoch, frame.layer, frame.tokens as usize);
        self.requests.incoming = Some((key, frame));
        self.tell(Event::Request { peer, lane, id, epoch, layer, rows, experts: &experts });
        if let Some((key, frame)) = self.requests.incoming.take() {
            self.requests.waiting.insert(key, frame);
            self.status.set_owed(self.requests.owed());
        }
    }

    /// Computes and answers one request, at most as patient as `least_urgent`. False: there is none.
    pub(super) fn serve(&mut self, least_urgent: Lane) -> bool {
        let Some(executor) = &mut self.executor else { return false };
        let Some(due) = self.exchange.next_request(least_urgent) else { return false };
        let key = (due.peer, due.lane, due.id);
        let Some(frame) = self.requests.waiting.remove(&key) else {
            self.give_up(due, "PayloadMissing", "the request has no payload");
            return true;
        };
        let (rows, counting) = (frame.tokens, &mut self.requests.counting);
        counting.extend(counting.len() as u32..rows);
        let assignment = Assignment {
            rows: counting.get(..rows as usize).unwrap_or_default(),
            slots: frame.slots,
            experts: &frame.experts,
            weights: &frame.weights,
        };
        let mut sums = BytesMut::with_capacity(frame.hidden.len());
        match executor.serve(frame.layer, &frame.hidden, &assignment, &mut sums) {
            Ok(()) => {
                self.requests.rows += u64::from(rows);
                self.requests.served = Some((key, sums.freeze()));
                self.tell(Event::Served { peer: due.peer, lane: due.lane, id: due.id });
            }
            Err(error) => self.give_up(due, error.reason(), &error.to_string()),
        }
        // Only now: the one that was being computed was owed until its answer was on its way.
        self.status.set_owed(self.requests.owed());
        true
    }

    /// A request that cannot be computed ends its connection: the requester asks elsewhere or again. The exchange forgets the
    /// request when it is told as served, because nobody waits for it any more.
    fn give_up(&mut self, due: Serve, reason: &str, message: &str) {
        let Serve { peer, lane, id, .. } = due;
        tracing::error!(peer = peer.0, id = id.0, reason, message, "a peer's rows could not be computed");
        self.drop_client(peer, lane, reason, message);
        self.tell(Event::ClientDown { peer, lane });
        self.tell(Event::Served { peer, lane, id });
    }
}
