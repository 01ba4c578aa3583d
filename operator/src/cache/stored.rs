//! What belongs to one deployment, as it is kept and as a look sees it. Objects lie here as JSON text: as values they take several times the
//! room. A look reads those that it asks for; of the others it knows whose they are, and whether they are as they should be.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kube::ResourceExt;
use kube::api::DynamicObject;
use m1_operator_plan::{Kind, Object};

use crate::cluster::owner_uid;
use crate::seen::KnownPod;

/// One object in one state.
#[derive(Debug)]
pub struct Stored {
    text: Box<[u8]>,
    uid: Box<str>,
    version: Option<u64>,
    owner: Option<Box<str>>,
    leaving: bool,
    /// What it was found to be as it should be for; 0 for nothing.
    fulfilled: AtomicU64,
}

/// What belongs to one deployment, as it is kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// Objects that the operator writes.
    pub objects: BTreeMap<(Kind, String), Arc<Stored>>,
    /// Worker and router pods by name.
    pub pods: BTreeMap<String, Arc<KnownPod>>,
}

/// What belongs to one deployment, as one look sees it.
#[derive(Debug, Default)]
pub struct Family {
    /// Objects that the operator writes.
    pub objects: BTreeMap<(Kind, String), Known>,
    /// Worker and router pods by name.
    pub pods: BTreeMap<String, Arc<KnownPod>>,
}

/// An object that is read when it is asked for, once in a look.
#[derive(Debug)]
pub struct Known {
    stored: Arc<Stored>,
    object: OnceLock<Option<DynamicObject>>,
}

/// What an object should be, in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish(u64);

impl Wish {
    /// Of an object as it is rendered.
    pub fn of(object: &Object) -> Self {
        let mut hasher = DefaultHasher::new();
        object.value.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

impl Stored {
    /// An object; none where it cannot be written as JSON.
    pub fn of(object: &DynamicObject) -> Option<Self> {
        let text = serde_json::to_vec(object).inspect_err(|error| tracing::error!(%error, name = object.name_any(), "not kept"));
        Some(Self {
            text: text.ok()?.into(),
            uid: object.uid().unwrap_or_default().into(),
            version: object.resource_version().and_then(|version| version.parse().ok()),
            owner: owner_uid(object).map(Into::into),
            leaving: object.metadata.deletion_timestamp.is_some(),
            fulfilled: AtomicU64::new(0),
        })
    }

    /// Whether it is the same state of the same object, or a later one: resource versions of one object grow.
    pub fn is_as_new_as(&self, other: &Self) -> bool {
        self.uid == other.uid && self.version.is_some() && self.version >= other.version
    }

    /// As an object again.
    pub fn read(&self) -> Option<DynamicObject> {
        let object = serde_json::from_slice(&self.text);
        object.inspect_err(|error| tracing::error!(%error, "what was kept cannot be read")).ok()
    }
}

impl Kept {
    /// For a look.
    pub fn family(&self) -> Family {
        let known = |stored: &Arc<Stored>| Known { stored: Arc::clone(stored), object: OnceLock::new() };
        Family {
            objects: self.objects.iter().map(|(place, stored)| (place.clone(), known(stored))).collect(),
            pods: self.pods.clone(),
        }
    }
}

impl Family {
    /// Its pods of one component: workers or routers.
    pub fn component<'a>(&'a self, component: &'a str) -> impl Iterator<Item = &'a Arc<KnownPod>> {
        self.pods.values().filter(move |pod| pod.component == component)
    }

    /// Its objects of one kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&String, &DynamicObject)> {
        let objects = self.objects.iter().filter(move |((found, _), _)| *found == kind);
        objects.filter_map(|((_, name), known)| Some((name, known.object()?)))
    }

    /// One object.
    pub fn object(&self, kind: Kind, name: &str) -> Option<&DynamicObject> {
        self.objects.get(&(kind, name.to_owned()))?.object()
    }
}

impl Known {
    /// The object; none where what was kept cannot be read.
    pub fn object(&self) -> Option<&DynamicObject> {
        self.object.get_or_init(|| self.stored.read()).as_ref()
    }

    /// Whether a deployment owns it, and it stays.
    pub fn stays_with(&self, uid: &str) -> bool {
        self.stored.owner.as_deref() == Some(uid) && !self.stored.leaving
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        &self.stored.uid
    }

    /// Uid of the deployment that owns it.
    pub fn owner(&self) -> Option<&str> {
        self.stored.owner.as_deref()
    }

    /// Whether this state of it was found to be what is wished for.
    pub fn fulfils(&self, wish: Wish) -> bool {
        self.stored.fulfilled.load(Ordering::Relaxed) == wish.0
    }

    /// Notes that this state of it is what is wished for.
    pub fn note_fulfilled(&self, wish: Wish) {
        self.stored.fulfilled.store(wish.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    impl Family {
        /// With these objects and pods.
        pub fn of(objects: &[(Kind, Value)], pods: &[Value]) -> Self {
            let mut kept = Kept::default();
            for (kind, value) in objects {
                let object: DynamicObject = serde_json::from_value(value.clone()).unwrap();
                kept.objects.insert((*kind, object.name_any()), Arc::new(Stored::of(&object).unwrap()));
            }
            for (index, pod) in pods.iter().enumerate() {
                let pod = crate::seen::pod(&serde_json::from_value(pod.clone()).unwrap());
                kept.pods.insert(index.to_string(), Arc::new(pod));
            }
            kept.family()
        }
    }

    fn object(uid: &str, version: &str) -> DynamicObject {
        let metadata = json!({"name": "a", "uid": uid, "resourceVersion": version});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"a": [1]}})).unwrap()
    }

    #[test]
    fn what_is_kept_is_read_as_it_was() {
        let kept = object("u", "9");
        assert_eq!(Stored::of(&kept).unwrap().read().unwrap(), kept);
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

    #[test]
    fn a_wish_is_fulfilled_by_the_state_that_was_compared() {
        let wish = |port: u32| {
            Wish::of(&Object { kind: Kind::Service, name: "a".into(), value: json!({"spec": {"port": port, "name": "http"}}) })
        };
        let mut kept = Kept::default();
        let place = (Kind::Service, "a".to_owned());
        kept.objects.insert(place.clone(), Arc::new(Stored::of(&object("u", "9")).unwrap()));
        assert!(!kept.family().objects[&place].fulfils(wish(1)));
        kept.family().objects[&place].note_fulfilled(wish(1));
        assert!(kept.family().objects[&place].fulfils(wish(1)), "the next look knows it");
        assert!(!kept.family().objects[&place].fulfils(wish(2)));
        kept.objects.insert(place.clone(), Arc::new(Stored::of(&object("u", "10")).unwrap()));
        assert!(!kept.family().objects[&place].fulfils(wish(1)), "another state is compared anew");
    }

    #[test]
    fn an_object_stays_with_its_owner() {
        let owned = |more: Value| {
            let mut object = json!({"metadata": {"name": "a", "ownerReferences": [
                {"apiVersion": "v1", "kind": "MiniMaxM1Deployment", "name": "d", "uid": "u", "controller": true}]}});
            object["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Family::of(&[(Kind::Service, object)], &[])
        };
        let stays = |family: Family| family.objects.values().next().unwrap().stays_with("u");
        assert!(stays(owned(json!({}))));
        assert!(!stays(owned(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))));
        assert!(!stays(owned(json!({"ownerReferences": []}))));
    }
}
