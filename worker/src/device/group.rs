//! The placement: who is in the group, who holds what. Loads and lets go of experts, keeps the connections to peers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use m1_arch::ExpertSet;
use m1_engine::Failure;
use m1_exchange::{DispatchTable, Event, Health, Lane, PodId, TableVersion};
use m1_proto::worker::Phase;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Device;
use super::announce::{Announcing, reading};
use super::inbox::Group;
use super::loaded::{self, LoadError};
use crate::transport::PeerAddress;

/// The other pods of the group.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// The placement in force; the oldest possible before the first.
    version: TableVersion,
    placed: bool,
    known: HashMap<PodId, Peer>,
}

/// One peer.
#[derive(Debug)]
struct Peer {
    address: String,
    holds: ExpertSet,
    /// Why it refuses this pod, if it does.
    refusal: Option<String>,
    /// Ends its connections when it goes.
    _dialing: DropGuard,
}

impl Peers {
    /// Whether a placement was applied.
    pub fn placed(&self) -> bool {
        self.placed
    }

    /// Notes that a peer refuses this pod.
    pub fn refused(&mut self, peer: PodId, reason: String, message: String) {
        if let Some(peer) = self.known.get_mut(&peer) {
            peer.refusal = Some(format!("{reason}: {message}"));
        }
    }

    /// A connection to the peer stands.
    pub fn forgive(&mut self, peer: PodId) {
        if let Some(peer) = self.known.get_mut(&peer) {
            peer.refusal = None;
        }
    }

    /// Ends all connections.
    pub fn forget_all(&mut self) {
        self.known.clear();
    }

    /// Their ids, ascending.
    pub fn ids(&self) -> Vec<PodId> {
        let mut ids: Vec<PodId> = self.known.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// What a peer holds by the placement.
    pub fn holds(&self, peer: PodId) -> Option<&ExpertSet> {
        self.known.get(&peer).map(|peer| &peer.holds)
    }

    /// Why a peer refuses this pod.
    pub fn refusal(&self, peer: PodId) -> Option<&str> {
        self.known.get(&peer)?.refusal.as_deref()
    }
}

impl Device {
    /// Applies a placement unless it is older than the present one. Answers before it loads.
    pub(super) fn place(&mut self, group: Group, reply: oneshot::Sender<Result<(), String>>) {
        let version = TableVersion { lease_transitions: group.lease_transitions, epoch: group.epoch };
        let present = self.latest();
        let table = match present.is_some_and(|present| version < present) {
            true => Err(format!("epoch: {version} given, this worker has {} already", present.unwrap_or_default())),
            false => self.table(version, &group).map_err(|error| format!("pods: {error}")),
        };
        // Whoever asked may have gone away; the placement counts all the same.
        let _ = reply.send(table.as_ref().map(drop).map_err(String::clone));
        let Ok(table) = table else { return };
        if present == Some(version) {
            return;
        }
        let Some(mine) = self.holds_of(&group) else { return };
        self.apply_or_fetch(version, group, table, &mine);
    }

    /// The newest placement that was accepted, whether or not its weights are here.
    fn latest(&self) -> Option<TableVersion> {
        self.awaited().or(self.peers.placed.then_some(self.peers.version))
    }

    /// What this pod holds by a placement.
    pub(super) fn holds_of(&self, group: &Group) -> Option<ExpertSet> {
        group.pods.iter().find(|pod| pod.id == PodId(self.config.pod)).map(|pod| pod.holds.clone())
    }

    /// Carries out a placement whose weights are on disk.
    pub(super) fn apply(&mut self, version: TableVersion, group: &Group, table: DispatchTable, mine: &ExpertSet) {
        if let Err(error) = self.hold(mine) {
            return self.broken(error.reason, &error.to_string(), false);
        }
        self.peers.version = version;
        self.peers.placed = true;
        self.dial(group);
        self.tell(Event::Table(Arc::new(table)));
        self.status.set_epoch(version.epoch);
        self.report();
    }

    fn table(&self, version: TableVersion, group: &Group) -> Result<DispatchTable, m1_exchange::TableError> {
        let arch = self.checkpoint.architecture();
        let held: Vec<(PodId, ExpertSet)> = group.pods.iter().map(|pod| (pod.id, pod.holds.clone())).collect();
        DispatchTable::new(version, arch.layers.len(), arch.experts, &held)
    }

