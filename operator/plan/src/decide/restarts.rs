//! Ends of worker processes that nobody asked for: the history in status, and the budget.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::{MiniMaxM1DeploymentSpec, RestartBudget, RestartRecord};

use super::{since, sooner};
use crate::{EndSeen, GroupSeen, Observed};

/// Records that status keeps of a group.
const KEPT: usize = 10;

/// The records of a group: what status had, and what has come since; newest first.
pub fn history(group: &GroupSeen, known: &[RestartRecord]) -> Vec<RestartRecord> {
    let mut records = known.to_vec();
    for pod in &group.pods {
        let Some(end) = &pod.last_end else { continue };
        let time = end.time.to_string();
        if end.code != 0 && !records.iter().any(|record| record.pod == pod.name && record.time == time) {
            records.push(RestartRecord { time, pod: pod.name.clone(), how: how(end) });
        }
    }
    records.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.pod.cmp(&b.pod)));
    records.truncate(KEPT);
    records
}

/// How a process ended, in words.
pub fn how(end: &EndSeen) -> String {
    match end.reason.as_str() {
        "" | "Error" => format!("exit code {}", end.code),
        reason => format!("exit code {} ({reason})", end.code),
    }
}

/// Restarts that count against the budget: those of the window, and none before a resume.
pub fn used(records: &[RestartRecord], budget: &RestartBudget, resumed_at: Option<Timestamp>, now: Timestamp) -> u32 {
    counted(records, budget, resumed_at, now).count() as u32
}

/// Whether the budget is used up. The schema keeps budgets below what the history remembers.
pub fn exhausted(records: &[RestartRecord], budget: &RestartBudget, resumed_at: Option<Timestamp>, now: Timestamp) -> bool {
    used(records, budget, resumed_at, now) > budget.restarts
}

fn counted(
    records: &[RestartRecord],
    budget: &RestartBudget,
    resumed_at: Option<Timestamp>,
    now: Timestamp,
) -> impl Iterator<Item = Timestamp> {
    let window = Duration::from_secs(budget.window_seconds.into());
    let times = records.iter().filter_map(|record| record.time.parse::<Timestamp>().ok());
    times.filter(move |time| since(*time, now) < window && resumed_at.is_none_or(|resumed| *time > resumed))
}

/// When the oldest counted restart leaves the window, where a budget is used up: the status changes then.
pub fn next_expiry(spec: &MiniMaxM1DeploymentSpec, observed: &Observed) -> Option<Duration> {
    let budget = &spec.worker.restart_budget;
    let window = Duration::from_secs(budget.window_seconds.into());
    let mut next = None;
    for group in &observed.status.groups {
        if exhausted(&group.restarts, budget, observed.resumed_at, observed.now) {
            let left = |time| window.saturating_sub(since(time, observed.now));
            let oldest = counted(&group.restarts, budget, observed.resumed_at, observed.now).map(left).min();
            sooner(&mut next, oldest);
        }
    }
    next
}
