//! What is, of one deployment: cache, workers' words and the cluster's events -> [`Observed`]. Asks the API server nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::render::{GroupRef, ROUTER, WORKER};
use m1_operator_plan::{ContainerSeen, GroupSeen, Kind, Observed, PlacementSeen, PodSeen, RouterSeen, container_trouble};

use crate::cache::{Cache, Family, Key};
use crate::cluster::{owner_uid, placement_spec};
use crate::seen::{self, KnownPod, group_of};
use crate::workers::Workers;

/// Of what is younger than this, the cluster's warnings say nothing that would last.
const PATIENCE: Duration = Duration::from_secs(3);
/// A kubelet that still fails to mount says so again within two minutes: what is older is over.
const MOUNTS: Duration = Duration::from_secs(200);
/// A scheduler that has not looked at a pod by then is not there.
const UNCLAIMED: Duration = Duration::from_secs(30);
/// A pod that is there this long after it should be gone is held by something.
const LATE: Duration = Duration::from_secs(30);

/// Everything about one deployment.
pub struct Look {
    /// What the planner sees.
    pub observed: Observed,
    /// When time alone will show something else.
    pub look_again: Option<Duration>,
    /// All that belongs to it, as it was seen.
    pub family: Family,
}

/// Looks at a deployment.
pub fn look(cache: &Cache, workers: &Workers, deployment: &MiniMaxM1Deployment, key: &Key) -> Look {
    let now = Timestamp::now();
    let family = cache.family(key);
    let uid = deployment.uid().unwrap_or_default();
    let mut groups = groups(&family, workers, cache, (key, &uid), now);
    let waits = wait_too_long(&family, &mut groups, now);
    let mut warnings = Warnings { cache, key, now, look_again: None };
    warnings.explain(&mut groups);
    let routers: Vec<PodSeen> = family.component(ROUTER).filter(|pod| !pod.ended).map(|pod| on_node(pod, cache)).collect();
    let trouble = routers.iter().find_map(|pod| router_trouble(pod, || warnings.about("Pod", &pod.name, pod.created)));
    let resumed = deployment.annotations().get(labels::RESUMED_AT).and_then(|time| time.parse().ok());
    // A time that is yet to come would forgive all until then.
    let resumed = resumed.filter(|resumed: &Timestamp| *resumed <= now);
    let observed = Observed {
        generation: deployment.metadata.generation.unwrap_or_default(),
        status: deployment.status.clone().unwrap_or_default(),
        restarted_at: deployment.annotations().get(labels::RESTARTED_AT).cloned(),
        resumed_at: resumed,
        groups,
        router: RouterSeen { pods: routers, ..router(&family, trouble) },
        certificates: None,
        pace: workers.pace(key, now),
        outage: cache.outage(),
        now,
    };
    Look { observed, look_again: warnings.look_again.into_iter().chain(waits).min(), family }
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
        let Some((name, labelled)) = group_of(&pod.seen.name).zip(pod.group.as_ref()) else { continue };
        let orphaned = || GroupSeen { deleting: true, orphaned: true, ..empty(name, labelled, now) };
        let group = groups.entry(name.to_owned()).or_insert_with(orphaned);
        let (worker, stranger) = workers.seen(key, &pod.seen.name, &pod.uid);
        group.pods.push(PodSeen { worker, stranger, ..on_node(pod, cache) });
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

/// A pod, with what is known of its node.
fn on_node(pod: &KnownPod, cache: &Cache) -> PodSeen {
    let node = pod.seen.node.as_ref().and_then(|node| cache.node(&node.name));
    PodSeen { node, ..pod.seen.clone() }
}

fn group(name: &str, object: &DynamicObject) -> Option<GroupSeen> {
    let labelled = seen::group(object.labels())?;
    let replicas = object.data.pointer("/spec/replicas").and_then(serde_json::Value::as_u64).unwrap_or(1);
    let created = object.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let deleting = object.metadata.deletion_timestamp.is_some();
    Some(GroupSeen { replicas: replicas as u32, deleting, ..empty(name, &labelled, created) })
}

/// A group that labels speak of, without anything in it.
fn empty(name: &str, group: &GroupRef, created: Timestamp) -> GroupSeen {
    GroupSeen {
        name: name.to_owned(),
        index: group.index,
        revision: group.revision.clone(),
        size: group.size,
        replicas: group.size,
        created,
        deleting: false,
        orphaned: false,
        refusal: None,
        placement: None,
        pods: Vec::new(),
    }
}

fn placement(object: &DynamicObject) -> Option<PlacementSeen> {
    Some(PlacementSeen {
        spec: placement_spec(object)?,
        status: object.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok()).unwrap_or_default(),
        resource_version: object.resource_version()?,
        closed_since: object.annotations().get(labels::CLOSED_SINCE).and_then(|time| time.parse().ok()),
    })
}

