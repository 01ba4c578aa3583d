//! What is, of one deployment: cache, workers' words and the cluster's events -> [`Observed`]. Asks the API server nothing.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::render::{ROUTER, WORKER};
use m1_operator_plan::{ContainerSeen, GroupSeen, Kind, NodeSeen, Observed, PlacementSeen, PodSeen, Revision, RouterSeen};

use crate::cache::{Cache, Family, Key};
use crate::cluster::{owner_uid, placement_spec};
use crate::seen;
use crate::workers::Workers;

/// Of a pod that is younger than this, events say nothing that would last.
const PATIENCE_SECONDS: i64 = 3;

/// Everything about one deployment, and whether something is waited for whose end no watch tells.
pub struct Look {
    /// What the planner sees.
    pub observed: Observed,
    /// Pods wait for volumes or are refused: their events are worth another look.
    pub waits: bool,
    /// All that belongs to it, as it was seen.
    pub family: Family,
}

/// Looks at a deployment.
pub fn look(cache: &Cache, workers: &Workers, deployment: &MiniMaxM1Deployment, key: &Key) -> Look {
    let now = Timestamp::now();
    let family = cache.family(key);
    let uid = deployment.uid().unwrap_or_default();
    let mut groups = groups(&family, workers, cache, (key, &uid), now);
    let routers = family.component(ROUTER).any(|pod| waits_for_volumes(&router_pod(pod)));
    let waits = explain(cache, key, &mut groups, now) || routers;
    let resumed = deployment.annotations().get(labels::RESUMED_AT).and_then(|time| time.parse().ok());
    let observed = Observed {
        generation: deployment.metadata.generation.unwrap_or_default(),
        status: deployment.status.clone().unwrap_or_default(),
        resumed_at: resumed,
        groups,
        router: router(&family, |pod| cache.warning(key, "Pod", pod)),
        certificates: None,
        pace: workers.pace(key, now),
        now,
    };
    Look { observed, waits, family }
}

/// Groups by name: of StatefulSets, and of pods whose StatefulSet is gone already, because they still hold their nodes.
/// What a former deployment of the same name left is on its way out.
fn groups(family: &Family, workers: &Workers, cache: &Cache, (key, uid): (&Key, &str), now: Timestamp) -> Vec<GroupSeen> {
    let mut groups: BTreeMap<String, GroupSeen> = BTreeMap::new();
    for (name, object) in family.of_kind(Kind::StatefulSet) {
        let former = owner_uid(object) != Some(uid);
        let group = group(name, object).map(|group| GroupSeen { deleting: group.deleting || former, ..group });
        groups.extend(group.map(|group| (name.clone(), group)));
    }
    for pod in family.component(WORKER) {
        let Some((name, labelled)) = of_labels(&pod.name_any(), pod.labels()) else { continue };
        let group = groups.entry(name).or_insert_with(|| GroupSeen { deleting: true, created: now, ..labelled });
        let mut seen = seen::pod(pod);
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        seen.node = node.and_then(|node| cache.node(node));
        seen.worker = workers.seen(key, &seen.name, pod.uid().as_deref());
        group.pods.push(seen);
    }
    for (name, object) in family.of_kind(Kind::ExpertPlacement).filter(|(_, object)| owner_uid(object) == Some(uid)) {
        if let Some(group) = groups.get_mut(name) {
            group.placement = placement(object);
        }
    }
    let mut groups: Vec<GroupSeen> = groups.into_values().collect();
    for group in &mut groups {
        group.pods.sort_by_key(|pod| pod.index);
    }
    groups.sort_by(|a, b| (a.index, a.created, &a.name).cmp(&(b.index, b.created, &b.name)));
    groups
}

fn group(name: &str, object: &DynamicObject) -> Option<GroupSeen> {
    let (_, group) = of_labels(&format!("{name}-0"), object.labels())?;
    let replicas = object.data.pointer("/spec/replicas").and_then(serde_json::Value::as_u64).unwrap_or(1);
    Some(GroupSeen {
        name: name.to_owned(),
        replicas: replicas as u32,
        created: object.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        deleting: object.metadata.deletion_timestamp.is_some(),
        ..group
    })
}

/// The group that labels speak of, and its name: a pod's without its index.
fn of_labels(pod: &str, given: &BTreeMap<String, String>) -> Option<(String, GroupSeen)> {
    let number = |key: &str| given.get(key).and_then(|text| text.parse::<u32>().ok());
    let name = pod.rsplit_once('-')?.0.to_owned();
    let size = number(labels::SIZE)?;
    let group = GroupSeen {
        name: name.clone(),
        index: number(labels::GROUP_INDEX)?,
        revision: Revision::from_label(given.get(labels::REVISION)?),
        size,
        replicas: size,
        created: Timestamp::UNIX_EPOCH,
        deleting: false,
        refusal: None,
        placement: None,
        pods: Vec::new(),
    };
    Some((name, group))
}

