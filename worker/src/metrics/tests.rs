//! The page is what `docs/metrics.md` says it is.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Pod 1 of a group of three.
fn shared() -> SharedStatus {
    let shared = SharedStatus::new(StatusResponse::default());
    shared.update(|status| {
        status.set_phase(Phase::Connecting);
        let peer = |pod, state: &str| PeerStatus { pod, state: state.into(), decode_round_trip_us: 1500 };
        status.peers = vec![peer(0, "connected"), peer(2, "disconnected")];
        status.routing = Some(m1_proto::worker::Routing { executed: 5, skipped: 2, lost: 1, ..Default::default() });
        (status.state_slots_total, status.kv_blocks_total, status.served_rows) = (16, 1 << 20, 77);
        (status.bytes_to_load, status.bytes_loaded) = (456_000_000_000, 123_000_000_000);
    });
    shared.set_epoch(4);
    shared.traffic().count(PodId(0), Lane::Prefill, Direction::Sent, 4096);
    shared
}

#[test]
fn values_are_those_of_the_status() {
    let page = render(&shared()).unwrap();
    let lines: BTreeSet<&str> = page.lines().collect();
    for line in [
        concat!("m1_worker_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        "m1_worker_phase{phase=\"connecting\"} 1",
        "m1_worker_phase{phase=\"ready\"} 0",
        "m1_worker_placement_epoch 4",
        "m1_worker_weights_loaded_bytes 123000000000",
        "m1_worker_weights_planned_bytes 456000000000",
        "m1_worker_state_slots_used 0",
        "m1_worker_state_slots_total 16",
        "m1_worker_kv_blocks_total 1048576",
        "m1_worker_served_rows_total 77",
        "m1_worker_expert_tokens_total{outcome=\"executed\"} 5",
        "m1_worker_expert_tokens_total{outcome=\"skipped\"} 2",
        "m1_worker_expert_tokens_total{outcome=\"lost\"} 1",
        "m1_worker_peer_connected{peer=\"0\"} 1",
        "m1_worker_peer_connected{peer=\"2\"} 0",
        "m1_worker_peer_round_trip_seconds{peer=\"0\"} 0.0015",
        "m1_worker_dispatch_bytes_total{direction=\"sent\",lane=\"prefill\",peer=\"0\"} 4096",
        "m1_worker_dispatch_frames_total{direction=\"sent\",lane=\"prefill\",peer=\"0\"} 1",
        "m1_worker_dispatch_frames_total{direction=\"received\",lane=\"decode\",peer=\"2\"} 0",
    ] {
        assert!(lines.contains(line), "{line} is not on the page:\n{page}");
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("m1_worker_phase{") && line.ends_with(" 1")).count(), 1);
}

#[test]
fn before_a_placement_all_but_the_peers_is_there() {
    let first = names(&render(&SharedStatus::new(StatusResponse::default())).unwrap());
    let later = names(&render(&shared()).unwrap());
    let missing: Vec<&String> = later.difference(&first).collect();
    let of_peers = |name: &&String| name.starts_with("m1_worker_peer_") || name.starts_with("m1_worker_dispatch_");
    assert!(missing.len() == 4 && missing.iter().all(of_peers), "{missing:?}");
}

fn names(page: &str) -> BTreeSet<String> {
    page.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect()
}

/// The rows that the page asks for, by name.
fn rows(page: &str) -> Vec<String> {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let names = labels.entry(name).or_default();
        let given = rest.split_once("} ").map_or("", |(given, _)| given);
        names.extend(given.split(',').filter_map(|label| Some(label.split_once('=')?.0)));
    }
    let word = |line: &'_ str, what: &str, name: &str| line.strip_prefix(&format!("# {what} {name} ")).map(str::to_owned);
    let of = |what: &str, name: &str| page.lines().find_map(|line| word(line, what, name)).unwrap();
    let row = |(name, labels): (&&str, &BTreeSet<&str>)| {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {} | {} | {} |", of("TYPE", name), labels.join(", "), of("HELP", name))
    };
    labels.iter().map(row).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn the_manual_lists_what_is_there() {
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let section = manual.split("\n## ").find(|section| section.starts_with("Worker")).unwrap();
    let given: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let wanted = rows(&render(&shared()).unwrap());
    assert_eq!(given, wanted, "the table of docs/metrics.md below `## Worker` should be:\n{}\n", wanted.join("\n"));
}
