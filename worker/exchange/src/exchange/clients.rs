//! [`Clients`]: peers' connections to this pod, their credits, and the order in which their requests are served. It must
//! not compute or know payloads, and knows nothing of own steps.
//!
//! A client's open requests use up its credits, so the queues hold at most `credits` requests per client. Credits go back
//! a few at a time; since what is kept back is always less than what a client has in all, a client without credit still
//! has a request here whose answer brings some.

use std::collections::VecDeque;
use std::sync::Arc;

use m1_arch::{ExpertId, ExpertSet, LayerId};

use crate::action::{Action, Serve};
use crate::config::Config;
use crate::error::ExchangeError;
use crate::ids::{Lane, MAX_PODS, PodId, RequestId, UNUSED};

use super::assign::is_peer;
use super::links::LinkKey;
use super::requester::check_numbers;

/// Answers whose credits go back together are this part of all credits: fewer grants than answers, and a client with
/// several frames open never runs dry.
const GRANT_PART: u32 = 4;

/// A request as it comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asks<'a> {
    pub(super) from: LinkKey,
    pub(super) id: RequestId,
    pub(super) layer: LayerId,
    pub(super) rows: usize,
    pub(super) experts: &'a [u16],
}

#[derive(Debug, Default)]
struct Client {
    up: bool,
    /// Counts its connections.
    connection: u64,
    /// Frames that it may still send.
    credits: u32,
    /// Frames answered whose credit is kept back yet.
    kept_back: u32,
    last_id: Option<RequestId>,
}

#[derive(Debug)]
struct Queued {
    peer: PodId,
    id: RequestId,
    layer: LayerId,
    rows: usize,
    /// Those that it asks for, each once.
    experts: Vec<u16>,
}

#[derive(Debug)]
struct Serving {
    from: LinkKey,
    connection: u64,
    id: RequestId,
}

/// The serving half of an exchange.
#[derive(Debug)]
pub(super) struct Clients {
    config: Config,
    held: Arc<ExpertSet>,
    epoch: u64,
    clients: Vec<Client>,
    queues: [VecDeque<Queued>; Lane::ALL.len()],
    /// Handed out to be computed, oldest first.
    serving: VecDeque<Serving>,
    /// Lists of experts of requests handed out, to be used again; as many as were ever queued at once.
    spare: Vec<Vec<u16>>,
}

impl Clients {
    pub(super) fn new(config: &Config, epoch: u64) -> Self {
        Self {
            held: Arc::new(ExpertSet::empty(config.layers, config.experts)),
            epoch,
            clients: (0..MAX_PODS * Lane::ALL.len()).map(|_| Client::default()).collect(),
            queues: Default::default(),
            serving: VecDeque::new(),
            spare: Vec::new(),
            config: config.clone(),
        }
    }

