//! Who holds which experts in a local group: the placement as it is pushed, and as people read it.

use std::net::SocketAddr;

use m1_arch::{Bytes, ExpertSet, linear_share};
use m1_proto::worker::{ApplyPlacementRequest, PodPlacement};

use crate::output::{Align, Table};

/// A number of workers that the experts cannot be spread over.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{given} given, allowed: 1 to {experts}, the experts of a layer")]
pub struct SpreadError {
    given: usize,
    experts: usize,
}

/// One pod of a local group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Its group.
    pub group: usize,
    /// Its index in the group.
    pub pod: u16,
    /// What people read: `pod 1`, or `pod 0/1` where there are several groups.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it holds.
    pub holds: ExpertSet,
    /// What it reads of the checkpoint.
    pub bytes: Bytes,
}

/// Equal runs of experts, the same in every layer, for each of `pods` pods.
///
/// # Errors
/// There is no pod, or a pod would hold nothing.
pub fn linear(layers: usize, experts: usize, pods: usize) -> Result<Vec<ExpertSet>, SpreadError> {
    if pods == 0 || pods > experts {
        return Err(SpreadError { given: pods, experts });
    }
    Ok((0..pods).map(|pod| ExpertSet::from_range(layers, experts, linear_share(experts, pods, pod))).collect())
}

/// What every pod of a group is told.
pub fn request(epoch: u64, group: usize, pods: &[LocalPod]) -> ApplyPlacementRequest {
    let (layers, experts) = pods.first().map_or((0, 0), |pod| (pod.holds.layers(), pod.holds.experts()));
    let placements = pods.iter().filter(|pod| pod.group == group).map(|pod| PodPlacement {
        pod: pod.pod.into(),
        address: pod.address.to_string(),
        holds: pod.holds.to_hex(),
    });
    ApplyPlacementRequest {
        lease_transitions: 0,
        epoch,
        layers: layers as u32,
        experts: experts as u32,
        pods: placements.collect(),
        model: String::new(),
    }
}

/// What nobody of a group holds while only those pods are there whose seat is not among `lost`.
pub fn away(pods: &[LocalPod], group: usize, lost: &[usize]) -> ExpertSet {
    let (layers, experts) = pods.first().map_or((0, 0), |pod| (pod.holds.layers(), pod.holds.experts()));
    let there = pods.iter().enumerate().filter(|(seat, pod)| pod.group == group && !lost.contains(seat));
    let held = there.fold(ExpertSet::empty(layers, experts), |set, (_, pod)| set.union(&pod.holds));
    ExpertSet::full(layers, experts).difference(&held)
}

/// A set of experts in words: `none`, `0-15 in every layer`, or how many where layers differ.
pub fn in_words(set: &ExpertSet) -> String {
    if set.is_empty() {
        return "none".to_owned();
    }
    let mut layers = (0..set.layers()).map(|layer| ranges(set, layer));
    let first = layers.next().unwrap_or_default();
    match layers.all(|layer| layer == first) {
        true if set.is_full() => format!("all {} in every layer", set.experts()),
        true => format!("{first} in every layer"),
        false => format!("{} of {} (layer, expert) pairs", set.len(), set.layers() * set.experts()),
    }
}

fn ranges(set: &ExpertSet, layer: usize) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for expert in set.experts_of(m1_arch::LayerId(layer as u16)) {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == expert.0 => run.1 = expert.0,
            _ => runs.push((expert.0, expert.0)),
        }
    }
    let words = runs.iter().map(|&(low, high)| match low == high {
        true => low.to_string(),
        false => format!("{low}-{high}"),
    });
    words.collect::<Vec<_>>().join(",")
}

/// What runs where. `pids` has one entry per pod, then one for the router where there is one.
pub fn table(pods: &[LocalPod], pids: &[u32], router: Option<(SocketAddr, u32)>) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("ADDRESS", Align::Left),
        ("PID", Align::Right),
        ("EXPERTS", Align::Left),
        ("READS", Align::Right),
    ]);
    for (pod, pid) in pods.iter().zip(pids) {
        table.row([pod.name.clone(), pod.address.to_string(), pid.to_string(), in_words(&pod.holds), pod.bytes.to_string()]);
    }
    if let Some((address, pid)) = router {
        table.row(["router".to_owned(), address.to_string(), pid.to_string(), "-".to_owned(), "-".to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use m1_arch::{ExpertId, LayerId};

    use super::*;

    fn pods(count: usize) -> Vec<LocalPod> {
        let sets = linear(8, 32, count).unwrap();
        sets.into_iter()
            .enumerate()
            .map(|(pod, holds)| LocalPod {
                group: 0,
                pod: pod as u16,
                name: format!("pod {pod}"),
                address: SocketAddr::from(([127, 0, 0, 1], 20_000 + pod as u16)),
                holds,
                bytes: Bytes(7_500_000),
            })
            .collect()
    }

    #[test]
    fn experts_are_spread_in_runs() {
        let words: Vec<String> = linear(8, 32, 3).unwrap().iter().map(in_words).collect();
        assert_eq!(words, ["0-10 in every layer", "11-21 in every layer", "22-31 in every layer"]);
        assert_eq!(in_words(&linear(8, 32, 1).unwrap()[0]), "all 32 in every layer");
    }

    #[test]
    fn a_pod_without_experts_is_refused() {
        assert_eq!(linear(8, 32, 33).unwrap_err().to_string(), "33 given, allowed: 1 to 32, the experts of a layer");
        assert!(linear(8, 32, 0).is_err());
    }

    #[test]
    fn a_lost_pod_takes_what_only_it_held() {
        let mut pods = pods(2);
        assert_eq!(in_words(&away(&pods, 0, &[1])), "16-31 in every layer");
        pods[0].holds = ExpertSet::full(8, 32);
        assert_eq!(in_words(&away(&pods, 0, &[1])), "none");
    }

    #[test]
    fn uneven_sets_are_counted() {
        let mut set = ExpertSet::empty(8, 32);
        set.insert(LayerId(0), ExpertId(3));
        assert_eq!(in_words(&set), "1 of 256 (layer, expert) pairs");
        let mut every = ExpertSet::from_range(8, 32, 0..2);
        every = every.union(&ExpertSet::from_range(8, 32, 7..8));
        assert_eq!(in_words(&every), "0-1,7 in every layer");
    }

    #[test]
    fn the_request_names_every_pod() {
        let request = request(2, 0, &pods(2));
        assert_eq!((request.epoch, request.layers, request.experts), (2, 8, 32));
        assert_eq!(request.pods[1].address, "127.0.0.1:20001");
        assert_eq!(request.pods[1].holds, "0000ffff".repeat(8));
    }

    #[test]
    fn the_table_shows_who_runs_where() {
        let text = table(&pods(2), &[41, 42], Some((SocketAddr::from(([127, 0, 0, 1], 8000)), 43))).to_string();
        let expected = "\
NAME    ADDRESS          PID  EXPERTS                READS
pod 0   127.0.0.1:20000   41  0-15 in every layer   7.5 MB
pod 1   127.0.0.1:20001   42  16-31 in every layer  7.5 MB
router  127.0.0.1:8000    43  -                          -
";
        assert_eq!(text, expected);
    }
}
