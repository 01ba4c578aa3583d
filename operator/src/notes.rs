//! What is remembered of each deployment between two looks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use m1_operator_api::{DeploymentStatus, MiniMaxM1Deployment};
use m1_operator_plan::Revision;

use crate::cache::Key;

/// Notes of all deployments.
#[derive(Debug, Default)]
pub struct Notes(Mutex<HashMap<Key, Note>>);

#[derive(Debug, Default)]
struct Note {
    /// Failures in a row.
    failures: u32,
    /// The status that was written last, until the watch brings it.
    said: Option<Said>,
    /// When it was written.
    written: Option<Instant>,
    /// The revision whose StatefulSet the API server would take.
    tried: Option<Revision>,
    /// What was set right and may not stay so: how often in a row, and when last.
    mended: BTreeMap<String, (u32, Instant)>,
}

/// Between the first two times that a thing is set right; doubled each time, up to the second.
const MENDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

#[derive(Debug)]
struct Said {
    /// `metadata.resourceVersion` of what was looked at.
    over: Option<String>,
    status: DeploymentStatus,
}

impl Notes {
    /// Forgets a deployment that is gone.
    pub fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Counts a failure; how many there were in a row.
    pub fn failed(&self, key: &Key) -> u32 {
        self.with(key, |note| {
            note.failures = note.failures.saturating_add(1);
            note.failures
        })
    }

    /// Ends the row of failures.
    pub fn succeeded(&self, key: &Key) {
        self.with(key, |note| note.failures = 0);
    }

    /// Remembers a status that was written for what a look saw.
    pub fn said(&self, deployment: &MiniMaxM1Deployment, status: &DeploymentStatus) {
        let said = Said { over: deployment.metadata.resource_version.clone(), status: status.clone() };
        self.with(&Key::of(deployment), |note| {
            note.said = Some(said);
            note.written = Some(Instant::now());
        });
    }

    /// How long ago a status was written; none where this process wrote none yet.
    pub fn silent_for(&self, key: &Key) -> Option<Duration> {
        self.with(key, |note| note.written.map(|written| written.elapsed()))
    }

    /// A deployment with the status that it has by now: a watch brings what was written only after a while, and a look before that
    /// would write it, and tell it, once more.
    pub fn latest(&self, deployment: Arc<MiniMaxM1Deployment>) -> Arc<MiniMaxM1Deployment> {
        let status = self.with(&Key::of(deployment.as_ref()), |note| {
            note.said.take_if(|said| said.over != deployment.metadata.resource_version);
            note.said.as_ref().map(|said| said.status.clone())
        });
        match status {
            None => deployment,
            Some(_) => Arc::new(MiniMaxM1Deployment { status, ..Arc::unwrap_or_clone(deployment) }),
        }
    }

    /// Remembers that the API server would take a revision's StatefulSet.
    pub fn tried(&self, key: &Key, revision: &Revision) {
        self.with(key, |note| note.tried = Some(revision.clone()));
    }

    /// Whether the API server would take a revision's StatefulSet, as far as it was asked.
    pub fn was_tried(&self, key: &Key, revision: &Revision) -> bool {
        self.with(key, |note| note.tried.as_ref() == Some(revision))
    }

    /// Whether a thing may be set right now; else how long that has to wait. Somebody who changes it back each time must not make the
    /// operator write without an end.
    ///
    /// # Errors
    /// The time that is left.
    pub fn may_mend(&self, key: &Key, what: &str) -> Result<(), Duration> {
        self.with(key, |note| {
            let Some((times, last)) = note.mended.get_mut(what) else {
                note.mended.insert(what.to_owned(), (1, Instant::now()));
                return Ok(());
            };
            let pause = MENDS.0.saturating_mul(1 << (*times - 1).min(10)).min(MENDS.1);
            let left = pause.saturating_sub(last.elapsed());
            if !left.is_zero() {
                return Err(left);
            }
            (*times, *last) = (times.saturating_add(1), Instant::now());
            Ok(())
        })
    }

    /// Notes that a thing is as it should be.
    pub fn is_right(&self, key: &Key, what: &str) {
        self.with(key, |note| note.mended.remove(what));
    }

    fn with<T>(&self, key: &Key, with: impl FnOnce(&mut Note) -> T) -> T {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        with(notes.entry(key.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(version: &str) -> Arc<MiniMaxM1Deployment> {
        let object = serde_json::json!({
            "apiVersion": "serving.minimax-m1.dev/v1alpha1",
            "kind": "MiniMaxM1Deployment",
            "metadata": {"name": "chat", "namespace": "team", "resourceVersion": version},
            "spec": {"model": {"source": {"hostPath": {"path": "/models/m1"}}}},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_was_said_holds_until_the_watch_brings_something() {
        let (notes, status) = (Notes::default(), DeploymentStatus { replicas: 3, ..DeploymentStatus::default() });
        assert_eq!(notes.latest(deployment("1")).status, None);
        notes.said(&deployment("1"), &status);
        assert_eq!(notes.latest(deployment("1")).status.as_ref(), Some(&status));
        assert_eq!(notes.latest(deployment("2")).status, None);
        // What came by the watch holds from then on, whatever version it has.
        assert_eq!(notes.latest(deployment("1")).status, None);
    }

    #[test]
    fn what_does_not_stay_right_is_left_alone_for_longer_each_time() {
        let (notes, key) = (Notes::default(), Key::of(deployment("1").as_ref()));
        assert_eq!(notes.may_mend(&key, "Service a"), Ok(()));
        let first = notes.may_mend(&key, "Service a").unwrap_err();
        assert!(first <= MENDS.0, "{first:?}");
        notes.with(&key, |note| note.mended.get_mut("Service a").unwrap().1 -= first);
        assert_eq!(notes.may_mend(&key, "Service a"), Ok(()));
        assert!(notes.may_mend(&key, "Service a").unwrap_err() > MENDS.0);
        assert_eq!(notes.may_mend(&key, "Service b"), Ok(()), "each thing by itself");
        notes.is_right(&key, "Service a");
        assert_eq!(notes.may_mend(&key, "Service a"), Ok(()));
    }

    #[test]
    fn failures_are_counted_until_one_look_succeeds() {
        let (notes, key) = (Notes::default(), Key::of(deployment("1").as_ref()));
        assert_eq!((notes.failed(&key), notes.failed(&key)), (1, 2));
        notes.succeeded(&key);
        assert_eq!(notes.failed(&key), 1);
    }
}
