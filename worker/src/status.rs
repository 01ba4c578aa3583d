//! What the device thread shows to the rest of the process: counters without locks for the hot path, and one published
//! snapshot for everything that changes seldom. Written by the device thread only (and the loader's progress callback).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use m1_proto::worker::{Phase, StatusResponse};
use tokio::sync::watch;

/// Shared between the device thread, the gRPC services and the transport.
#[derive(Debug)]
pub struct SharedStatus {
    progress: AtomicU64,
    epoch: AtomicU64,
    bytes_loaded: AtomicU64,
    serves_peers: AtomicBool,
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

    /// Changes the snapshot in place.
    pub fn update(&self, change: impl FnOnce(&mut StatusResponse)) {
        self.snapshot.send_modify(change);
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
