//! What the device thread shows to the rest of the process: counters without locks for the hot path, and one published
//! snapshot for everything that changes seldom. Written by the device thread; before that one runs, by who opens the checkpoint, and
//! beside it by who fetches shards. Heartbeats are the IO side's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use m1_engine::RoutingCounts;
use m1_exchange::LONGEST_ANNOUNCED;
use m1_proto::worker::{Phase, Routing, StatusResponse};
use tokio::sync::watch;

use crate::device::convert;
use crate::pulses::Pulses;
use crate::traffic::Traffic;

/// Shared between the device thread, the gRPC services, the transport and the admin server.
#[derive(Debug)]
pub struct SharedStatus {
    progress: AtomicU64,
    /// Until when the present turn may take, in microseconds since `began`; 0 where nothing was announced.
    busy_until: AtomicU64,
    began: Instant,
    epoch: AtomicU64,
    bytes_loaded: AtomicU64,
    serves_peers: AtomicBool,
    started: AtomicBool,
    may_pass: AtomicBool,
    clients: AtomicU64,
    owed: AtomicU64,
    traffic: Traffic,
    pulses: Pulses,
    /// Of the routing the totals only.
    snapshot: watch::Sender<StatusResponse>,
    /// With its arrays, which are large and asked for seldom.
    routing: Mutex<Option<Arc<Routing>>>,
}

impl SharedStatus {
    /// `first` is what `Status` answers before the device thread says anything.
    pub fn new(first: StatusResponse) -> Self {
        Self {
            progress: AtomicU64::new(0),
            busy_until: AtomicU64::new(0),
            began: Instant::now(),
            epoch: AtomicU64::new(0),
            bytes_loaded: AtomicU64::new(0),
            serves_peers: AtomicBool::new(false),
            started: AtomicBool::new(false),
            may_pass: AtomicBool::new(false),
            clients: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            traffic: Traffic::default(),
            pulses: Pulses::default(),
            snapshot: watch::Sender::new(first),
            routing: Mutex::default(),
        }
    }

    /// Counts one turn of the device thread. It ends what was announced.
    pub fn turn(&self) {
        if self.busy_until.load(Ordering::Relaxed) != 0 {
            self.busy_until.store(0, Ordering::Relaxed);
        }
        self.progress.fetch_add(1, Ordering::Release);
    }

    /// The device thread begins something that may take so long: until then it is no sign of death that turns stand still.
    /// Counts as progress, because what is announced excuses a new count only. More than [`LONGEST_ANNOUNCED`] is not believed.
    pub fn announce(&self, length: Duration) {
        let until = self.began.elapsed() + length.min(LONGEST_ANNOUNCED);
        self.busy_until.store(until.as_micros() as u64, Ordering::Relaxed);
        self.progress.fetch_add(1, Ordering::Release);
    }

    /// How much longer the present turn may take by what was announced. Whoever tells both reads `progress` first.
    pub fn announced(&self) -> Duration {
        let until = Duration::from_micros(self.busy_until.load(Ordering::Relaxed));
        until.saturating_sub(self.began.elapsed())
    }

    /// Turns of the device thread so far: a peer that sees it stand still suspects this pod.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Acquire)
    }

    /// Epoch of the applied placement, 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Sets the epoch that greetings and heartbeats carry.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Bytes of tensors read so far.
    pub fn set_bytes_loaded(&self, bytes: u64) {
        self.bytes_loaded.store(bytes, Ordering::Relaxed);
    }

    /// Whether peers may connect from now on: the experts are here, or are no more.
    pub fn serve_peers(&self, may: bool) {
        self.serves_peers.store(may, Ordering::Relaxed);
    }

    /// Whether peers may connect.
    pub fn serves_peers(&self) -> bool {
        self.serves_peers.load(Ordering::Relaxed)
    }

    /// Sets how many connections of peers are served.
    pub fn set_clients(&self, connections: usize) {
        self.clients.store(connections as u64, Ordering::Relaxed);
    }

    /// Connections of peers that are served now.
    pub fn clients(&self) -> u64 {
        self.clients.load(Ordering::Relaxed)
    }

    /// Sets how many requests of peers wait for their answer.
    pub fn set_owed(&self, requests: usize) {
        self.owed.store(requests as u64, Ordering::Relaxed);
    }

    /// Requests of peers that wait for their answer, the one that is being computed among them.
    pub fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// Rows of experts that went between this pod and its peers.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Heartbeats of peers.
    pub fn pulses(&self) -> &Pulses {
        &self.pulses
    }

    /// The worker has failed: why, and whether another start may do better with nothing changed.
    pub fn fail(&self, reason: &str, message: &str, may_pass: bool) {
        self.may_pass.store(may_pass, Ordering::Relaxed);
        self.update(|status| {
            status.set_phase(Phase::Failed);
            (status.reason, status.message) = (reason.to_owned(), message.to_owned());
        });
    }

    /// Whether the worker has failed for a reason that may pass.
    pub fn failed_for_now(&self) -> bool {
        self.snapshot.borrow().phase() == Phase::Failed && self.may_pass.load(Ordering::Relaxed)
    }

    /// Changes the snapshot in place. Whoever follows it wakes only where that made a difference.
    pub fn update(&self, change: impl FnOnce(&mut StatusResponse)) {
        self.snapshot.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
        if !matches!(self.snapshot.borrow().phase(), Phase::Unspecified | Phase::Waiting | Phase::Loading) {
            self.started.store(true, Ordering::Relaxed);
        }
    }

    /// Follows the snapshot.
    pub fn follow(&self) -> watch::Receiver<StatusResponse> {
        self.snapshot.subscribe()
    }

    /// Sets what every expert did; nothing is copied where no token has come.
    pub fn set_routing(&self, counts: &RoutingCounts) {
        let mut routing = self.routing.lock().unwrap_or_else(PoisonError::into_inner);
        if routing.as_ref().is_none_or(|routing| routing.tokens != counts.tokens) {
            *routing = Some(Arc::new(convert::routing(counts)));
        }
    }

    /// Whether the worker has ever been past loading, well or not. Once true it stays true: experts that are loaded later,
    /// for another placement, are no start.
    pub fn started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// The snapshot with the live counters in it; of the routing the totals only.
    pub fn brief(&self) -> StatusResponse {
        let mut status = self.snapshot.borrow().clone();
        status.epoch = self.epoch();
        if status.phase() == Phase::Loading {
            status.bytes_loaded = self.bytes_loaded.load(Ordering::Relaxed);
        }
        status
    }

    /// The snapshot with the live counters in it, and what every expert did.
    pub fn read(&self) -> StatusResponse {
        let mut status = self.brief();
        if let Some(routing) = self.routing.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            status.routing = Some(routing.as_ref().clone());
        }
        status
    }
}
