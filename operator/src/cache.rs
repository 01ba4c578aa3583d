//! What the operator knows of the cluster: the objects it writes and their pods, by deployment, and the nodes. Fed by watches
//! that list again whenever a stream breaks; every change names the deployments to look at. How it is kept, and read by a look: `stored`.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event as CoreEvent, Node, Pod};
use kube::ResourceExt;
use kube::api::{DynamicObject, TypeMeta};
use kube::runtime::watcher::{self, Event};
use m1_arch::Bytes;
use m1_operator_api::labels;
use m1_operator_plan::{Kind, NodeSeen};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::cluster::placement_spec;
use crate::relist::{Change, Relist};
use crate::seen::{self, KnownPod};

mod stored;
mod warnings;

pub use stored::{Family, Known, Wish};
use stored::{Kept, Stored};
pub use warnings::Warning;
use warnings::{Subject, Warnings};

/// A deployment: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// Of a deployment.
    pub fn of(deployment: &impl ResourceExt) -> Self {
        Self { namespace: deployment.namespace().unwrap_or_default(), name: deployment.name_any() }
    }
}

/// What is known.
#[derive(Debug)]
pub struct Cache {
    families: RwLock<HashMap<Key, Kept>>,
    nodes: RwLock<HashMap<String, NodeSeen>>,
    gpus: RwLock<BTreeMap<String, Gpus>>,
    gpus_changed: Notify,
    warnings: Warnings,
    served: Vec<Kind>,
    /// Whether everything was listed once. Before that nobody takes changes, and all deployments are looked at afterwards anyway.
    live: AtomicBool,
    changes: mpsc::Sender<Key>,
}

/// The GPUs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gpus {
    /// How many pods may ask for.
    count: u32,
    /// Memory of each in MiB.
    memory: u64,
    /// The node's labels.
    labels: BTreeMap<String, String>,
}

/// Something that a watch delivers.
trait Member: Clone + Send + 'static {
    /// Its deployment and its name within a watch.
    fn place(&self) -> Option<(Key, String)>;
    /// Into the family. False where that is no news: what this process wrote comes back by the watch.
    fn enter(self, family: &mut Kept) -> bool;
    /// Out of the family.
    fn leave(kind: Option<Kind>, name: &str, family: &mut Kept);
}

impl Cache {
    /// Knows nothing but which kinds the cluster has. Changes are told on the channel.
    pub fn new(changes: mpsc::Sender<Key>, served: Vec<Kind>) -> Self {
        Self {
            families: RwLock::default(),
            nodes: RwLock::default(),
            gpus: RwLock::default(),
            gpus_changed: Notify::new(),
            warnings: Warnings::default(),
            served,
            live: AtomicBool::new(false),
            changes,
        }
    }

    /// Whether the cluster has a kind.
    pub fn is_served(&self, kind: Kind) -> bool {
        self.served.contains(&kind)
    }

    /// The least memory of a GPU that the label of a node tells, among nodes with these labels and at least `count` GPUs; none where
    /// there are none.
    pub fn gpu_memory(&self, selector: &BTreeMap<String, String>, count: u32) -> Option<Bytes> {
        let nodes = self.gpus.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = |gpus: &&Gpus| selector.iter().all(|(key, value)| gpus.labels.get(key) == Some(value)) && gpus.count >= count;
        nodes.values().filter(chosen).map(|gpus| Bytes(gpus.memory << 20)).min()
    }

    /// Ends when the GPUs of some node are not what they were.
    pub async fn gpus_changed(&self) {
        self.gpus_changed.notified().await;
    }

    /// Whether so many nodes give no sign of life that rather the way to them is lost: all, or more than two and over half of them, as
    /// Kubernetes' own node controller has it.
    pub fn outage(&self) -> bool {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let silent = nodes.values().filter(|node| node.gone_since.is_some()).count();
        silent > 0 && (silent == nodes.len() || silent > 2 && silent * 100 >= nodes.len() * 55)
    }

    /// The most that a placement says of how often leadership had changed.
    pub fn lease_transitions(&self) -> u64 {
        let families = self.read();
        let placements =
            families.values().flat_map(|family| &family.objects).filter(|((kind, _), _)| *kind == Kind::ExpertPlacement);
        let specs = placements.filter_map(|(_, stored)| placement_spec(&stored.read()?));
        specs.map(|spec| spec.lease_transitions).max().unwrap_or(0)
    }

    /// What belongs to a deployment.
    pub fn family(&self, key: &Key) -> Family {
        self.read().get(key).map(Kept::family).unwrap_or_default()
    }

    /// A node, if it is there.
    pub fn node(&self, name: &str) -> Option<NodeSeen> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes in what was just written, so that the next look does not see what was before.
    pub fn wrote(&self, key: &Key, kind: Kind, object: DynamicObject) {
        Written { kind, object }.enter(self.write().entry(key.clone()).or_default());
    }

