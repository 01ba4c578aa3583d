//! The series of every (layer, expert): there from the moment the geometry is known, booked from the routing log. Numbers are zero-based.

use std::sync::Arc;

use m1_arch::ExpertSet;
use m1_router_core::{Counts, CountsError, Geometry, Ledger, copies, linear};
use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::Maker;

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Whether it is ready.
    pub ready: bool,
    /// The experts it should hold; none where nobody says.
    pub holds: Option<Arc<ExpertSet>>,
}

/// One replica group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Whether it gets new requests.
    pub open: bool,
    /// In the order of their numbers.
    pub pods: Vec<Pod>,
}

impl Group {
    /// What each pod holds: as it was said, else its share of a linear placement.
    fn holdings(&self, geometry: Geometry) -> Vec<Arc<ExpertSet>> {
        let shares = linear(geometry, self.pods.len());
        self.pods.iter().zip(shares).map(|(pod, share)| pod.holds.clone().unwrap_or(share)).collect()
    }
}

const OUTCOMES: [&str; 3] = ["executed", "skipped", "lost"];

/// Handles of one (layer, expert).
#[derive(Debug)]
struct Pair {
    tokens: [IntCounter; 3],
    utilization: Gauge,
    replicas: IntGauge,
}

/// Handles of all, and the ledger behind the gauges.
#[derive(Debug)]
pub struct ExpertSeries {
    ledger: Ledger,
    pairs: Vec<Pair>,
    least_balanced: Gauge,
    mean_balanced: Gauge,
    unavailable: IntGauge,
}

impl ExpertSeries {
    /// Registers every series, at zero.
    pub fn new(registry: &Registry, model: &str, geometry: Geometry) -> Result<Self, prometheus::Error> {
        let make = Maker { registry, model };
        let pair = ["layer", "expert"];
        let tokens = make.counters(
            "m1_router_expert_tokens_total",
            "Tokens routed to an expert: executed, skipped by the expert threshold, or lost because nobody held it.",
            &["layer", "expert", "outcome"],
        )?;
        let utilization =
            make.ratios("m1_router_expert_utilization", "Share of tokens x experts / top-k since the start; 1 is even.", &pair)?;
        let balanced = make.ratios(
            "m1_router_expert_balancedness",
            "Mean over pods / max over pods of the tokens since the start of the experts that each holds now, per layer: least and mean of the \
             layers; an expert's tokens count in equal parts for the pods of open groups that hold it.",
            &["stat"],
        )?;
        let replicas = make.gauges(
            "m1_router_expert_replicas",
            "Ready pods of open groups that hold an expert: by the groups' ExpertPlacements, else by a linear placement.",
            &pair,
        )?;
        let unavailable = make.gauge(
            "m1_router_expert_unavailable",
            "(layer, expert) pairs that no ready pod of an open group holds: by the groups' ExpertPlacements, else by a linear placement.",
        )?;
        let numbers: Vec<String> = (0..geometry.layers.max(geometry.experts)).map(|n| n.to_string()).collect();
        let names = numbers
            .iter()
            .take(geometry.layers)
            .flat_map(|l| numbers.iter().take(geometry.experts).map(move |e| [l.as_str(), e.as_str()]));
        let pairs = names.map(|[layer, expert]| Pair {
            tokens: OUTCOMES.map(|outcome| tokens.with_label_values(&[layer, expert, outcome])),
            utilization: utilization.with_label_values(&[layer, expert]),
            replicas: replicas.with_label_values(&[layer, expert]),
        });
        Ok(Self {
            pairs: pairs.collect(),
            ledger: Ledger::new(geometry),
            least_balanced: balanced.with_label_values(&["min"]),
            mean_balanced: balanced.with_label_values(&["mean"]),
            unavailable,
        })
    }

