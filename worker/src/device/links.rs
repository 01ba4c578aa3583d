//! Connections as the device thread sees them: mine to each peer and each peer's to me, by lane. Only the newest connection of
//! a peer and lane counts; what an older one still says is ignored.

use std::collections::HashMap;

use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::frame::Kind;

use crate::transport::Link;

/// All connections of this pod.
#[derive(Debug, Default)]
pub struct Links {
    requester: HashMap<(PodId, Lane), Link>,
    server: HashMap<(PodId, Lane), Link>,
    round_trip_us: HashMap<PodId, u32>,
}

impl Links {
    /// My connection to `peer` stands.
    pub fn requester_up(&mut self, peer: PodId, lane: Lane, link: Link) {
        self.requester.insert((peer, lane), link);
    }

    /// My connection to `peer` ended. False: a newer one stands already.
    pub fn requester_down(&mut self, peer: PodId, lane: Lane, generation: u64) -> bool {
        down(&mut self.requester, (peer, lane), generation)
    }

    /// `peer` connected to be served.
    pub fn server_up(&mut self, peer: PodId, lane: Lane, link: Link) {
        self.server.insert((peer, lane), link);
    }

    /// `peer` is served no more. False: a newer connection stands already.
    pub fn server_down(&mut self, peer: PodId, lane: Lane, generation: u64) -> bool {
        down(&mut self.server, (peer, lane), generation)
    }

    /// Whether a frame of this connection is of the newest one.
    pub fn serves(&self, peer: PodId, lane: Lane, generation: u64) -> bool {
        self.server.get(&(peer, lane)).is_some_and(|l| l.generation == generation)
    }

    /// Sends a request. False: the connection is gone.
    pub fn request(&self, peer: PodId, lane: Lane, kind: Kind) -> bool {
        self.requester.get(&(peer, lane)).is_some_and(|l| l.send(kind))
    }

    /// Sends an answer. False: the connection is gone.
    pub fn answer(&self, peer: PodId, lane: Lane, kind: Kind) -> bool {
        self.server.get(&(peer, lane)).is_some_and(|l| l.send(kind))
    }

    /// Ends a peer's connection to me.
    pub fn drop_server(&mut self, peer: PodId, lane: Lane) {
        self.server.remove(&(peer, lane));
    }

    /// Whether both request lanes to `peer` stand.
    pub fn connected(&self, peer: PodId) -> bool {
        [Lane::Decode, Lane::Prefill].iter().all(|lane| self.requester.contains_key(&(peer, *lane)))
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

fn down(links: &mut HashMap<(PodId, Lane), Link>, key: (PodId, Lane), generation: u64) -> bool {
    if links.get(&key).is_some_and(|l| l.generation > generation) {
        return false;
    }
    links.remove(&key);
    true
}