    /// Forgets what was just deleted for good.
    pub fn deleted(&self, key: &Key, kind: Kind, name: &str) {
        if let Some(family) = self.write().get_mut(key) {
            family.objects.remove(&(kind, name.to_owned()));
        }
    }

    /// Pods and objects known, for metrics.
    pub fn size(&self) -> (usize, usize) {
        let families = self.read();
        families.values().fold((0, 0), |(objects, pods), family| (objects + family.objects.len(), pods + family.pods.len()))
    }

    /// Follows the objects of a kind until the process ends. `listed` is told once everything is known.
    pub async fn follow_objects(
        self: Arc<Self>,
        kind: Kind,
        events: impl Stream<Item = watcher::Result<Event<DynamicObject>>> + Send,
        listed: Option<oneshot::Sender<()>>,
    ) {
        let events = events.map_ok(|event| {
            event.modify(|object| {
                object.managed_fields_mut().clear();
                // The items of a list do not say what they are, and would differ from what is wanted in just that.
                object.types = Some(TypeMeta { api_version: kind.api_version(), kind: kind.as_str().to_owned() });
            })
        });
        self.follow(Some(kind), events.map_ok(|event| map_event(event, |object| Written { kind, object })), listed).await;
    }

    /// Follows pods until the process ends.
    pub async fn follow_pods(
        self: Arc<Self>,
        events: impl Stream<Item = watcher::Result<Event<Pod>>> + Send,
        listed: Option<oneshot::Sender<()>>,
    ) {
        self.follow(None, events, listed).await;
    }

    /// Follows nodes until the process ends.
    pub async fn follow_nodes(
        self: Arc<Self>,
        events: impl Stream<Item = watcher::Result<Event<Node>>> + Send,
        mut listed: Option<oneshot::Sender<()>>,
    ) {
        let (mut events, mut relist) = (std::pin::pin!(events), Relist::default());
        while let Some(event) = events.next().await {
            let changed = match taken("Node", &mut relist, event, |node: &Node| Some(node.name_any())) {
                Change::Nothing => Vec::new(),
                Change::Is(name, node) => {
                    self.note_gpus(&name, gpus(&node));
                    self.set_node(name, Some(seen::node(&node)))
                }
                Change::Gone { gone, listed: whole } => {
                    gone.iter().for_each(|name| self.note_gpus(name, None));
                    tell_once(&mut listed, whole);
                    gone.into_iter().flat_map(|name| self.set_node(name, None)).collect()
                }
            };
            for key in self.on_nodes(&changed) {
                self.tell(key).await;
            }
        }
    }

    /// Follows the warnings among the cluster's events until the process ends. They are watched because the API server finds events
    /// only by reading all of a namespace: asked for each deployment that starts, thousands of them would stop it.
    pub async fn follow_warnings(self: Arc<Self>, events: impl Stream<Item = watcher::Result<Event<CoreEvent>>> + Send) {
        let (mut events, mut relist) = (std::pin::pin!(events), Relist::default());
        while let Some(event) = events.next().await {
            match taken("Event", &mut relist, event, |event: &CoreEvent| Some((warnings::subject(event)?, event.name_any()))) {
                Change::Nothing => {}
                Change::Is((subject, name), event) => {
                    let warning = (event.last_timestamp.map(|time| time.0), event.message.unwrap_or_default());
                    if self.warnings.set(&subject, name, warning) {
                        for key in self.with(&subject) {
                            self.tell(key).await;
                        }
                    }
                }
                Change::Gone { gone, .. } => gone.into_iter().for_each(|(subject, name)| self.warnings.drop(&subject, &name)),
            }
        }
    }

    /// The deployments that a StatefulSet or pod belongs to.
    fn with(&self, (namespace, _, name): &Subject) -> Vec<Key> {
        let set = (Kind::StatefulSet, name.clone());
        let has = |family: &Kept| family.pods.contains_key(name) || family.objects.contains_key(&set);
        let families = self.read();
        families.iter().filter(|(key, family)| key.namespace == *namespace && has(family)).map(|(key, _)| key.clone()).collect()
    }

    /// The newest warning about an object in a deployment's namespace that tells why pods are missing or do not start.
    pub fn warning(&self, key: &Key, kind: &str, name: &str) -> Option<Warning> {
        self.warnings.newest(&(key.namespace.clone(), kind.to_owned(), name.to_owned()))
    }