    /// Books one answer.
    pub fn book(&mut self, counts: &Counts) -> Result<(), CountsError> {
        self.ledger.book(counts)?;
        let arrays = counts.expert_tokens.iter().zip(&counts.expert_skipped).zip(&counts.expert_lost);
        for (pair, ((executed, skipped), lost)) in self.pairs.iter().zip(arrays) {
            for (counter, tokens) in pair.tokens.iter().zip([executed, skipped, lost]) {
                counter.inc_by(*tokens);
            }
        }
        Ok(())
    }

    /// Sets the gauges to what is so now.
    pub fn refresh(&self, groups: &[Group]) {
        let geometry = self.ledger.geometry();
        let (mut held, mut held_ready) = (Vec::new(), Vec::new());
        for group in groups.iter().filter(|group| group.open) {
            let holdings = group.holdings(geometry);
            held_ready.extend(group.pods.iter().zip(&holdings).filter(|(pod, _)| pod.ready).map(|(_, set)| Arc::clone(set)));
            held.extend(holdings);
        }
        let mut unavailable = 0;
        for ((pair, share), copies) in self.pairs.iter().zip(self.ledger.utilization()).zip(copies(geometry, &held_ready)) {
            pair.utilization.set(share);
            pair.replicas.set(i64::from(copies));
            unavailable += i64::from(copies == 0);
        }
        self.unavailable.set(unavailable);
        let balance = self.ledger.balancedness(&held);
        self.least_balanced.set(balance.iter().copied().fold(1.0, f64::min));
        self.mean_balanced.set(balance.iter().sum::<f64>() / balance.len().max(1) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Geometry = Geometry { layers: 1, experts: 4, top_k: 1 };

    fn pod(ready: bool, holds: &str) -> Pod {
        Pod { ready, holds: (!holds.is_empty()).then(|| Arc::new(ExpertSet::from_hex(1, 4, holds).unwrap())) }
    }

    /// Replicas of the four experts, how many are unavailable, and the balance.
    fn refreshed(groups: &[Group]) -> (Vec<i64>, i64, f64) {
        let mut series = ExpertSeries::new(&Registry::new(), "m", SHAPE).unwrap();
        let counts = Counts {
            geometry: SHAPE,
            tokens: 4,
            executed: 4,
            skipped: 0,
            lost: 0,
            expert_tokens: vec![3, 1, 0, 0],
            expert_weight: vec![1.0; 4],
            expert_skipped: vec![0; 4],
            expert_lost: vec![0; 4],
        };
        series.book(&counts).unwrap();
        series.refresh(groups);
        let replicas = series.pairs.iter().map(|pair| pair.replicas.get()).collect();
        (replicas, series.unavailable.get(), series.least_balanced.get())
    }

    #[test]
    fn gauges_go_by_what_open_groups_hold() {
        let group = |open, pods: [Pod; 2]| Group { open, pods: pods.to_vec() };
        let linear = group(true, [pod(true, ""), pod(true, "")]);
        assert_eq!(refreshed(std::slice::from_ref(&linear)), (vec![1, 1, 1, 1], 0, 0.5));
        // Expert 0 alone on a pod, expert 1 twice, expert 3 nowhere.
        let placed = group(true, [pod(true, "c"), pod(true, "6")]);
        assert_eq!(refreshed(std::slice::from_ref(&placed)), (vec![1, 2, 1, 0], 1, 2.0 / 3.5));
        let halved = group(true, [pod(false, "c"), pod(true, "6")]);
        assert_eq!(
            refreshed(std::slice::from_ref(&halved)),
            (vec![0, 1, 1, 0], 2, 2.0 / 3.5),
            "a pod that is not ready serves none"
        );
        assert_eq!(refreshed(&[linear.clone(), placed.clone()]).0, [2, 3, 2, 1]);
        assert_eq!(
            refreshed(&[linear, Group { open: false, ..placed }]),
            (vec![1, 1, 1, 1], 0, 0.5),
            "a closed group serves nobody"
        );
        assert_eq!(refreshed(&[]), (vec![0; 4], 4, 1.0));
    }
}
