//! What a kubelet is told of this worker. Reads the shared status; changes nothing.
//!
//! A worker whose checkpoint cannot be used has started and lives: another start would read the same files. It is not ready.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use m1_proto::worker::{Phase, StatusResponse};
use m1_runtime::admin::{Checks, Unwell};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::status::SharedStatus;

/// A device thread that has not turned for this long does not turn any more. It is woken fifty times a second and its longest
/// pieces of work, one layer of a step or one tensor that is read, take seconds.
const STALLED: Duration = Duration::from_secs(60);

/// The checks of one worker.
#[derive(Debug)]
pub struct Probes {
    status: Arc<SharedStatus>,
    /// Cancelled when the device thread has ended.
    ended: CancellationToken,
    pulse: Mutex<Pulse>,
}

impl Probes {
    /// Checks that read `status`; `ended` is the device thread's.
    pub fn new(status: Arc<SharedStatus>, ended: CancellationToken) -> Self {
        let pulse = Mutex::new(Pulse { turns: 0, since: Instant::now() });
        Self { status, ended, pulse }
    }
}

impl Checks for Probes {
    fn started(&self) -> Result<(), Unwell> {
        if self.status.started() { Ok(()) } else { Err(unwell(&self.status.brief())) }
    }

    fn ready(&self) -> Result<(), Unwell> {
        let status = self.status.brief();
        if status.phase() == Phase::Ready { Ok(()) } else { Err(unwell(&status)) }
    }

    fn live(&self) -> Result<(), Unwell> {
        if self.ended.is_cancelled() {
            return Err(Unwell::new("DeviceStalled", "the device thread has ended"));
        }
        let mut pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        let still = pulse.still(self.status.progress(), Instant::now());
        // A turn that was announced as a long one may take longer than that.
        if still < STALLED || !self.status.announced().is_zero() {
            return Ok(());
        }
        Err(Unwell::new("DeviceStalled", format!("the device thread has made no progress for {} s", still.as_secs())))
    }

    fn metrics(&self) -> Result<String, Unwell> {
        metrics::render(&self.status).map_err(|error| Unwell::new("MetricsFailed", error.to_string()))
    }
}

/// The turns of the device thread as probes have seen them. Ticks make it turn where it has nothing else to do, so turns that
/// two probes see alike are turns that stand still.
#[derive(Debug)]
struct Pulse {
    turns: u64,
    since: Instant,
}

impl Pulse {
    /// How long the turns have stood still. Before the first one the checkpoint is opened, or there is no device.
    fn still(&mut self, turns: u64, now: Instant) -> Duration {
        if turns != self.turns || turns == 0 {
            *self = Self { turns, since: now };
        }
        now.duration_since(self.since)
    }
}

/// Why a worker in this phase is not ready: its own words where it has any.
fn unwell(status: &StatusResponse) -> Unwell {
    let (reason, message) = match status.phase() {
        Phase::Unspecified | Phase::Waiting => ("NoPlacement", String::new()),
        Phase::Loading => ("Loading", String::new()),
        Phase::Connecting => ("ExpertsUnreachable", String::new()),
        Phase::Ready => ("Ready", String::new()),
        Phase::Draining => ("Draining", "this worker drains and admits no more".to_owned()),
        Phase::Failed => ("Failed", String::new()),
    };
    let reason = if status.reason.is_empty() { reason } else { &status.reason };
    let message = if status.message.is_empty() { message } else { status.message.clone() };
    let loads = matches!(status.phase(), Phase::Unspecified | Phase::Waiting | Phase::Loading);
    let message = match (loads, message.is_empty()) {
        (false, _) => message,
        (true, true) => loaded(status),
        // A fetch has numbers of its own.
        (true, false) if status.phase() == Phase::Loading => message,
        (true, false) => format!("{message}; {}", loaded(status)),
    };
    Unwell::new(reason, message)
}