    async fn follow<M: Member>(
        &self,
        kind: Option<Kind>,
        events: impl Stream<Item = watcher::Result<Event<M>>> + Send,
        mut listed: Option<oneshot::Sender<()>>,
    ) {
        let (mut events, mut relist) = (std::pin::pin!(events), Relist::default());
        while let Some(event) = events.next().await {
            match taken(kind.map_or("Pod", Kind::as_str), &mut relist, event, M::place) {
                Change::Nothing => {}
                Change::Is(place, member) => self.enter(place, member).await,
                Change::Gone { gone, listed: whole } => {
                    for place in &gone {
                        self.leave::<M>(kind, place).await;
                    }
                    tell_once(&mut listed, whole);
                }
            }
        }
    }

    async fn enter<M: Member>(&self, (key, _): (Key, String), member: M) {
        if member.enter(self.write().entry(key.clone()).or_default()) {
            self.tell(key).await;
        }
    }

    async fn leave<M: Member>(&self, kind: Option<Kind>, (key, name): &(Key, String)) {
        {
            let mut families = self.write();
            if let Some(family) = families.get_mut(key) {
                M::leave(kind, name, family);
                if family.objects.is_empty() && family.pods.is_empty() {
                    families.remove(key);
                }
            }
        }
        self.tell(key.clone()).await;
    }

    /// From now on changes are told.
    pub fn listed(&self) {
        self.live.store(true, Ordering::Relaxed);
    }

    async fn tell(&self, key: Key) {
        if !self.live.load(Ordering::Relaxed) {
            return;
        }
        // Closed at the end of the process only.
        let _ = self.changes.send(key).await;
    }

    fn note_gpus(&self, node: &str, gpus: Option<Gpus>) {
        let mut nodes = self.gpus.write().unwrap_or_else(PoisonError::into_inner);
        let before = match &gpus {
            Some(gpus) => nodes.insert(node.to_owned(), gpus.clone()),
            None => nodes.remove(node),
        };
        if before != gpus {
            self.gpus_changed.notify_one();
        }
    }