fn router(family: &Family, trouble: Option<String>) -> RouterSeen {
    let deployment = family.of_kind(Kind::Deployment).next().map(|(_, object)| object);
    let number = |path: &str| deployment.and_then(|object| object.data.pointer(path)?.as_u64()).unwrap_or(0);
    let wanted = number("/spec/replicas");
    let seen = deployment.and_then(|object| object.metadata.generation) == Some(number("/status/observedGeneration") as i64);
    let pods @ [_, _, available] = ["/status/replicas", "/status/updatedReplicas", "/status/availableReplicas"].map(number);
    let left_by = family.component(ROUTER).filter_map(|pod| pod.leaves_by).max();
    // A Deployment does not count those on their way out, and pods may be known later than it is.
    let staying = family.component(ROUTER).filter(|pod| !pod.seen.deleting && !pod.ended).count() as u64;
    let settled = seen && pods == [wanted; 3] && staying == wanted;
    let certified = deployment.is_some_and(is_certified);
    let missing = || Some("their Deployment is not there".to_owned());
    let trouble = trouble.or_else(|| deployment.map_or_else(missing, refused_pods));
    let has_service = family.objects.keys().any(|(kind, name)| *kind == Kind::Service && name.ends_with("-router"));
    RouterSeen { available: available as u32, settled, left_by, certified, has_service, trouble, ..RouterSeen::default() }
}

/// Why the cluster makes no pods of a Deployment, in its words.
fn refused_pods(deployment: &DynamicObject) -> Option<String> {
    let conditions = deployment.data.pointer("/status/conditions")?.as_array()?;
    let failure = conditions.iter().find(|condition| condition["type"] == "ReplicaFailure" && condition["status"] == "True")?;
    Some(format!("its pods are refused by the cluster: {}", failure["message"].as_str().unwrap_or_default()))
}

/// Whether a router Deployment starts no pod without the members' certificate.
fn is_certified(deployment: &DynamicObject) -> bool {
    let volumes = deployment.data.pointer("/spec/template/spec/volumes").and_then(|volumes| volumes.as_array());
    let tls = volumes.and_then(|volumes| volumes.iter().find(|volume| volume["name"] == "tls"));
    tls.is_some_and(|volume| volume["secret"]["optional"] != true)
}

/// Notes pods that no scheduler takes up, and pods that do not end. Returns when the next will have waited too long.
fn wait_too_long(family: &Family, groups: &mut [GroupSeen], now: Timestamp) -> Option<Duration> {
    let mut next = None;
    // How long it takes until something that began then has taken `limit`; none where it has.
    let mut left = |then: Timestamp, limit: Duration| {
        let until = Duration::try_from((then + limit).duration_since(now)).ok().filter(|left| !left.is_zero());
        next = next.into_iter().chain(until).min();
        until
    };
    for pod in groups.iter_mut().flat_map(|group| &mut group.pods) {
        let Some(known) = family.pods.get(&pod.name) else { continue };
        if let Some(gone_by) = known.leaves_by {
            pod.overdue = left(gone_by, LATE).is_none().then_some(gone_by);
        } else if let (Some(scheduler), Some(created)) = (&known.unclaimed, pod.created) {
            pod.unclaimed = left(created, UNCLAIMED).is_none().then(|| scheduler.clone());
        }
    }
    next
}

/// Why a router does not come up; `warning` is the cluster's about it.
fn router_trouble(pod: &PodSeen, warning: impl FnOnce() -> Option<String>) -> Option<String> {
    let name = &pod.name;
    if let Some(words) = &pod.unschedulable {
        return Some(format!("pod {name} finds no node: {words}"));
    }
    if waits_for_volumes(pod) {
        return warning().map(|words| format!("pod {name}: {words}"));
    }
    if let Some(trouble) = container_trouble(pod) {
        return Some(trouble.message);
    }
    match &pod.container {
        ContainerSeen::Waiting { reason, message } if !matches!(reason.as_str(), "ContainerCreating" | "PodInitializing") => {
            Some(format!("pod {name}: {reason}: {message}"))
        }
        _ => None,
    }
}

/// What the cluster's warnings say of one deployment. One that comes makes its deployment be looked at.
struct Warnings<'a> {
    cache: &'a Cache,
    key: &'a Key,
    now: Timestamp,
    look_again: Option<Duration>,
}

impl Warnings<'_> {
    /// The newest about an object that is old enough, and not over.
    fn about(&mut self, kind: &str, name: &str, created: Option<Timestamp>) -> Option<String> {
        self.about_since(kind, name, created, None)
    }

    /// The same, of what was said not before `since`.
    fn about_since(&mut self, kind: &str, name: &str, created: Option<Timestamp>, since: Option<Timestamp>) -> Option<String> {
        let (said, words) = self.cache.warning(self.key, kind, name)?;
        if said.zip(since).is_some_and(|(said, since)| said < since) {
            return None;
        }
        let young = too_young(created, self.now);
        let counts = match (kind, said) {
            ("Pod", Some(said)) => Duration::try_from((said + MOUNTS).duration_since(self.now)).unwrap_or_default(),
            _ => Duration::MAX,
        };
        let over = Some(counts).filter(|left| *left < Duration::MAX && !left.is_zero());
        self.look_again = self.look_again.into_iter().chain(young).chain(over).min();
        (young.is_none() && !counts.is_zero()).then_some(words)
    }

    /// Finds out why pods are missing or do not start.
    fn explain(&mut self, groups: &mut [GroupSeen]) {
        for group in groups.iter_mut().filter(|group| !group.deleting && !group.is_ready()) {
            if (group.pods.len() as u32) < group.replicas {
                // What was refused before the newest pod was made is over.
                let newest = group.pods.iter().filter_map(|pod| pod.created).max();
                group.refusal = self.about_since("StatefulSet", &group.name, Some(group.created), newest);
            }
            // The pods of a group share their volumes: one tells for all.
            if let Some(pod) = group.pods.iter_mut().find(|pod| waits_for_volumes(pod)) {
                pod.volumes = self.about("Pod", &pod.name, pod.created);
            }
        }
    }
}

