//! The placement: who is in the group, who holds what. Loads and lets go of experts, keeps the connections to peers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use m1_arch::ExpertSet;
use m1_engine::{Command, ExecutorError, Failure};
use m1_exchange::{DispatchTable, Event, Health, Lane, PodId, TableVersion};
use m1_proto::worker::Phase;
use m1_weights::WeightsError;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Device;
use super::announce::reading;
use super::inbox::Group;
use crate::transport::PeerAddress;

/// The other pods of the group.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// The placement in force; the oldest possible before the first.
    version: TableVersion,
    placed: bool,
    /// What this pod holds by it.
    mine: Option<ExpertSet>,
    known: HashMap<PodId, Peer>,
}

/// A placement that waits for experts on their way in.
pub(super) struct Placing {
    version: TableVersion,
    group: Group,
    table: DispatchTable,
    wanted: ExpertSet,
    began: Instant,
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
        let placing = self.placing.as_ref().map(|placing| placing.version);
        self.awaited().or(placing).or(self.peers.placed.then_some(self.peers.version))
    }

    /// What this pod holds by a placement.
    pub(super) fn holds_of(&self, group: &Group) -> Option<ExpertSet> {
        group.pods.iter().find(|pod| pod.id == PodId(self.config.pod)).map(|pod| pod.holds.clone())
    }

    /// Carries out a placement whose weights are on disk: at once for the first, else when what is missing has been brought in beside all else.
    pub(super) fn apply(&mut self, version: TableVersion, group: Group, table: DispatchTable, wanted: &ExpertSet) {
        if self.executor.is_none() && !self.load_first(wanted) {
            return;
        }
        let placing = Placing { version, group, table, wanted: wanted.clone(), began: Instant::now() };
        // A load that is under way goes on; what it brings may be of use for this one.
        let loading = self.placing.replace(placing).is_some();
        if !loading {
            self.bring_missing();
        }
    }

    /// Brings in what the awaited placement lacks; applies it where nothing is missing.
    fn bring_missing(&mut self) {
        let (Some(executor), Some(placing)) = (&mut self.executor, &self.placing) else { return };
        let missing = placing.wanted.difference(executor.held());
        if missing.is_empty() {
            return self.switch();
        }
        tracing::info!(pairs = missing.len(), version = %placing.version, "loading experts beside what is served");
        executor.submit(Command::Load { weights: self.checkpoint.clone(), experts: missing });
    }

    /// A load has ended.
    pub(super) fn loaded(&mut self, result: Result<(), ExecutorError>) {
        if let Err(error) = result {
            // What is held is served on. Whoever placed this sees an older epoch here and says it again.
            let version = self.placing.take().map(|placing| placing.version).unwrap_or_default();
            tracing::error!(%version, reason = error.reason(), %error, "the experts of a new placement cannot be loaded");
            return self.unload_unwanted();
        }
        self.bring_missing();
    }

    /// Lets go of what the placement in force does not want.
    fn unload_unwanted(&mut self) {
        let (Some(executor), Some(mine)) = (&self.executor, &self.peers.mine) else { return };
        let experts = executor.held().difference(mine);
        if !experts.is_empty() {
            self.tell(Event::Hold(Arc::new(mine.clone())));
            self.submit(Command::Unload { experts });
        }
    }

    /// Goes over to the awaited placement, whose experts are all here. Those that are not wanted any more go last.
    fn switch(&mut self) {
        let (Some(executor), Some(placing)) = (&self.executor, self.placing.take()) else { return };
        let Placing { version, group, table, wanted, began } = placing;
        let held = Arc::new(executor.held().clone());
        tracing::info!(%version, seconds = began.elapsed().as_secs_f32(), "the placement is applied");
        self.tell(Event::Hold(held));
        self.peers.version = version;
        (self.peers.placed, self.peers.mine) = (true, Some(wanted));
        self.dial(&group);
        self.tell(Event::Table(Arc::new(table)));
        self.status.set_epoch(version.epoch);
        self.unload_unwanted();
        self.report();
    }

    fn table(&self, version: TableVersion, group: &Group) -> Result<DispatchTable, m1_exchange::TableError> {
        let arch = &self.arch;
        let held: Vec<(PodId, ExpertSet)> = group.pods.iter().map(|pod| (pod.id, pod.holds.clone())).collect();
        DispatchTable::new(version, arch.layers.len(), arch.experts, &held)
    }

    /// Makes the executor. False: the weights cannot be used.
    fn load_first(&mut self, wanted: &ExpertSet) -> bool {
        let bytes = m1_weights::plan_read(&self.checkpoint, wanted).bytes;
        self.status.update(|status| {
            status.set_phase(Phase::Loading);
            status.bytes_to_load = bytes;
            (status.reason, status.message) = (String::new(), String::new());
        });
        let (began, status) = (Instant::now(), self.status.clone());
        match (self.load)(&self.config, &self.checkpoint, wanted, &mut reading(&status, bytes)) {
            Ok(executor) => self.executor = Some(executor),
            Err(error) => {
                self.broken(error.reason, &error.to_string(), false);
                return false;
            }
        }
        let seconds = began.elapsed().as_secs_f32();
        tracing::info!(bytes_read = bytes, bytes_checkpoint = self.checkpoint.total_bytes(), seconds, "weights are loaded");
        self.tell(Event::Hold(Arc::new(wanted.clone())));
        self.status.serve_peers(true);
        true
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
            self.links.drop_link(peer, lane);
            self.link_down(peer, lane);
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

    /// Files that have changed under their maps do so for good, so nothing is left to be served with them. Whoever opens them anew may have
    /// better luck.
    pub(super) fn end_if_changed(&mut self, error: &ExecutorError) {
        if error.reason() == WeightsError::CHANGED && self.executor.is_some() {
            self.broken(WeightsError::CHANGED, &error.to_string(), true);
        }
    }

    /// Nothing can be served any more: says why, once, and ends every sequence.
    pub(super) fn broken(&mut self, reason: &'static str, message: &str, may_pass: bool) {
        tracing::error!(reason, error = message, "the weights cannot be used");
        let failure = Failure { reason, message: message.to_owned() };
        self.fail_steps(&failure);
        self.sequences.fail_all(&failure);
        (self.executor, self.placing) = (None, None);
        self.status.serve_peers(false);
        let arch = self.checkpoint.architecture();
        let nothing = ExpertSet::empty(arch.layers.len(), arch.experts);
        // Peers that wait are told that nothing is here.
        self.tell(Event::Hold(Arc::new(nothing)));
        self.give_up_computing(reason, message);
        self.status.fail(reason, message, may_pass);
    }

    /// Whether requests can be sent to a peer now.
    pub(super) fn reachable(&self, peer: PodId) -> bool {
        self.links.connected(peer) && self.exchange.health(peer) != Health::Dead
    }
}