/// How far the weights are. Before a placement says what to read, the whole checkpoint is the bound.
fn loaded(status: &StatusResponse) -> String {
    match status.bytes_to_load {
        0 => format!("0 bytes loaded of a checkpoint of {}", status.bytes_checkpoint),
        total => format!("{} of {total} bytes loaded", status.bytes_loaded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(phase: Phase) -> Probes {
        let first = StatusResponse { message: "no placement yet".into(), bytes_checkpoint: 900, ..Default::default() };
        let status = SharedStatus::new(first);
        status.update(|status| status.set_phase(phase));
        Probes::new(Arc::new(status), CancellationToken::new())
    }

    fn said(result: Result<(), Unwell>) -> String {
        result.map_or_else(|unwell| format!("{}: {}", unwell.reason, unwell.message), |()| "ok".into())
    }

    #[test]
    fn before_the_weights_are_here_it_has_not_started() {
        let waiting = probes(Phase::Waiting);
        let words = "NoPlacement: no placement yet; 0 bytes loaded of a checkpoint of 900";
        assert_eq!((said(waiting.started()).as_str(), said(waiting.ready()).as_str()), (words, words));
        waiting.status.update(|status| {
            status.set_phase(Phase::Loading);
            (status.message, status.bytes_to_load) = (String::new(), 600);
        });
        waiting.status.set_bytes_loaded(250);
        assert_eq!(said(waiting.started()), "Loading: 250 of 600 bytes loaded");
        waiting.status.update(|status| status.message = "fetching: 1 of 3 files".into());
        assert_eq!(said(waiting.started()), "Loading: fetching: 1 of 3 files");
        waiting.status.update(|status| status.set_phase(Phase::Connecting));
        assert_eq!(said(waiting.started()), "ok");
        waiting.status.update(|status| status.set_phase(Phase::Loading));
        assert_eq!(said(waiting.started()), "ok", "loading for another placement is no start");
    }

    #[test]
    fn only_ready_is_ready() {
        assert_eq!(said(probes(Phase::Ready).ready()), "ok");
        for (phase, started) in [(Phase::Connecting, "ok"), (Phase::Draining, "ok"), (Phase::Failed, "ok")] {
            let probes = probes(phase);
            probes.status.update(|status| (status.reason, status.message) = ("Why".into(), "a sentence".into()));
            assert_eq!(said(probes.ready()), "Why: a sentence", "{phase:?}");
            assert_eq!(said(probes.started()), started, "{phase:?}");
            assert_eq!(said(probes.live()), "ok", "{phase:?}");
        }
        let draining = probes(Phase::Draining);
        draining.status.update(|status| status.message.clear());
        assert_eq!(said(draining.ready()), "Draining: this worker drains and admits no more");
    }

    #[test]
    fn turns_that_stand_still_are_no_life() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut pulse = Pulse { turns: 0, since: began };
        assert_eq!(pulse.still(0, at(600)), Duration::ZERO, "there is no device yet");
        assert_eq!(pulse.still(1, at(601)), Duration::ZERO);
        assert_eq!(pulse.still(1, at(660)), Duration::from_secs(59));
        assert_eq!(pulse.still(1, at(661)), STALLED);
        assert_eq!(pulse.still(2, at(700)), Duration::ZERO);
    }

    #[test]
    fn a_stalled_or_ended_device_is_said() {
        let probes = probes(Phase::Ready);
        probes.status.turn();
        assert_eq!(said(probes.live()), "ok");
        if let Some(long_ago) = Instant::now().checked_sub(STALLED) {
            probes.pulse.lock().unwrap().since = long_ago;
            assert_eq!(said(probes.live()), "DeviceStalled: the device thread has made no progress for 60 s");
        }
        probes.status.turn();
        assert_eq!(said(probes.live()), "ok");
        probes.ended.cancel();
        assert_eq!(said(probes.live()), "DeviceStalled: the device thread has ended");
    }
}
