//! `spec.parallelism` and `spec.experts`: how one copy of the model is spread, and what a loss does.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::words::words;

/// How one copy of the model is spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Parallelism {
    /// GPUs per worker pod: attention heads and every expert are cut over them. Must divide the model's heads. Default 1.
    #[schemars(range(min = 1, max = 64))]
    pub tensor: u32,
    /// Worker pods per replica group: the experts are spread over them. At most the model's experts (32 for MiniMax-M1);
    /// where it does not divide them, the first pods hold one more. Default 1.
    #[schemars(range(min = 1, max = 256))]
    pub expert: u32,
}

impl Default for Parallelism {
    fn default() -> Self {
        Self { tensor: 1, expert: 1 }
    }
}

/// Where experts lie and what a loss does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Experts {
    /// `Balanced`: by measured load; before there is any, contiguous ranges, and further copies dealt out so that the
    /// loss of one pod loads all others alike. `Linear`: contiguous ranges, whatever the load. A change holds for groups made from then on:
    /// `kubectl m1 restart` makes all anew. Default `Balanced`.
    pub placement: Placement,
    /// Copies of every expert in a group, each on another pod, so at most `parallelism.expert`. 2 survives the loss of
    /// any one pod. Default 1.
    #[schemars(range(min = 1, max = 8))]
    pub copies: u32,
    /// Places per pod for further copies of hot (layer, expert) pairs; each costs the memory of one expert in one layer
    /// (340 MB in bfloat16 for MiniMax-M1). Default 0.
    #[schemars(range(min = 0, max = 65536))]
    pub redundant_slots_per_pod: u32,
    /// Whether experts move when load shifts.
    pub rebalance: Rebalance,
    /// What a token does while nobody holds its expert.
    pub loss: Loss,
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            placement: Placement::default(),
            copies: 1,
            redundant_slots_per_pod: 0,
            rebalance: Rebalance::default(),
            loss: Loss::default(),
        }
    }
}

words! {
    /// How experts are placed on pods.
    #[derive(Default)]
    Placement {
        /// By measured load.
        #[default]
        Balanced,
        /// Contiguous ranges.
        Linear,
    }
}

/// Whether experts move when load shifts.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rebalance {
    /// `Off`: never. `Recommend`: the better placement is reported in status, nothing moves. `Auto`: it is applied. Default `Off`; quote it (`"Off"`), because kubectl reads a bare Off as false.
    #[serde(default)]
    pub mode: RebalanceMode,
    /// Time between two looks at the load, as `30s`, `5m` or `1h30m`; at least `10s`. Default `5m`.
    #[serde(default = "five_minutes")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]{1,6}(ms|s|m|h))+$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')").message("rebalance.interval: at least 10s"))]
    pub interval: String,
    /// Moves are considered only below this balancedness (mean load of the pods over the highest, worst layer; 1 is
    /// even). 0 to 1. Default 0.8.
    #[serde(default = "four_fifths")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_balancedness: f64,
}

fn five_minutes() -> String {
    "5m".to_owned()
}

fn four_fifths() -> f64 {
    0.8
}

impl Default for Rebalance {
    fn default() -> Self {
        Self { mode: RebalanceMode::default(), interval: five_minutes(), min_balancedness: four_fifths() }
    }
}

words! {
    /// Whether a better placement is looked for and applied.
    #[derive(Default)]
    RebalanceMode {
        /// Never.
        #[default]
        Off,
        /// Reported, not applied.
        Recommend,
        /// Applied.
        Auto,
    }
}

/// What a token does while nobody holds its expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Loss {
    /// `Wait`: the sequence stands still until the expert is back, at most `waitSeconds`, then fails with a clear error.
    /// `Renormalize`: the token goes on with its other expert alone; the answer is marked. Default `Wait`.
    pub policy: LossPolicy,
    /// Longest wait for a lost expert, in seconds. Default 30.
    #[schemars(range(min = 1, max = 3600))]
    pub wait_seconds: u32,
    /// With `Renormalize`: the highest share of routing weight per layer that may be missing. Default 0.02.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_missing_weight: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Self { policy: LossPolicy::default(), wait_seconds: 30, max_missing_weight: 0.02 }
    }
}

words! {
    /// What a token does while nobody holds its expert.
    #[derive(Default)]
    LossPolicy {
        /// It waits.
        #[default]
        Wait,
        /// It goes on without.
        Renormalize,
    }
}
