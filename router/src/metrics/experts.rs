//! The series of every (layer, expert): there from the moment the geometry is known, booked from the routing log. Numbers are zero-based.

use m1_router_core::{Counts, CountsError, Geometry, Ledger, holder};
use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::Maker;

/// The pods of one replica group, by their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Whether each is ready.
    pub ready: Vec<bool>,
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
            "Mean over pods / max over pods of the tokens their experts computed, per layer: least and mean of the layers.",
            &["stat"],
        )?;
        let replicas =
            make.gauges("m1_router_expert_replicas", "Ready pods that hold an expert, by the linear placement.", &pair)?;
        let unavailable = make.gauge("m1_router_expert_unavailable", "(layer, expert) pairs that no ready pod holds.")?;
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
                counter.inc_by(u64::from(*tokens));
            }
        }
        Ok(())
    }

    /// Sets the gauges to what is so now.
    pub fn refresh(&self, groups: &[Group]) {
        let experts = self.ledger.geometry().experts;
        let held_by =
            |expert: usize| groups.iter().filter(|g| g.ready.get(holder(expert, experts, g.ready.len())) == Some(&true)).count();
        let replicas: Vec<i64> = (0..experts).map(|expert| i64::try_from(held_by(expert)).unwrap_or(i64::MAX)).collect();
        let mut unavailable = 0;
        for ((pair, share), copies) in self.pairs.iter().zip(self.ledger.utilization()).zip(replicas.iter().cycle()) {
            pair.utilization.set(share);
            pair.replicas.set(*copies);
            unavailable += i64::from(*copies == 0);
        }
        self.unavailable.set(unavailable);
        let pods = groups.iter().map(|group| group.ready.len()).max().unwrap_or(1);
        let balance = self.ledger.balancedness(pods);
        self.least_balanced.set(balance.iter().copied().fold(1.0, f64::min));
        self.mean_balanced.set(balance.iter().sum::<f64>() / balance.len().max(1) as f64);
    }
}