fn placement(object: &DynamicObject) -> Option<PlacementSeen> {
    Some(PlacementSeen {
        spec: placement_spec(object)?,
        resource_version: object.resource_version()?,
        closed_since: object.annotations().get(labels::CLOSED_SINCE).and_then(|time| time.parse().ok()),
    })
}

/// `warning` is the cluster's newest about a pod that does not start.
fn router(family: &Family, warning: impl Fn(&str) -> Option<String>) -> RouterSeen {
    let deployment = family.of_kind(Kind::Deployment).next().map(|(_, object)| object);
    let trouble = family.component(ROUTER).find_map(|pod| router_trouble(pod, &warning));
    let number = |path: &str| deployment.and_then(|object| object.data.pointer(path)?.as_u64()).unwrap_or(0);
    let wanted = number("/spec/replicas");
    let seen = deployment.and_then(|object| object.metadata.generation) == Some(number("/status/observedGeneration") as i64);
    let pods @ [_, _, available] = ["/status/replicas", "/status/updatedReplicas", "/status/availableReplicas"].map(number);
    let leaving = family.component(ROUTER).filter_map(|pod| pod.metadata.deletion_timestamp.as_ref());
    let left_by = leaving.map(|time| time.0).max();
    // A Deployment does not count those on their way out, and pods may be known later than it is.
    let staying = family.component(ROUTER).filter(|pod| pod.metadata.deletion_timestamp.is_none()).count() as u64;
    let settled = seen && pods == [wanted; 3] && staying == wanted;
    RouterSeen { available: available as u32, settled, left_by, certified: deployment.is_some_and(|it| is_certified(it)), trouble }
}

/// Whether a router Deployment starts no pod without the members' certificate.
fn is_certified(deployment: &DynamicObject) -> bool {
    let volumes = deployment.data.pointer("/spec/template/spec/volumes").and_then(|volumes| volumes.as_array());
    let tls = volumes.and_then(|volumes| volumes.iter().find(|volume| volume["name"] == "tls"));
    tls.is_some_and(|volume| volume["secret"]["optional"] != true)
}

fn router_pod(pod: &k8s_openapi::api::core::v1::Pod) -> PodSeen {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let container = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
    let node = node.map(|name| NodeSeen { name: name.clone(), ..NodeSeen::default() });
    PodSeen { node, container: container.map(seen::container_state).unwrap_or_default(), ..seen::pod(pod) }
}

fn router_trouble(pod: &k8s_openapi::api::core::v1::Pod, warning: impl Fn(&str) -> Option<String>) -> Option<String> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    if let Some(words) = seen::unschedulable(status) {
        return Some(format!("pod {name} finds no node: {words}"));
    }
    if waits_for_volumes(&router_pod(pod)) && age(pod.creation_timestamp().map(|time| time.0), Timestamp::now()) >= PATIENCE_SECONDS
    {
        return warning(&name).map(|words| format!("pod {name}: {words}"));
    }
    let container = status.container_statuses.iter().flatten().next()?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone().unwrap_or_default();
    if matches!(reason.as_str(), "ContainerCreating" | "PodInitializing") {
        return None;
    }
    Some(format!("pod {name}: {reason}: {}", waiting.message.clone().unwrap_or_default()))
}

/// Looks in the cluster's events why pods are missing or do not start. True where one is waited for.
fn explain(cache: &Cache, key: &Key, groups: &mut [GroupSeen], now: Timestamp) -> bool {
    let mut waits = false;
    for group in groups.iter_mut().filter(|group| !group.deleting && !group.is_ready()) {
        let missing = (group.pods.len() as u32) < group.replicas;
        if missing {
            waits = true;
            if age(Some(group.created), now) >= PATIENCE_SECONDS {
                group.refusal = cache.warning(key, "StatefulSet", &group.name);
            }
        }
        // The pods of a group share their volumes: one tells for all.
        if let Some(pod) = group.pods.iter_mut().find(|pod| waits_for_volumes(pod)) {
            waits = true;
            if age(pod.created, now) >= PATIENCE_SECONDS {
                pod.volumes = cache.warning(key, "Pod", &pod.name);
            }
        }
    }
    waits
}

fn waits_for_volumes(pod: &PodSeen) -> bool {
    let creating = match &pod.container {
        ContainerSeen::Unknown => true,
        ContainerSeen::Waiting { reason, .. } => reason == "ContainerCreating",
        ContainerSeen::Running | ContainerSeen::Ended => false,
    };
    creating && pod.node.is_some() && !pod.deleting
}

fn age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    since.map_or(0, |since| now.duration_since(since).as_secs())
}
