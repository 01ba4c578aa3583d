//! Loading, shown: one bar on a terminal; elsewhere a line when a pod enters another phase and at each quarter of the bytes.

use indicatif::{ProgressBar, ProgressStyle};
use m1_arch::Bytes;
use m1_proto::worker::{Phase, StatusResponse};

use crate::output::Console;

/// Quarters: often enough to see that it moves, seldom enough for a log.
const STEPS: u64 = 4;

/// Progress of every pod of a group.
#[derive(Debug)]
pub struct Loading {
    console: Option<Console>,
    bar: Option<ProgressBar>,
    pods: Vec<Pod>,
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pod {
    phase: Phase,
    loaded: u64,
    total: u64,
}

impl Loading {
    /// Of the pods of these names, shown on `console`; where none is given nothing is shown.
    pub fn new(console: Option<&Console>, names: Vec<String>) -> Self {
        let bar = console.filter(|console| console.is_terminal()).map(|console| console.bars().add(bar()));
        Self { console: console.cloned(), bar, pods: vec![Pod::default(); names.len()], names }
    }

    /// Takes what a pod says.
    pub fn update(&mut self, seat: usize, status: &StatusResponse) {
        let Some(known) = self.pods.get_mut(seat) else { return };
        let now = Pod { phase: status.phase(), loaded: status.bytes_loaded, total: status.bytes_to_load };
        let line = line(*known, now);
        *known = now;
        match (&self.bar, &self.console, line) {
            (Some(bar), ..) => self.draw(bar),
            (None, Some(console), Some(line)) => console.say(format_args!("{}: {line}", self.names[seat])),
            (None, ..) => {}
        }
    }

    /// A pod is gone; what it had loaded is too.
    pub fn lost(&mut self, seat: usize) {
        if let Some(known) = self.pods.get_mut(seat) {
            *known = Pod::default();
        }
    }

    /// Everything is there.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn draw(&self, bar: &ProgressBar) {
        if bar.is_finished() {
            return;
        }
        bar.set_length(self.pods.iter().map(|pod| pod.total).sum());
        bar.set_position(self.pods.iter().map(|pod| pod.loaded).sum());
        bar.set_message(self.pods.iter().map(|pod| word(pod.phase)).collect::<Vec<_>>().join(", "));
    }
}

fn bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("loading [{bar:30}] {decimal_bytes} of {decimal_total_bytes} ({decimal_bytes_per_sec}) {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn line(before: Pod, now: Pod) -> Option<String> {
    let moved = now.phase != before.phase;
    match now.phase {
        Phase::Loading if moved || step(now) != step(before) => {
            Some(format!("loading, {} of {}", Bytes(now.loaded), Bytes(now.total)))
        }
        Phase::Connecting | Phase::Ready | Phase::Draining if moved => Some(word(now.phase).to_owned()),
        _ => None,
    }
}

fn step(pod: Pod) -> u64 {
    (pod.loaded.saturating_mul(STEPS)).checked_div(pod.total).unwrap_or(0)
}

/// A phase in words.
pub fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified | Phase::Waiting => "starting",
        Phase::Loading => "loading",
        Phase::Connecting => "connecting to its peers",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
        Phase::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: Phase, loaded: u64) -> Pod {
        Pod { phase, loaded, total: 8_000_000 }
    }

    #[test]
    fn phases_and_quarters_are_told_once() {
        let loading = |loaded| pod(Phase::Loading, loaded);
        assert_eq!(line(Pod::default(), pod(Phase::Waiting, 0)), None);
        assert_eq!(line(pod(Phase::Waiting, 0), loading(0)).as_deref(), Some("loading, 0 B of 8.0 MB"));
        assert_eq!(line(loading(0), loading(1_000_000)), None);
        assert_eq!(line(loading(1_000_000), loading(2_500_000)).as_deref(), Some("loading, 2.5 MB of 8.0 MB"));
        assert_eq!(line(loading(8_000_000), pod(Phase::Ready, 8_000_000)).as_deref(), Some("ready"));
        assert_eq!(line(pod(Phase::Ready, 8_000_000), pod(Phase::Ready, 8_000_000)), None);
    }
}
