//! The worker's metrics: their names, and the text that `/metrics` gives. Every page is made anew from the shared status, so a
//! series is there from the first page on, a peer that has left the group is gone with the next one, and nothing is counted
//! here. Labels come from enums and small integers. `docs/metrics.md` lists every name; a test holds it to that.

mod page;

use m1_exchange::{Lane, PodId};
use m1_proto::worker::{PeerStatus, Phase, StatusResponse};
use m1_runtime::process::Usage;

use crate::status::SharedStatus;
use crate::traffic::{Direction, Volume};
use page::{Family, Page};

const BUILD_INFO: Family = Family("m1_worker_build_info", "Always 1; the version of the binary.", &["version"]);
const PHASE: Family = Family("m1_worker_phase", "1 for the phase that the worker is in, 0 for the others.", &["phase"]);
const PLACEMENT_EPOCH: Family =
    Family("m1_worker_placement_epoch", "Epoch of the placement that is applied; 0 before the first.", &[]);
const WEIGHTS_LOADED: Family =
    Family("m1_worker_weights_loaded_bytes", "Bytes of tensors that have been read for the present placement so far.", &[]);
const WEIGHTS_PLANNED: Family =
    Family("m1_worker_weights_planned_bytes", "Bytes of tensors that the present placement has to read.", &[]);
const CHECKPOINT: Family = Family("m1_worker_checkpoint_bytes", "Bytes of all tensors of the checkpoint.", &[]);
const SLOTS_USED: Family = Family("m1_worker_state_slots_used", "Lightning state slots in use.", &[]);
const SLOTS_TOTAL: Family = Family("m1_worker_state_slots_total", "Lightning state slots there are.", &[]);
const BLOCKS_USED: Family = Family("m1_worker_kv_blocks_used", "KV blocks in use, or needed by prompts that are being read.", &[]);
const BLOCKS_TOTAL: Family = Family("m1_worker_kv_blocks_total", "KV blocks there are.", &[]);
const RUNNING: Family = Family("m1_worker_sequences_running", "Sequences that have a state slot.", &[]);
const SET_ASIDE: Family = Family(
    "m1_worker_sequences_set_aside",
    "Sequences among the waiting ones that have run and were set aside for want of KV blocks.",
    &[],
);
const WAITING: Family = Family("m1_worker_sequences_waiting", "Sequences that wait for a slot or for KV blocks.", &[]);
const EXPERT_TOKENS: Family = Family(
    "m1_worker_expert_tokens_total",
    "Places of the routing of this worker's own tokens (tokens x layers x top-k): executed, skipped by the expert threshold, or lost because nobody held the expert.",
    &["outcome"],
);
const SERVED_ROWS: Family = Family("m1_worker_served_rows_total", "Rows of peers that own experts were computed for.", &[]);
const PEER_CONNECTED: Family =
    Family("m1_worker_peer_connected", "1 where a peer can be asked for its experts. There from the placement on.", &["peer"]);
const PEER_ROUND_TRIP: Family = Family(
    "m1_worker_peer_round_trip_seconds",
    "Last measured round trip to a peer; 0 before the first. There from the placement on.",
    &["peer"],
);
const DISPATCH_FRAMES: Family = Family(
    "m1_worker_dispatch_frames_total",
    "Requests and answers that went between this pod and a peer. There from the placement on.",
    &["peer", "lane", "direction"],
);
const DISPATCH_BYTES: Family = Family(
    "m1_worker_dispatch_bytes_total",
    "Bytes of hidden states, sums, experts and weights in these frames. There from the placement on.",
    &["peer", "lane", "direction"],
);
const CPU: Family = Family("process_cpu_seconds_total", "Time on a CPU, user and system.", &[]);
const RESIDENT: Family = Family("process_resident_memory_bytes", "Resident memory, mapped files included.", &[]);
const OPEN_FDS: Family = Family("process_open_fds", "File descriptors that are open.", &[]);
const MAX_FDS: Family = Family("process_max_fds", "File descriptors that may be open.", &[]);
const THREADS: Family = Family("process_threads", "Threads.", &[]);
const START: Family = Family("process_start_time_seconds", "Start of the process, in seconds since 1970.", &[]);

