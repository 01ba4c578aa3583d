//! Objects as JSON text. As values they take several times the room, and with ten thousand pods that is most of the operator's memory; a
//! deployment's objects are read in well under a millisecond.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use m1_operator_plan::Kind;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Family;

/// One object.
#[derive(Clone, Debug)]
pub struct Stored {
    text: Arc<[u8]>,
    uid: Box<str>,
    version: Option<u64>,
    node: Option<Box<str>>,
}

/// What belongs to one deployment, as it is kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Objects that the operator writes.
    pub objects: BTreeMap<(Kind, String), Stored>,
    /// Worker and router pods by name.
    pub pods: BTreeMap<String, Stored>,
}

impl Stored {
    /// An object; none where it cannot be written as JSON.
    pub fn of(object: &(impl ResourceExt + Serialize)) -> Option<Self> {
        let text = serde_json::to_vec(object).inspect_err(|error| tracing::error!(%error, name = object.name_any(), "not kept"));
        Some(Self {
            text: text.ok()?.into(),
            uid: object.uid().unwrap_or_default().into(),
            version: object.resource_version().and_then(|version| version.parse().ok()),
            node: None,
        })
    }

    /// A pod that a node has.
    pub fn on(self, node: Option<&str>) -> Self {
        Self { node: node.map(Into::into), ..self }
    }

    /// The node that has it.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Whether it is the same state of the same object, or a later one: resource versions of one object grow.
    pub fn is_as_new_as(&self, other: &Self) -> bool {
        self.uid == other.uid && self.version.is_some() && self.version >= other.version
    }

    /// As an object again.
    pub fn read<T: DeserializeOwned>(&self) -> Option<Arc<T>> {
        let object =
            serde_json::from_slice(&self.text).inspect_err(|error| tracing::error!(%error, "what was kept cannot be read"));
        object.ok().map(Arc::new)
    }
}

impl Kept {
    /// As objects again.
    pub fn read(&self) -> Family {
        Family {
            objects: self.objects.iter().filter_map(|(place, stored)| Some((place.clone(), stored.read()?))).collect(),
            pods: self.pods.iter().filter_map(|(name, stored)| Some((name.clone(), stored.read()?))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;

    use super::*;

    fn object(uid: &str, version: &str) -> DynamicObject {
        let metadata = serde_json::json!({"name": "a", "uid": uid, "resourceVersion": version});
        serde_json::from_value(serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"a": [1]}}))
            .unwrap()
    }

    #[test]
    fn what_is_kept_is_read_as_it_was() {
        let kept = object("u", "9");
        assert_eq!(Stored::of(&kept).unwrap().read::<DynamicObject>().unwrap().as_ref(), &kept);
    }

    #[test]
    fn versions_count_within_one_life() {
        let stored = |uid, version| Stored::of(&object(uid, version)).unwrap();
        assert!(stored("u", "10").is_as_new_as(&stored("u", "9")));
        assert!(stored("u", "9").is_as_new_as(&stored("u", "9")));
        assert!(!stored("u", "9").is_as_new_as(&stored("u", "10")));
        assert!(!stored("v", "10").is_as_new_as(&stored("u", "9")), "it was made anew");
        assert!(!stored("u", "").is_as_new_as(&stored("u", "")), "who knows");
    }
}
