//! The newest picture of a deployment's groups, from the events of a watch. A list replaces the picture only once it is complete. An object that cannot be
//! read disturbs no other: it is left as it was before, or left out where it is new.

use kube::core::DynamicObject;
use kube::runtime::watcher::Event;
use m1_router_core::{GroupSpec, Topology};

use super::placement::{is_leaving, read};

/// The picture.
#[derive(Debug, Default)]
pub struct Picture {
    topology: Topology,
    listing: Topology,
}

impl Picture {
    /// Takes an event; gives the topology once it is whole.
    pub fn take(&mut self, event: Event<DynamicObject>) -> Option<&Topology> {
        match event {
            Event::Init => {
                self.listing = Topology::default();
                return None;
            }
            Event::InitApply(object) => {
                if let Some((key, group)) = self.group(object) {
                    self.listing.groups.insert(key, group);
                }
                return None;
            }
            Event::InitDone => self.topology = std::mem::take(&mut self.listing),
            Event::Apply(object) => {
                if let Some((key, group)) = self.group(object) {
                    self.topology.groups.insert(key, group);
                }
            }
            Event::Delete(object) => {
                self.topology.groups.remove(&name(&object));
            }
        }
        Some(&self.topology)
    }

    fn group(&self, object: DynamicObject) -> Option<(String, GroupSpec)> {
        let key = name(&object);
        match read(&object) {
            Ok(group) => Some((key, group)),
            Err(error) => {
                tracing::warn!(placement = key, reason = error.reason(), %error, "ExpertPlacement ignored");
                let known = self.topology.groups.get(&key)?.clone();
                let open = known.open && !is_leaving(&object);
                Some((key, GroupSpec { open, ..known }))
            }
        }
    }
}

fn name(object: &DynamicObject) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, port: Value) -> DynamicObject {
        let pod = json!({"pod": "p", "address": port, "holds": "c"});
        let spec = json!({"layers": 1, "experts": 4, "pods": [pod]});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn good(name: &str, port: u16) -> DynamicObject {
        object(name, json!(format!("{name}:{port}")))
    }

    fn bad(name: &str) -> DynamicObject {
        object(name, Value::Null)
    }

    /// The addresses after an event; none while a list is under way.
    fn after(picture: &mut Picture, event: Event<DynamicObject>) -> Option<Vec<String>> {
        let topology = picture.take(event)?;
        Some(topology.groups.values().map(|group| group.pods[0].address.to_string()).collect())
    }

    fn listed(picture: &mut Picture, objects: Vec<DynamicObject>) -> Option<Vec<String>> {
        assert_eq!(after(picture, Event::Init), None);
        for object in objects {
            assert_eq!(after(picture, Event::InitApply(object)), None, "half a list is no picture");
        }
        after(picture, Event::InitDone)
    }

    fn some(addresses: &[&str]) -> Option<Vec<String>> {
        Some(addresses.iter().map(|address| (*address).to_owned()).collect())
    }

    #[test]
    fn lists_and_events_make_the_picture() {
        let mut picture = Picture::default();
        assert_eq!(listed(&mut picture, vec![good("a", 1), good("b", 1)]), some(&["a:1", "b:1"]));
        assert_eq!(after(&mut picture, Event::Apply(good("c", 1))), some(&["a:1", "b:1", "c:1"]));
        assert_eq!(after(&mut picture, Event::Apply(good("b", 2))), some(&["a:1", "b:2", "c:1"]));
        assert_eq!(after(&mut picture, Event::Delete(good("a", 1))), some(&["b:2", "c:1"]));
        assert_eq!(listed(&mut picture, vec![good("c", 1)]), some(&["c:1"]), "what a new list lacks is gone");
        // A list that breaks off leaves nothing behind.
        after(&mut picture, Event::Init);
        after(&mut picture, Event::InitApply(good("x", 1)));
        assert_eq!(listed(&mut picture, vec![good("c", 1)]), some(&["c:1"]));
    }

    #[test]
    fn a_bad_object_disturbs_no_other_and_keeps_what_it_was() {
        let mut picture = Picture::default();
        assert_eq!(listed(&mut picture, vec![bad("a"), good("b", 1)]), some(&["b:1"]));
        assert_eq!(after(&mut picture, Event::Apply(bad("b"))), some(&["b:1"]));
        assert_eq!(listed(&mut picture, vec![good("a", 1), bad("b")]), some(&["a:1", "b:1"]));
        let mut leaving = bad("b");
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let topology = picture.take(Event::Apply(leaving)).unwrap();
        assert!(!topology.groups["b"].open && topology.groups["a"].open);
        assert_eq!(after(&mut picture, Event::Delete(bad("b"))), some(&["a:1"]));
    }
}
