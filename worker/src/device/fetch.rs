//! The shards that a placement needs and that are not here. A thread of its own fetches them, for hours if need be; the device goes on
//! meanwhile, and applies the placement when they have come.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use m1_arch::ExpertSet;
use m1_exchange::{DispatchTable, TableVersion};
use m1_proto::worker::Phase;
use m1_weights::Checkpoint;
use m1_weights::source::{Progress, Snapshot, SourceError};

use super::Device;
use super::inbox::{DeviceHandle, DeviceMessage, Group};
use crate::open::sentence;
use crate::status::SharedStatus;

/// How long the headers of all shards are read at most: M1 has 413 of them, and a file of a network's file system is opened in
/// tens of milliseconds.
const OPENING: Duration = Duration::from_secs(20);

/// Where shards come from.
#[derive(Debug)]
pub struct Remote {
    /// The checkpoint in its cache.
    pub snapshot: Snapshot,
    /// Tells the device what has come.
    pub events: DeviceHandle,
    /// A fetch has failed, and another one is for another process.
    pub given_up: bool,
}

/// A placement that waits for its shards.
pub(super) struct Fetching {
    version: TableVersion,
    group: Group,
    table: DispatchTable,
    _stop: Stop,
}

/// Ends a fetch when it is dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Device {
    /// The placement whose shards are being fetched.
    pub(super) fn awaited(&self) -> Option<TableVersion> {
        self.fetching.as_ref().map(|fetching| fetching.version)
    }

    /// Applies a placement, at once or when its shards are here. Where they may come from elsewhere, this never trusts that they are:
    /// the present checkpoint may have mapped a header with a hole behind it before another pod brought the whole file.
    pub(super) fn apply_or_fetch(&mut self, version: TableVersion, group: Group, table: DispatchTable, mine: &ExpertSet) {
        self.fetching = None;
        let Some(remote) = &self.remote else { return self.apply(version, group, table, mine) };
        let plan = m1_weights::plan_read(&self.checkpoint, mine);
        if remote.given_up {
            return;
        }
        let (snapshot, events) = (remote.snapshot.clone(), remote.events.clone());
        tracing::info!(files = plan.shards.len(), from = snapshot.id(), "fetching shards");
        // A worker that serves goes on serving what it holds.
        let first = self.executor.is_none();
        let status = self.status.clone();
        if first {
            status.set_bytes_loaded(0);
            status.update(|status| {
                status.set_phase(Phase::Loading);
                (status.reason, status.message) = (String::new(), "fetching: shards".into());
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        self.fetching = Some(Fetching { version, group, table, _stop: Stop(stop.clone()) });
        let runtime = tokio::runtime::Handle::current();
        // A thread that nothing waits for: a server that is silent must not hold the end of the process.
        let spawned = std::thread::Builder::new().name("fetch".into()).spawn(move || {
            let _runtime = runtime.enter();
            let result = snapshot.fetch(&plan.shards, &mut |progress| match stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => {
                    if first {
                        say(&status, progress);
                    }
                    ControlFlow::Continue(())
                }
            });
            events.send_detached(DeviceMessage::Fetched { version, result });
        });
        if let Err(error) = spawned {
            self.fetching = None;
            self.broken("FetchNotStarted", &format!("the thread that fetches cannot be started: {error}"), true);
        }
    }

    /// A fetch has ended; only the one that is waited for counts.
    pub(super) fn fetched(&mut self, version: TableVersion, result: Result<(), SourceError>) {
        let Some(Fetching { group, table, .. }) = self.fetching.take_if(|fetching| fetching.version == version) else { return };
        let Some(mine) = self.holds_of(&group).filter(|_| !self.draining) else { return };
        if let Err(error) = result {
            if self.executor.is_some() {
                // Whoever placed this sees an older epoch here and says it again.
                return tracing::error!(reason = error.reason(), %error, "the shards of a new placement cannot be fetched");
            }
            if let Some(remote) = &mut self.remote {
                remote.given_up = true;
            }
            return self.broken(error.reason(), &sentence(&error), error.is_transient());
        }
        let Some(remote) = &self.remote else { return };
        self.status.announce(OPENING);
        match Checkpoint::open(&remote.snapshot.dir()) {
            // The files behind the present one hold headers only.
            Ok(checkpoint) => self.checkpoint = Arc::new(checkpoint),
            Err(error) => return self.broken(error.reason(), &sentence(&error), false),
        }
        self.apply(version, group, table, &mine);
    }
}

fn say(status: &SharedStatus, Progress { files, files_total, bytes, bytes_total }: Progress) {
    status.set_bytes_loaded(bytes);
    status.update(|status| {
        status.bytes_to_load = bytes_total;
        status.message = format!("fetching: {bytes} of {bytes_total} bytes, {files} of {files_total} shards");
    });
}