    fn set_node(&self, name: String, node: Option<NodeSeen>) -> Vec<String> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let before = match &node {
            Some(node) => nodes.insert(name.clone(), node.clone()),
            None => nodes.remove(&name),
        };
        if before == node { Vec::new() } else { vec![name] }
    }

    /// Deployments with a pod on one of these nodes.
    fn on_nodes(&self, names: &[String]) -> Vec<Key> {
        if names.is_empty() {
            return Vec::new();
        }
        let on = |pod: &Arc<KnownPod>| pod.seen.node.as_ref().is_some_and(|node| names.contains(&node.name));
        self.read().iter().filter(|(_, family)| family.pods.values().any(on)).map(|(key, _)| key.clone()).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Key, Kept>> {
        self.families.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Key, Kept>> {
        self.families.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object that the operator writes, with its kind.
#[derive(Clone)]
struct Written {
    kind: Kind,
    object: DynamicObject,
}

impl Member for Written {
    fn place(&self) -> Option<(Key, String)> {
        Some((key_of(&self.object)?, self.object.name_any()))
    }

    fn enter(self, family: &mut Kept) -> bool {
        let Some(object) = Stored::of(&self.object) else { return false };
        let place = (self.kind, self.object.name_any());
        // A watch may be behind what a write answered.
        let news = family.objects.get(&place).is_none_or(|known| !known.is_as_new_as(&object));
        if news {
            family.objects.insert(place, Arc::new(object));
        }
        news
    }

    fn leave(kind: Option<Kind>, name: &str, family: &mut Kept) {
        if let Some(kind) = kind {
            family.objects.remove(&(kind, name.to_owned()));
        }
    }
}

impl Member for Pod {
    fn place(&self) -> Option<(Key, String)> {
        Some((key_of(self)?, self.name_any()))
    }

    fn enter(self, family: &mut Kept) -> bool {
        let pod = Arc::new(seen::pod(&self));
        let before = family.pods.insert(self.name_any(), Arc::clone(&pod));
        // Most of what a kubelet writes down about a start says nothing new to anybody here.
        before != Some(pod)
    }

    fn leave(_: Option<Kind>, name: &str, family: &mut Kept) {
        family.pods.remove(name);
    }
}

/// The GPUs of a node whose label tells their memory.
fn gpus(node: &Node) -> Option<Gpus> {
    let memory = node.labels().get("nvidia.com/gpu.memory")?.parse().ok()?;
    let count = node.status.as_ref()?.allocatable.as_ref()?.get("nvidia.com/gpu")?.0.parse().ok()?;
    Some(Gpus { count, memory, labels: node.labels().clone() })
}

/// What an event of a watch came to. One that broke comes to nothing: it lists anew.
pub(crate) fn taken<T, P: Clone + Eq + Hash>(
    what: &str,
    relist: &mut Relist<P>,
    event: watcher::Result<Event<T>>,
    place: impl Fn(&T) -> Option<P>,
) -> Change<T, P> {
    match event {
        Ok(event) => relist.take(event, place),
        // What a quiet watch last heard of is forgotten by the API server in the end. No news.
        Err(watcher::Error::WatchError(status)) if status.code == 410 => {
            tracing::debug!(kind = what, "a watch lists anew");
            Change::Nothing
        }
        Err(error) => {
            tracing::warn!(%error, kind = what, "a watch broke; it starts anew");
            Change::Nothing
        }
    }
}

/// Says that a first list is whole; nobody waits after that.
pub(crate) fn tell_once(listed: &mut Option<oneshot::Sender<()>>, whole: bool) {
    if whole {
        listed.take().map(|listed| listed.send(()));
    }
}

/// The deployment that an object belongs to, by its label.
fn key_of(object: &impl ResourceExt) -> Option<Key> {
    let name = object.labels().get(labels::NAME)?.clone();
    Some(Key { namespace: object.namespace()?, name })
}

fn map_event<A, B>(event: Event<A>, map: impl Fn(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(map(object)),
        Event::Delete(object) => Event::Delete(map(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(map(object)),
        Event::InitDone => Event::InitDone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, reason: &str, pod: &str, message: &str, second: i64) -> CoreEvent {
        let time = k8s_openapi::jiff::Timestamp::from_second(second).unwrap();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "n"}, "reason": reason, "message": message, "lastTimestamp": time.to_string(),
            "involvedObject": {"kind": "Pod", "name": pod, "namespace": "n"},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn an_object_of_a_list_is_known_as_if_it_had_been_written() {
        let cache = Arc::new(Cache::new(mpsc::channel(1).0, Vec::new()));
        let key = Key { namespace: "n".into(), name: "d".into() };
        let metadata =
            serde_json::json!({"name": "s", "namespace": "n", "labels": {labels::NAME: "d"}, "uid": "u", "resourceVersion": "1"});
        let wanted = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": []}});
        let mut listed: DynamicObject = serde_json::from_value(wanted.clone()).unwrap();
        listed.types = None;
        let events = futures_util::stream::iter([Event::Init, Event::InitApply(listed), Event::InitDone].map(Ok));
        Arc::clone(&cache).follow_objects(Kind::Service, events, None).await;
        let family = cache.family(&key);
        let found = family.objects.get(&(Kind::Service, "s".to_owned())).unwrap();
        assert!(m1_operator_plan::holds(&serde_json::to_value(found.object().unwrap()).unwrap(), &wanted));
    }

    #[tokio::test]
    async fn memory_is_that_of_nodes_with_enough_gpus() {
        let cache = Arc::new(Cache::new(mpsc::channel(1).0, Vec::new()));
        let node = |name: &str, memory: &str, count: &str| -> Node {
            let metadata = serde_json::json!({"name": name, "labels": {"nvidia.com/gpu.memory": memory, "pool": "a"}});
            let status = serde_json::json!({"allocatable": {"nvidia.com/gpu": count}});
            serde_json::from_value(serde_json::json!({"metadata": metadata, "status": status})).unwrap()
        };
        let nodes = [node("large", "81920", "8"), node("small", "16384", "1")];
        Arc::clone(&cache).follow_nodes(futures_util::stream::iter(nodes.map(|node| Ok(Event::Apply(node)))), None).await;
        let of = |count, pool: &str| cache.gpu_memory(&BTreeMap::from([("pool".to_owned(), pool.to_owned())]), count);
        assert_eq!((of(8, "a"), of(1, "a"), of(1, "b")), (Some(Bytes(80 << 30)), Some(Bytes(16 << 30)), None));
        tokio::time::timeout(std::time::Duration::from_secs(5), cache.gpus_changed()).await.expect("somebody is told");
    }

    #[tokio::test]
    async fn a_deployment_is_looked_at_when_a_warning_says_something_new() {
        let (changes, mut changed) = mpsc::channel(9);
        let cache = Arc::new(Cache::new(changes, Vec::new()));
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "labels": {labels::NAME: "d"}}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Arc::clone(&cache).follow_pods(futures_util::stream::iter([Ok(Event::Apply(pod))]), None).await;
        cache.listed();
        let events = [
            Event::Apply(event("a", "FailedMount", "p", "no Secret", 1)),
            Event::Apply(event("a", "FailedMount", "p", "no Secret", 2)),
            Event::Apply(event("b", "FailedMount", "of nobody", "no Secret", 3)),
            Event::Apply(event("c", "FailedMount", "p", "no volume", 4)),
        ];
        Arc::clone(&cache).follow_warnings(futures_util::stream::iter(events.map(Ok))).await;
        let told: Vec<String> = std::iter::from_fn(|| changed.try_recv().ok()).map(|key| key.name).collect();
        assert_eq!(told, ["d", "d"]);
    }
}