    pub(super) fn place(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    pub(super) fn queued(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.queued() == 0 && self.serving.is_empty()
    }

    pub(super) fn up(&mut self, from: LinkKey, actions: &mut Vec<Action>) {
        if is_peer(&self.config, from.0) {
            self.down(from, actions);
            let credits = self.config.credits;
            let client = self.client_mut(from);
            let connection = client.connection + 1;
            *client = Client { up: true, connection, credits, kept_back: 0, last_id: None };
        }
    }

    /// What waits is forgotten now, what is being computed when it is done.
    pub(super) fn down(&mut self, from: LinkKey, actions: &mut Vec<Action>) {
        if !self.is_up(from) {
            return;
        }
        self.client_mut(from).up = false;
        let (peer, lane) = from;
        let spare = &mut self.spare;
        self.queues[lane.index()].retain_mut(|queued| {
            if queued.peer == peer {
                actions.push(Action::Forget { peer, lane, id: queued.id });
                spare.push(std::mem::take(&mut queued.experts));
            }
            queued.peer != peer
        });
    }

    pub(super) fn request(&mut self, asks: Asks<'_>, actions: &mut Vec<Action>) {
        let ((peer, lane), id) = (asks.from, asks.id);
        if !self.is_up(asks.from) {
            return actions.push(Action::DropClient { peer, lane, error: ExchangeError::NotConnected { peer, lane, id } });
        }
        // Numbers grow on a connection: this one came before, and its credit was taken then.
        if self.client_mut(asks.from).last_id >= Some(id) {
            return actions.push(Action::Forget { peer, lane, id });
        }
        if let Err(error) = self.check(&asks) {
            actions.push(Action::DropClient { peer, lane, error });
            return self.down(asks.from, actions);
        }
        let client = self.client_mut(asks.from);
        client.last_id = Some(id);
        client.credits -= 1;
        let mut experts = self.spare.pop().unwrap_or_default();
        distinct(asks.experts, &mut experts);
        if holds(&self.held, asks.layer, &experts) {
            return self.queues[lane.index()].push_back(Queued { peer, id, layer: asks.layer, rows: asks.rows, experts });
        }
        self.recycle(experts);
        actions.push(Action::ReplyNotHere { peer, lane, id, epoch: self.epoch });
        self.answered(asks.from, actions);
    }

    pub(super) fn next(&mut self, least_urgent: Lane) -> Option<Serve> {
        let lane = Lane::ALL.into_iter().find(|lane| *lane <= least_urgent && !self.queues[lane.index()].is_empty())?;
        let queued = self.queues[lane.index()].pop_front()?;
        Some(self.hand_out(lane, queued))
    }

    pub(super) fn next_beside(&mut self, first: &Serve) -> Option<Serve> {
        let queue = &mut self.queues[first.lane.index()];
        let place = queue.iter().position(|queued| queued.layer == first.layer)?;
        let queued = queue.remove(place)?;
        Some(self.hand_out(first.lane, queued))
    }

    fn hand_out(&mut self, lane: Lane, queued: Queued) -> Serve {
        let Queued { peer, id, layer, rows, experts } = queued;
        self.recycle(experts);
        let connection = self.client_mut((peer, lane)).connection;
        self.serving.push_back(Serving { from: (peer, lane), connection, id });
        Serve { peer, lane, id, layer, rows }
    }

    pub(super) fn served(&mut self, from: LinkKey, id: RequestId, actions: &mut Vec<Action>) {
        let Some(at) = self.serving.iter().position(|serving| (serving.from, serving.id) == (from, id)) else { return };
        let Some(serving) = self.serving.remove(at) else { return };
        let (peer, lane) = from;
        if self.is_up(from) && self.client_mut(from).connection == serving.connection {
            actions.push(Action::Reply { peer, lane, id });
            self.answered(from, actions);
        } else {
            actions.push(Action::Forget { peer, lane, id });
        }
    }

    /// What waits and cannot be served any more is refused.
    pub(super) fn hold(&mut self, held: Arc<ExpertSet>, actions: &mut Vec<Action>) {
        self.held = held;
        for lane in Lane::ALL {
            for _ in 0..self.queues[lane.index()].len() {
                let Some(queued) = self.queues[lane.index()].pop_front() else { break };
                if holds(&self.held, queued.layer, &queued.experts) {
                    self.queues[lane.index()].push_back(queued);
                    continue;
                }
                let Queued { peer, id, .. } = queued;
                self.recycle(queued.experts);
                actions.push(Action::ReplyNotHere { peer, lane, id, epoch: self.epoch });
                self.answered((peer, lane), actions);
            }
        }
    }

    /// A request is answered: its credit goes back, now or with the next ones.
    fn answered(&mut self, from: LinkKey, actions: &mut Vec<Action>) {
        let least = (self.config.credits / GRANT_PART).max(1);
        let client = self.client_mut(from);
        client.kept_back += 1;
        if client.kept_back >= least {
            let (frames, (peer, lane)) = (std::mem::take(&mut client.kept_back), from);
            client.credits += frames;
            actions.push(Action::Grant { peer, lane, frames });
        }
    }

    fn check(&self, asks: &Asks<'_>) -> Result<(), ExchangeError> {
        let (rows, given, top_k) = (asks.rows, asks.experts.len(), self.config.top_k);
        if self.client(asks.from).is_none_or(|client| client.credits == 0) {
            return Err(ExchangeError::NoCredit { id: asks.id, allowed: self.config.credits });
        }
        let high = self.config.rows_per_frame();
        if !(1..=high).contains(&rows) {
            return Err(ExchangeError::Range { field: "rows", given: rows, low: 1, high });
        }
        if !given.is_multiple_of(rows) || !(1..=top_k).contains(&(given / rows)) {
            return Err(ExchangeError::Places { given, rows, top_k });
        }
        check_numbers(&self.config, asks.layer, asks.experts)
    }

    fn recycle(&mut self, experts: Vec<u16>) {
        self.spare.push(experts);
    }

    fn is_up(&self, from: LinkKey) -> bool {
        self.client(from).is_some_and(|client| client.up)
    }

    fn client(&self, (peer, lane): LinkKey) -> Option<&Client> {
        self.clients.get(peer.index() * Lane::ALL.len() + lane.index())
    }

    // Only after `is_up` or `is_peer`, which are false for a pod beyond the list.
    fn client_mut(&mut self, (peer, lane): LinkKey) -> &mut Client {
        &mut self.clients[peer.index() * Lane::ALL.len() + lane.index()]
    }
}

fn distinct(experts: &[u16], into: &mut Vec<u16>) {
    into.clear();
    into.extend(experts.iter().filter(|expert| **expert != UNUSED));
    into.sort_unstable();
    into.dedup();
}

fn holds(held: &ExpertSet, layer: LayerId, experts: &[u16]) -> bool {
    experts.iter().all(|expert| held.contains(layer, ExpertId(*expert)))
}
