//! What the device thread shows to the rest of the process: counters without locks for the hot path, and one published
//! snapshot for everything that changes seldom. Written by the device thread only (and the loader's progress callback).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use m1_proto::worker::{Phase, StatusResponse};
use tokio::sync::watch;

use crate::traffic::Traffic;

/// Shared between the device thread, the gRPC services, the transport and the admin server.
#[derive(Debug)]
pub struct SharedStatus {
    progress: AtomicU64,
    epoch: AtomicU64,
    bytes_loaded: AtomicU64,
    serves_peers: AtomicBool,
    started: AtomicBool,
    may_pass: AtomicBool,
    clients: AtomicU64,
    owed: AtomicU64,
    traffic: Traffic,
    snapshot: watch::Sender<StatusResponse>,
}

impl SharedStatus {
    /// `first` is what `Status` answers before the device thread says anything.
    pub fn new(first: StatusResponse) -> Self {
        Self {
            progress: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            bytes_loaded: AtomicU64::new(0),
            serves_peers: AtomicBool::new(false),
            started: AtomicBool::new(false),
            may_pass: AtomicBool::new(false),
            clients: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            traffic: Traffic::default(),
            snapshot: watch::Sender::new(first),
        }
    }

    /// Counts one turn of the device thread.
    pub fn turn(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Turns of the device thread so far: a peer that sees it stand still suspects this pod.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
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

    /// Changes the snapshot in place.
    pub fn update(&self, change: impl FnOnce(&mut StatusResponse)) {
        self.snapshot.send_modify(change);
        if !matches!(self.snapshot.borrow().phase(), Phase::Unspecified | Phase::Waiting | Phase::Loading) {
            self.started.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the worker has ever been past loading, well or not. Once true it stays true: experts that are loaded later,
    /// for another placement, are no start.
    pub fn started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// The snapshot with the live counters in it.
    pub fn read(&self) -> StatusResponse {
        let mut status = self.snapshot.borrow().clone();
        status.epoch = self.epoch();
        if status.phase() == Phase::Loading {
            status.bytes_loaded = self.bytes_loaded.load(Ordering::Relaxed);
        }
        status
    }
}