fn waits_for_volumes(pod: &PodSeen) -> bool {
    let creating = match &pod.container {
        ContainerSeen::Unknown => true,
        ContainerSeen::Waiting { reason, .. } => reason == "ContainerCreating",
        ContainerSeen::Running | ContainerSeen::Ended => false,
    };
    creating && pod.node.is_some() && !pod.deleting
}

/// How long it takes yet until warnings about something count; none where they do.
fn too_young(created: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    // A clock that went back makes nothing younger.
    let age = created.map_or(Duration::ZERO, |created| Duration::try_from(now.duration_since(created)).unwrap_or_default());
    Some(PATIENCE.saturating_sub(age)).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A router Deployment that is as it should be, and its pods.
    fn family(volume: Value, pods: &[Value]) -> Family {
        let deployment = json!({
            "metadata": {"name": "m1-router", "generation": 2},
            "spec": {"replicas": 1, "template": {"spec": {"volumes": [volume]}}},
            "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
        });
        Family::of(&[(Kind::Deployment, deployment)], pods)
    }

    fn pod(more: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "r", "labels": {labels::APP_COMPONENT: ROUTER}}});
        pod["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod
    }

    #[test]
    fn routers_are_settled_once_those_before_have_gone() {
        let tls = |optional: Value| json!({"name": "tls", "secret": {"secretName": "s", "optional": optional}});
        let stays = || pod(json!({}));
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let alone = router(&family(tls(json!(false)), &[stays()]), None);
        assert!(alone.settled && alone.certified && alone.have_certificate(now));
        let late = router(&family(tls(Value::Null), &[stays(), stays()]), None);
        assert!(!late.settled, "the old one is not known to go yet");
        let leaving = pod(json!({"deletionTimestamp": "2026-01-01T00:00:30Z"}));
        let leaves = router(&family(tls(Value::Null), &[stays(), leaving]), None);
        assert!(leaves.settled && !leaves.have_certificate(now));
        let mut evicted = stays();
        evicted["status"] = json!({"phase": "Failed", "reason": "Evicted"});
        assert!(router(&family(tls(Value::Null), &[stays(), evicted]), None).settled, "it only lies there");
        assert!(!router(&family(tls(json!(true)), &[stays()]), None).certified);
        assert!(!router(&family(json!({"name": "keys"}), &[stays()]), None).certified);
    }

    #[test]
    fn a_router_says_why_it_does_not_come_up() {
        let told = |status: Value| {
            let pod = pod(json!({}));
            let pod = json!({"metadata": pod["metadata"], "spec": {"nodeName": "n", "containers": []}, "status": status});
            router_trouble(&seen::pod(&serde_json::from_value(pod).unwrap()).seen, || Some("no Secret".to_owned()))
        };
        let waiting = |reason: &str| {
            json!({"containerStatuses": [{"name": "router", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": "words"}}}]})
        };
        assert_eq!(told(waiting("ErrImagePull")).as_deref(), Some("pod r: ErrImagePull: words"));
        assert_eq!(told(waiting("ContainerCreating")).as_deref(), Some("pod r: no Secret"));
        let mut ended = waiting("CrashLoopBackOff");
        ended["containerStatuses"][0]["lastState"] =
            json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "no tokenizer"}});
        assert_eq!(told(ended).as_deref(), Some("pod r: ended with exit code 1: no tokenizer"));
        let refused = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]});
        assert_eq!(told(refused).as_deref(), Some("pod r finds no node: 0/2 nodes"));
    }

    #[test]
    fn a_router_that_is_refused_says_why() {
        let condition = json!({"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"});
        let deployment = json!({"metadata": {"name": "m1-router"}, "spec": {}, "status": {"conditions": [condition]}});
        let seen = router(&Family::of(&[(Kind::Deployment, deployment)], &[]), None);
        assert_eq!(seen.trouble.as_deref(), Some("its pods are refused by the cluster: exceeded quota: pods"));
    }

    #[test]
    fn warnings_count_after_a_while() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(too_young(Some(at(10)), at(11)), Some(Duration::from_secs(2)));
        assert_eq!(too_young(Some(at(10)), at(13)), None);
        assert_eq!(too_young(None, at(13)), Some(PATIENCE), "nobody knows how old it is");
    }
}
