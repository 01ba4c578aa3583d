//! What the rest of the process sees of the device thread: phase, occupancy, peers, routing.

use std::time::{Duration, Instant};

use m1_arch::ExpertSet;
use m1_exchange::{Health, PodId};
use m1_proto::worker::{PeerStatus, Phase};

use super::{Device, convert};

/// How often counts of experts are copied out: 80 layers of 32 take 80 KB.
const COUNTS: Duration = Duration::from_millis(100);

impl Device {
    /// Publishes the present state. Called at every tick and where the phase may have changed.
    pub(super) fn report(&mut self) {
        let placed = self.peers.placed() && self.executor.is_some();
        let (phase, message) = match (placed, self.draining) {
            (_, true) => (Some(Phase::Draining), String::new()),
            (true, false) => {
                let (phase, message) = self.readiness();
                (Some(phase), message)
            }
            // Waiting, loading and failed were said where they began.
            (false, false) => (None, String::new()),
        };
        self.status.set_owed(self.requests.owed());
        let occupancy = self.sequences.scheduler.occupancy();
        let peers = self.peers.ids().into_iter().map(|peer| self.peer_status(peer)).collect();
        let routing = convert::totals(self.sequences.scheduler.routing());
        self.status.update(|status| {
            if let Some(phase) = phase {
                status.set_phase(phase);
                status.reason = if phase == Phase::Connecting { "ExpertsUnreachable".into() } else { String::new() };
                status.message = message;
                status.bytes_loaded = status.bytes_to_load;
            }
            status.running = occupancy.running;
            status.waiting = occupancy.waiting;
            status.set_aside = occupancy.set_aside;
            status.state_slots_used = occupancy.slots_used;
            status.state_slots_total = occupancy.slots_total;
            status.kv_blocks_used = occupancy.kv_blocks_used;
            status.kv_blocks_total = occupancy.kv_blocks_total;
            status.kv_blocks_waiting = occupancy.kv_blocks_waiting;
            status.peers = peers;
            status.served_rows = self.requests.rows;
            status.routing = Some(routing);
        });
        self.publish_counts();
    }

    /// Publishes what every expert did, where it is time.
    fn publish_counts(&mut self) {
        let now = Instant::now();
        if self.counted.is_some_and(|counted| now.duration_since(counted) < COUNTS) {
            return;
        }
        self.counted = Some(now);
        self.status.set_routing(self.sequences.scheduler.routing());
        self.sequences.publish(&self.tallies.kept(now));
    }

    /// Ready as soon as every expert of every layer is held here or by a pod that can be asked.
    fn readiness(&self) -> (Phase, String) {
        let held = self.executor.as_ref().map(|executor| executor.held().clone());
        let Some(mut covered) = held else { return (Phase::Loading, String::new()) };
        let mut away = Vec::new();
        for peer in self.peers.ids() {
            match self.peers.holds(peer) {
                Some(holds) if self.reachable(peer) => covered = covered.union(holds),
                _ => away.push(self.absence(peer)),
            }
        }
        if covered.is_full() {
            return (Phase::Ready, String::new());
        }
        let missing = ExpertSet::full(covered.layers(), covered.experts()).difference(&covered).len();
        let all = covered.layers() * covered.experts();
        (Phase::Connecting, format!("{missing} of {all} (layer, expert) pairs cannot be reached: {}", away.join("; ")))
    }

    fn absence(&self, peer: PodId) -> String {
        let why = match self.peers.refusal(peer) {
            Some(refusal) => format!("refuses this pod: {refusal}"),
            None if self.links.connected(peer) => "its device makes no progress".into(),
            None => "not connected".into(),
        };
        format!("pod {peer}: {why}")
    }

    fn peer_status(&self, peer: PodId) -> PeerStatus {
        let state = match self.exchange.health(peer) {
            _ if !self.links.connected(peer) => "disconnected",
            Health::Alive => "connected",
            Health::Suspect => "suspect",
            Health::Dead => "dead",
        };
        PeerStatus { pod: peer.0.into(), state: state.into(), decode_round_trip_us: self.links.round_trip_us(peer) }
    }
}
