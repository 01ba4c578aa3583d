//! What the operator knows of the cluster: the objects it writes and their pods, by deployment, and the nodes. Fed by watches
//! that list again whenever a stream breaks; every change names the deployments to look at. What is known lies here as JSON text and is
//! read when its deployment is looked at (`stored`).

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event as CoreEvent, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DynamicObject, TypeMeta};
use kube::runtime::watcher::{self, Event};
use m1_arch::Bytes;
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::{Kind, NodeSeen};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::placement_spec;
use crate::relist::{Change, Relist};
use crate::seen;

mod stored;

use stored::{Kept, Stored};

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
    pub fn of(deployment: &MiniMaxM1Deployment) -> Self {
        Self { namespace: deployment.namespace().unwrap_or_default(), name: deployment.name_any() }
    }
}

/// What belongs to one deployment.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// Objects that the operator writes.
    pub objects: BTreeMap<(Kind, String), Arc<DynamicObject>>,
    /// Worker and router pods by name.
    pub pods: BTreeMap<String, Arc<Pod>>,
}

impl Family {
    /// Its pods of one component: workers or routers.
    pub fn component<'a>(&'a self, component: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.values().filter(move |pod| pod.labels().get(labels::APP_COMPONENT).is_some_and(|found| found == component))
    }

    /// Its objects of one kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&String, &Arc<DynamicObject>)> {
        self.objects.iter().filter(move |((found, _), _)| *found == kind).map(|((_, name), object)| (name, object))
    }
}

/// What is known.
#[derive(Debug)]
pub struct Cache {
    families: RwLock<HashMap<Key, Kept>>,
    nodes: RwLock<HashMap<String, NodeSeen>>,
    gpus: RwLock<BTreeMap<String, Gpus>>,
    warnings: RwLock<HashMap<Subject, BTreeMap<String, Warning>>>,
    served: Vec<Kind>,
    /// Whether everything was listed once. Before that nobody takes changes, and all deployments are looked at afterwards anyway.
    live: AtomicBool,
    changes: mpsc::Sender<Key>,
}

/// A node with GPUs: their memory in MiB, and its labels.
type Gpus = (u64, BTreeMap<String, String>);

/// What an event is about: namespace, kind and name.
type Subject = (String, String, String);

/// A warning among the cluster's events: when it was said last, and its words.
pub type Warning = (Option<Timestamp>, String);

/// The warnings that tell why pods are missing or do not start, by kind of their subject.
const TELLING: [(&str, &[&str]); 2] = [("StatefulSet", &["FailedCreate"]), ("Pod", &["FailedMount", "FailedAttachVolume"])];

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
            warnings: RwLock::default(),
            served,
            live: AtomicBool::new(false),
            changes,
        }
    }

    /// Whether the cluster has a kind.
    pub fn is_served(&self, kind: Kind) -> bool {
        self.served.contains(&kind)
    }

    /// The least memory of a GPU that the label of a node tells, among those with these labels; none where none of them has GPUs.
    pub fn gpu_memory(&self, selector: &BTreeMap<String, String>) -> Option<Bytes> {
        let nodes = self.gpus.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = |labels: &BTreeMap<String, String>| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        nodes.values().filter(|(_, labels)| chosen(labels)).map(|(mebibytes, _)| Bytes(mebibytes << 20)).min()
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
        let specs = placements.filter_map(|(_, stored)| placement_spec(stored.read::<DynamicObject>()?.as_ref()));
        specs.map(|spec| spec.lease_transitions).max().unwrap_or(0)
    }

    /// What belongs to a deployment.
    pub fn family(&self, key: &Key) -> Family {
        let kept = self.read().get(key).cloned();
        kept.map(|kept| kept.read()).unwrap_or_default()
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
        self.follow(None, events.map_ok(|event| event.modify(seen::strip)), listed).await;
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
                    self.note_gpus(&name, gpu_memory(&node).map(|memory| (memory, node.labels().clone())));
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
            match taken("Event", &mut relist, event, |event: &CoreEvent| Some((subject(event)?, event.name_any()))) {
                Change::Nothing => {}
                Change::Is((subject, name), event) => {
                    let warning = (event.last_timestamp.map(|time| time.0), event.message.unwrap_or_default());
                    if self.set_warning(&subject, name, warning) {
                        for key in self.with(&subject) {
                            self.tell(key).await;
                        }
                    }
                }
                Change::Gone { gone, .. } => gone.into_iter().for_each(|(subject, name)| self.drop_warning(&subject, &name)),
            }
        }
    }

    /// True where it says something new: the cluster counts what it repeats.
    fn set_warning(&self, subject: &Subject, name: String, warning: Warning) -> bool {
        let mut warnings = self.warnings.write().unwrap_or_else(PoisonError::into_inner);
        let known = warnings.entry(subject.clone()).or_default();
        let before = newest(known).map(|(_, words)| words.clone());
        known.insert(name, warning);
        newest(known).map(|(_, words)| words) != before.as_ref()
    }

    fn drop_warning(&self, subject: &Subject, name: &str) {
        let mut warnings = self.warnings.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = warnings.get_mut(subject) else { return };
        known.remove(name);
        if known.is_empty() {
            warnings.remove(subject);
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
        let warnings = self.warnings.read().unwrap_or_else(PoisonError::into_inner);
        let known = warnings.get(&(key.namespace.clone(), kind.to_owned(), name.to_owned()))?;
        newest(known).cloned()
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
        match gpus {
            Some(gpus) => nodes.insert(node.to_owned(), gpus),
            None => nodes.remove(node),
        };
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
        let on = |pod: &Stored| pod.node().is_some_and(|node| names.iter().any(|name| name == node));
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
            family.objects.insert(place, object);
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
        let Some(pod) = Stored::of(&self) else { return false };
        let node = self.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        family.pods.insert(self.name_any(), pod.on(node));
        true
    }

    fn leave(_: Option<Kind>, name: &str, family: &mut Kept) {
        family.pods.remove(name);
    }
}