    /// Brings the held experts to `wanted`. What goes is served and asked for no more before its memory goes.
    fn hold(&mut self, wanted: &ExpertSet) -> Result<(), LoadError> {
        let held = self.executor.as_ref().map(|executor| executor.held().clone());
        if held.as_ref() == Some(wanted) {
            return Ok(());
        }
        let to_read = m1_weights::plan_read(&self.checkpoint, wanted).bytes;
        self.status.update(|status| {
            status.set_phase(Phase::Loading);
            status.bytes_to_load = to_read;
            (status.reason, status.message) = (String::new(), String::new());
        });
        let began = Instant::now();
        if let Some(held) = held {
            self.finish_local();
            self.tell(Event::Hold(Arc::new(held.intersection(wanted))));
        }
        self.load(wanted, to_read)?;
        let seconds = began.elapsed().as_secs_f32();
        tracing::info!(bytes_read = to_read, bytes_checkpoint = self.checkpoint.total_bytes(), seconds, "weights are loaded");
        self.tell(Event::Hold(Arc::new(wanted.clone())));
        self.status.serve_peers(true);
        Ok(())
    }

    fn load(&mut self, wanted: &ExpertSet, bytes: u64) -> Result<(), LoadError> {
        let status = self.status.clone();
        let mut progress = reading(&status, bytes);
        if let Some(executor) = &mut self.executor {
            return executor.update_experts(&self.checkpoint, wanted, &mut progress);
        }
        let executor = loaded::load(&self.config, &self.checkpoint, wanted, &mut progress)?;
        self.executor = Some(Announcing::new(executor, self.checkpoint.architecture(), self.status.clone()));
        Ok(())
    }

    /// Connects to every peer whose address is new and lets go of those that left.
    fn dial(&mut self, group: &Group) {
        let me = PodId(self.config.pod);
        for id in self.peers.ids() {
            let stays = group.pods.iter().any(|pod| pod.id == id && self.peers.known[&id].address == pod.address);
            if !stays {
                self.let_go(id);
            }
        }
        for pod in group.pods.iter().filter(|pod| pod.id != me) {
            if let Some(known) = self.peers.known.get_mut(&pod.id) {
                known.holds = pod.holds.clone();
                continue;
            }
            let stop = CancellationToken::new();
            self.transport.dial(&PeerAddress { pod: pod.id, address: pod.address.clone() }, &stop);
            let (address, holds) = (pod.address.clone(), pod.holds.clone());
            self.peers.known.insert(pod.id, Peer { address, holds, refusal: None, _dialing: stop.drop_guard() });
        }
    }

    /// Ends the own connections to a peer; its connections to this pod stay.
    fn let_go(&mut self, peer: PodId) {
        self.peers.known.remove(&peer);
        for lane in Lane::ALL {
            self.links.drop_requester(peer, lane);
            self.tell(Event::LinkDown { peer, lane });
        }
    }

    /// A pod that drains and has no sequence left lets go of all peers. They see that it needs them no more: that ends the
    /// wait of those that drain too.
    pub(super) fn leave(&mut self) {
        for peer in self.peers.ids() {
            self.let_go(peer);
        }
        self.report();
    }

    /// Nothing can be served any more: says why, once, and ends every sequence.
    pub(super) fn broken(&mut self, reason: &'static str, message: &str, may_pass: bool) {
        tracing::error!(reason, error = message, "the weights cannot be used");
        let failure = Failure { reason, message: message.to_owned() };
        self.fail_step(&failure);
        self.sequences.fail_all(&failure);
        self.executor = None;
        self.status.serve_peers(false);
        let arch = self.checkpoint.architecture();
        let nothing = ExpertSet::empty(arch.layers.len(), arch.experts);
        // Peers that wait are told that nothing is here.
        self.tell(Event::Hold(Arc::new(nothing)));
        self.status.fail(reason, message, may_pass);
    }

    /// Whether requests can be sent to a peer now.
    pub(super) fn reachable(&self, peer: PodId) -> bool {
        self.links.connected(peer) && self.exchange.health(peer) != Health::Dead
    }
}
