//! Connections as the device thread sees them: mine to each peer and each peer's to me, by lane. Only the newest connection of
//! a peer and lane counts; what an older one still says is ignored.

use std::collections::HashMap;

use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::frame::Kind;

use crate::transport::Link;

/// All connections of this pod.
#[derive(Debug, Default)]
pub struct Links {
    links: HashMap<(PodId, Lane), Link>,
    clients: HashMap<(PodId, Lane), Link>,
    round_trip_us: HashMap<PodId, u32>,
}

impl Links {
    /// My connection to `peer` stands. True: it takes the place of one that was thought to stand.
    pub fn link_up(&mut self, peer: PodId, lane: Lane, link: Link) -> bool {
        replaced(self.links.insert((peer, lane), link))
    }

    /// My connection to `peer` ended. False: a newer one stands already.
    pub fn link_down(&mut self, peer: PodId, lane: Lane, generation: u64) -> bool {
        down(&mut self.links, (peer, lane), generation)
    }

    /// `peer` connected to be served. True: it takes the place of a connection that was thought to stand.
    pub fn client_up(&mut self, peer: PodId, lane: Lane, link: Link) -> bool {
        replaced(self.clients.insert((peer, lane), link))
    }

    /// `peer` is served no more. False: a newer connection stands already.
    pub fn client_down(&mut self, peer: PodId, lane: Lane, generation: u64) -> bool {
        down(&mut self.clients, (peer, lane), generation)
    }

    /// Whether an answer came on the newest connection.
    pub fn asks(&self, peer: PodId, lane: Lane, generation: u64) -> bool {
        self.links.get(&(peer, lane)).is_some_and(|l| l.generation == generation)
    }

    /// Whether a request came on the newest connection.
    pub fn serves(&self, peer: PodId, lane: Lane, generation: u64) -> bool {
        self.clients.get(&(peer, lane)).is_some_and(|l| l.generation == generation)
    }

    /// Sends a request. False: the connection is gone.
    pub fn request(&self, peer: PodId, lane: Lane, kind: Kind) -> bool {
        self.links.get(&(peer, lane)).is_some_and(|l| l.send(kind))
    }

    /// Sends an answer. False: the connection is gone.
    pub fn answer(&self, peer: PodId, lane: Lane, kind: Kind) -> bool {
        self.clients.get(&(peer, lane)).is_some_and(|l| l.send(kind))
    }

    /// Ends my connection to a peer, if one stands.
    pub fn drop_link(&mut self, peer: PodId, lane: Lane) {
        replaced(self.links.remove(&(peer, lane)));
    }

    /// Ends a peer's connection to me; it stays known until it says that it is down.
    pub fn close_client(&mut self, peer: PodId, lane: Lane) {
        if let Some(link) = self.clients.get(&(peer, lane)) {
            link.close();
        }
    }

    /// Connections of peers that are served.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether both request lanes to `peer` stand.
    pub fn connected(&self, peer: PodId) -> bool {
        [Lane::Decode, Lane::Prefill].iter().all(|lane| self.links.contains_key(&(peer, *lane)))
    }

    /// Notes a measured round trip.
    pub fn measured(&mut self, peer: PodId, round_trip_us: u32) {
        self.round_trip_us.insert(peer, round_trip_us);
    }

    /// The last measured round trip, 0 before the first.
    pub fn round_trip_us(&self, peer: PodId) -> u32 {
        self.round_trip_us.get(&peer).copied().unwrap_or(0)
    }
}

fn replaced(link: Option<Link>) -> bool {
    link.inspect(Link::close).is_some()
}

fn down(links: &mut HashMap<(PodId, Lane), Link>, key: (PodId, Lane), generation: u64) -> bool {
    if links.get(&key).is_some_and(|l| l.generation > generation) {
        return false;
    }
    links.remove(&key);
    true
}