/// The memory of a node's GPUs in MiB, where its label tells.
fn gpu_memory(node: &Node) -> Option<u64> {
    node.labels().get("nvidia.com/gpu.memory")?.parse().ok()
}

/// The newest of some warnings.
fn newest(warnings: &BTreeMap<String, Warning>) -> Option<&Warning> {
    warnings.values().max_by_key(|(time, _)| *time)
}

/// What a telling warning is about; none of other events.
fn subject(event: &CoreEvent) -> Option<Subject> {
    let about = &event.involved_object;
    let (kind, reason) = (about.kind.as_deref()?, event.reason.as_deref()?);
    let telling = TELLING.iter().any(|(known, reasons)| *known == kind && reasons.contains(&reason));
    telling.then(|| Some((event.namespace()?, kind.to_owned(), about.name.clone()?)))?
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
fn tell_once(listed: &mut Option<oneshot::Sender<()>>, whole: bool) {
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
        let time = Timestamp::from_second(second).unwrap();
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
        assert!(m1_operator_plan::holds(&serde_json::to_value(found.as_ref()).unwrap(), &wanted));
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

    #[tokio::test]
    async fn the_newest_warning_that_tells_is_known() {
        let cache = Arc::new(Cache::new(mpsc::channel(1).0, Vec::new()));
        let key = Key { namespace: "n".into(), name: "d".into() };
        let told = |cache: &Cache| cache.warning(&key, "Pod", "p").map(|(_, words)| words);
        let events = [
            Event::Init,
            Event::InitApply(event("b", "FailedMount", "p", "newer", 2)),
            Event::InitApply(event("a", "FailedMount", "p", "older", 1)),
            Event::InitApply(event("c", "Unhealthy", "p", "tells nothing", 3)),
            Event::InitApply(event("d", "FailedMount", "q", "of another", 4)),
            Event::InitDone,
        ];
        Arc::clone(&cache).follow_warnings(futures_util::stream::iter(events.map(Ok))).await;
        assert_eq!(told(&cache).as_deref(), Some("newer"));
        assert_eq!(cache.warning(&key, "StatefulSet", "p"), None);
        let both = [Event::Delete(event("b", "FailedMount", "p", "", 2)), Event::Delete(event("a", "FailedMount", "p", "", 1))];
        Arc::clone(&cache).follow_warnings(futures_util::stream::iter(both.map(Ok))).await;
        assert_eq!(told(&cache), None);
        assert_eq!(cache.warnings.read().unwrap().len(), 1, "what is gone takes no room");
    }
}
