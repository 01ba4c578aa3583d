//! The cluster's warnings that tell why pods are missing or do not start, by what they are about.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use k8s_openapi::api::core::v1::Event as CoreEvent;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

/// What an event is about: namespace, kind and name.
pub type Subject = (String, String, String);

/// A warning among the cluster's events: when it was said last, and its words.
pub type Warning = (Option<Timestamp>, String);

/// The warnings that count, by kind of their subject.
const TELLING: [(&str, &[&str]); 2] = [("StatefulSet", &["FailedCreate"]), ("Pod", &["FailedMount", "FailedAttachVolume"])];

/// All of them, by subject and by the event's name.
#[derive(Debug, Default)]
pub struct Warnings(RwLock<HashMap<Subject, BTreeMap<String, Warning>>>);

impl Warnings {
    /// True where it says something new: the cluster counts what it repeats.
    pub fn set(&self, subject: &Subject, name: String, warning: Warning) -> bool {
        let mut warnings = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = warnings.entry(subject.clone()).or_default();
        let before = newest(known).map(|(_, words)| words.clone());
        known.insert(name, warning);
        newest(known).map(|(_, words)| words) != before.as_ref()
    }

    /// Forgets one that the cluster has forgotten.
    pub fn drop(&self, subject: &Subject, name: &str) {
        let mut warnings = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = warnings.get_mut(subject) else { return };
        known.remove(name);
        if known.is_empty() {
            warnings.remove(subject);
        }
    }

    /// The newest about something.
    pub fn newest(&self, subject: &Subject) -> Option<Warning> {
        let warnings = self.0.read().unwrap_or_else(PoisonError::into_inner);
        newest(warnings.get(subject)?).cloned()
    }
}

/// The newest of some warnings.
fn newest(warnings: &BTreeMap<String, Warning>) -> Option<&Warning> {
    warnings.values().max_by_key(|(time, _)| *time)
}

/// What a telling warning is about; none of other events.
pub fn subject(event: &CoreEvent) -> Option<Subject> {
    let about = &event.involved_object;
    let (kind, reason) = (about.kind.as_deref()?, event.reason.as_deref()?);
    let telling = TELLING.iter().any(|(known, reasons)| *known == kind && reasons.contains(&reason));
    telling.then(|| Some((event.namespace()?, kind.to_owned(), about.name.clone()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_warning_that_tells_is_known() {
        let warnings = Warnings::default();
        let subject = |name: &str| ("n".to_owned(), "Pod".to_owned(), name.to_owned());
        let say = |name: &str, words: &str, second| {
            warnings.set(&subject("p"), name.to_owned(), (Timestamp::from_second(second).ok(), words.to_owned()))
        };
        assert!(say("b", "newer", 2));
        assert!(!say("a", "older", 1), "it is no news");
        assert!(!say("b", "newer", 3), "it is repeated");
        assert_eq!(warnings.newest(&subject("p")).map(|(_, words)| words).as_deref(), Some("newer"));
        assert_eq!(warnings.newest(&subject("q")), None);
        warnings.drop(&subject("p"), "b");
        assert_eq!(warnings.newest(&subject("p")).map(|(_, words)| words).as_deref(), Some("older"));
        warnings.drop(&subject("p"), "a");
        assert!(warnings.0.read().unwrap().is_empty(), "what is gone takes no room");
    }

    #[test]
    fn few_events_tell() {
        let event = |reason: &str| {
            let about = serde_json::json!({"kind": "Pod", "name": "p", "namespace": "n"});
            let event = serde_json::json!({"metadata": {"name": "e", "namespace": "n"}, "reason": reason, "involvedObject": about});
            subject(&serde_json::from_value(event).unwrap())
        };
        assert_eq!(event("FailedMount"), Some(("n".to_owned(), "Pod".to_owned(), "p".to_owned())));
        assert_eq!(event("Unhealthy"), None);
    }
}
