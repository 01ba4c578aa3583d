//! From a plan to the objects of a cluster. Decides nothing: the same input gives the same objects, and nothing here fails.
//!
//! A replica group is one StatefulSet per revision, a headless Service for its pods' names and a budget that keeps it whole;
//! the router is a Deployment behind a Service. Ports are fixed, so that policies, probes and documents agree.

mod access;
mod budget;
mod gang;
mod members;
mod network;
mod overrides;
mod placement;
mod pod;
mod router;
mod worker;

use m1_operator_api::{GROUP, VERSION, labels};
use serde_json::{Map, Value, json};

use crate::{Checked, Kind, Object, Plan, Revision};

pub use members::{CERTIFICATE_HOURS, RENEW_HOURS, name as members_name};
pub use overrides::check_pod_template;
pub use placement::{first as first_placement, object as placement_object};
pub use router::{endpoint, leader_selector};
pub use worker::pod_address;

/// gRPC of a worker: requests, dispatch between pods, placements.
pub const WORKER_PORT: u16 = 9000;
/// Probes and metrics of a worker.
pub const ADMIN_PORT: u16 = 9090;
/// HTTP of a router.
pub const ROUTER_PORT: u16 = 8000;
/// Whom processes run as: no account of any node.
const USER: u32 = 65532;

/// What a deployment's objects are rendered from.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// The checked spec.
    pub checked: &'a Checked,
    /// Its plan.
    pub plan: &'a Plan,
    /// Namespace of the deployment.
    pub namespace: &'a str,
    /// Uid of the deployment, for owner references.
    pub uid: &'a str,
    /// Images as resolved.
    pub images: &'a Images,
    /// Namespace of the operator, which may talk to workers.
    pub operator_namespace: &'a str,
    /// Version of the operator that renders.
    pub version: &'a str,
}

/// Images as resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Of workers.
    pub worker: String,
    /// Of routers.
    pub router: String,
}

/// One group in one revision, as its objects are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRef {
    /// Index.
    pub index: u32,
    /// Revision.
    pub revision: Revision,
    /// Pods.
    pub size: u32,
}

impl Scene<'_> {
    /// The objects that a deployment has once, whatever its groups.
    pub fn shared(&self) -> Vec<Object> {
        let mut objects = access::objects(self);
        objects.extend(network::policies(self));
        objects.extend(router::objects(self));
        objects.extend(budget::router(self));
        objects.extend(network::pod_monitor(self));
        objects.extend(members::certificate(self));
        objects
    }

    /// The objects of a group that do not depend on the revision's spec: they may be applied to a group of an older one.
    /// `open` lets its pods be evicted.
    pub fn around(&self, group: &GroupRef, open: bool) -> Vec<Object> {
        vec![worker::service(self, group), budget::group(self, group, open)]
    }

    /// The StatefulSet of a group of the present revision, with `replicas` pods (0 or all), and what gangs it.
    pub fn group(&self, group: &GroupRef, replicas: u32) -> Vec<Object> {
        let mut objects: Vec<Object> = gang::pod_group(self, group).into_iter().collect();
        objects.extend(worker::stateful_set(self, group, replicas));
        objects
    }

    /// Name of a group's objects.
    pub fn group_name(&self, group: &GroupRef) -> String {
        self.checked.name.revised_group(group.index, group.revision.as_str())
    }

    fn object(&self, kind: Kind, name: &str, component: &str, body: Value) -> Object {
        let mut labels = self.labels();
        labels.insert(labels::APP_COMPONENT.to_owned(), json!(component));
        self.labelled(kind, name, labels, body)
    }

    fn group_object(&self, kind: Kind, group: &GroupRef, body: Value) -> Object {
        self.labelled(kind, &self.group_name(group), self.group_labels(group), body)
    }

    fn labelled(&self, kind: Kind, name: &str, labels: Map<String, Value>, body: Value) -> Object {
        let mut value = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.as_str(),
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [self.owner()]},
        });
        merge(&mut value, body);
        Object { kind, name: name.to_owned(), value }
    }

    fn owner(&self) -> Value {
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "MiniMaxM1Deployment",
            "name": self.checked.name.as_str(),
            "uid": self.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        })
    }

    fn labels(&self) -> Map<String, Value> {
        let name = self.checked.name.as_str();
        map(&[
            (labels::APP_NAME, labels::APP),
            (labels::APP_INSTANCE, name),
            (labels::APP_PART_OF, labels::APP),
            (labels::APP_MANAGED_BY, labels::MANAGER),
            (labels::NAME, name),
        ])
    }

    fn group_labels(&self, group: &GroupRef) -> Map<String, Value> {
        let mut labels = self.labels();
        labels.extend(self.group_selector(group));
        labels.insert(labels::SIZE.to_owned(), json!(group.size.to_string()));
        labels
    }

    /// The labels that only this group's pods have.
    fn group_selector(&self, group: &GroupRef) -> Map<String, Value> {
        map(&[
            (labels::NAME, self.checked.name.as_str()),
            (labels::APP_COMPONENT, WORKER),
            (labels::GROUP_INDEX, &group.index.to_string()),
            (labels::REVISION, group.revision.as_str()),
        ])
    }

    fn component_selector(&self, component: &str) -> Map<String, Value> {
        map(&[(labels::NAME, self.checked.name.as_str()), (labels::APP_COMPONENT, component)])
    }
}

/// `app.kubernetes.io/component` of worker pods.
pub const WORKER: &str = "worker";
/// `app.kubernetes.io/component` of router pods.
pub const ROUTER: &str = "router";

fn map(entries: &[(&str, &str)]) -> Map<String, Value> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect()
}

/// Puts `other` over `value`: objects key by key, everything else as a whole.
fn merge(value: &mut Value, other: Value) {
    match (value, other) {
        (Value::Object(fields), Value::Object(others)) => {
            for (key, other) in others {
                merge(fields.entry(key).or_insert(Value::Null), other);
            }
        }
        (value, other) => *value = other,
    }
}