/// Every phase and its label.
const PHASES: [(Phase, &str); 6] = [
    (Phase::Waiting, "waiting"),
    (Phase::Loading, "loading"),
    (Phase::Connecting, "connecting"),
    (Phase::Ready, "ready"),
    (Phase::Draining, "draining"),
    (Phase::Failed, "failed"),
];

/// The page of this moment.
///
/// # Errors
/// A name or label that prometheus refuses.
pub fn render(shared: &SharedStatus) -> Result<String, prometheus::Error> {
    let status = shared.brief();
    let mut page = Page::default();
    page.gauges(BUILD_INFO, [([env!("CARGO_PKG_VERSION")], 1.0)])?;
    worker(&mut page, &status)?;
    for peer in &status.peers {
        self::peer(&mut page, shared, peer)?;
    }
    if let Some(usage) = m1_runtime::process::usage() {
        process(&mut page, &usage)?;
    }
    page.text()
}

fn worker(page: &mut Page, status: &StatusResponse) -> Result<(), prometheus::Error> {
    let present = status.phase();
    page.gauges(PHASE, PHASES.map(|(phase, label)| ([label], f64::from(u8::from(phase == present)))))?;
    page.gauge(PLACEMENT_EPOCH, status.epoch as f64)?;
    page.gauge(WEIGHTS_LOADED, status.bytes_loaded as f64)?;
    page.gauge(WEIGHTS_PLANNED, status.bytes_to_load as f64)?;
    page.gauge(CHECKPOINT, status.bytes_checkpoint as f64)?;
    page.gauge(SLOTS_USED, status.state_slots_used.into())?;
    page.gauge(SLOTS_TOTAL, status.state_slots_total.into())?;
    page.gauge(BLOCKS_USED, status.kv_blocks_used.into())?;
    page.gauge(BLOCKS_TOTAL, status.kv_blocks_total.into())?;
    page.gauge(RUNNING, status.running.into())?;
    page.gauge(WAITING, status.waiting.into())?;
    page.gauge(SET_ASIDE, status.set_aside.into())?;
    page.counter(SERVED_ROWS, status.served_rows as f64)?;
    let (executed, skipped, lost) = status.routing.as_ref().map_or((0, 0, 0), |r| (r.executed, r.skipped, r.lost));
    let outcomes = [("executed", executed), ("skipped", skipped), ("lost", lost)];
    page.counters(EXPERT_TOKENS, outcomes.map(|(outcome, tokens)| ([outcome], tokens as f64)))
}

fn peer(page: &mut Page, shared: &SharedStatus, peer: &PeerStatus) -> Result<(), prometheus::Error> {
    let label = peer.pod.to_string();
    // A suspect one is still asked.
    let connected = matches!(peer.state.as_str(), "connected" | "suspect");
    page.gauges(PEER_CONNECTED, [([label.as_str()], f64::from(u8::from(connected)))])?;
    page.gauges(PEER_ROUND_TRIP, [([label.as_str()], f64::from(peer.decode_round_trip_us) / 1e6)])?;
    let Ok(id) = u16::try_from(peer.pod).map(PodId) else { return Ok(()) };
    for (lane, direction) in Lane::ALL.into_iter().flat_map(|lane| Direction::ALL.map(|direction| (lane, direction))) {
        let labels = [label.as_str(), lane.as_str(), direction.as_str()];
        let Volume { frames, bytes } = shared.traffic().volume(id, lane, direction);
        page.counters(DISPATCH_FRAMES, [(labels, frames as f64)])?;
        page.counters(DISPATCH_BYTES, [(labels, bytes as f64)])?;
    }
    Ok(())
}

fn process(page: &mut Page, usage: &Usage) -> Result<(), prometheus::Error> {
    page.counter(CPU, usage.cpu_seconds)?;
    page.gauge(RESIDENT, usage.resident_bytes as f64)?;
    page.gauge(OPEN_FDS, usage.open_fds as f64)?;
    page.gauge(MAX_FDS, usage.max_fds.map_or(f64::INFINITY, |most| most as f64))?;
    page.gauge(THREADS, usage.threads as f64)?;
    page.gauge(START, usage.start_seconds)
}

#[cfg(test)]
mod tests;
