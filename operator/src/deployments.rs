//! The deployments, as their watch brings them, into the store that looks are made from. One that this version cannot read - a newer CRD
//! has fields that it does not know - is told so by its own status, and stops nobody else's.

use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use kube::api::{ApiResource, DynamicObject, Patch};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use m1_operator_api::{ConditionStatus, ConditionType, MiniMaxM1Deployment, Reason};
use m1_operator_plan::seconds;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::cache::{Key, taken, tell_once};
use crate::cluster::merge_params;
use crate::error::Error;
use crate::relist::{Change, Relist};

/// Of a status that cannot be read this is kept: without it groups would be made anew.
const KEPT: [&str; 3] = ["workerImage", "routerImage", "restartedAt"];

/// The store and what fills it.
pub struct Deployments {
    client: Client,
    /// What looks are made from.
    pub store: Store<MiniMaxM1Deployment>,
    writer: Mutex<reflector::store::Writer<MiniMaxM1Deployment>>,
    changes: mpsc::Sender<Key>,
}

/// Where deployments are found, whatever is in them.
pub fn resource() -> ApiResource {
    ApiResource::erase::<MiniMaxM1Deployment>(&())
}

/// As the store and the queue name it.
pub fn reference(key: &Key) -> ObjectRef<MiniMaxM1Deployment> {
    ObjectRef::new(&key.name).within(&key.namespace)
}

impl Deployments {
    /// Knows none. The store counts as complete from here on; what is in it comes one by one, because each namespace has a watch of its
    /// own.
    pub fn new(client: Client, changes: mpsc::Sender<Key>) -> Self {
        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        Self { client, store, writer: Mutex::new(writer), changes }
    }

    /// Follows the deployments of one namespace, or of all. `listed` is told once all are known.
    pub async fn follow(
        self: Arc<Self>,
        events: impl Stream<Item = watcher::Result<Event<DynamicObject>>> + Send,
        mut listed: Option<oneshot::Sender<()>>,
    ) {
        let (mut events, mut relist) = (std::pin::pin!(events), Relist::default());
        while let Some(event) = events.next().await {
            let changed = match taken("MiniMaxM1Deployment", &mut relist, event, |object| Some(Key::of(object))) {
                Change::Nothing => Vec::new(),
                Change::Is(key, object) => match read(&object) {
                    Ok(deployment) => {
                        self.writer.lock().await.apply_watcher_event(&Event::Apply(deployment));
                        vec![key]
                    }
                    Err(error) => {
                        self.leave(&key).await;
                        self.tell(&key, &object, &error).await;
                        Vec::new()
                    }
                },
                Change::Gone { gone, listed: whole } => {
                    for key in &gone {
                        self.leave(key).await;
                    }
                    tell_once(&mut listed, whole);
                    gone
                }
            };
            for key in changed {
                let _ = self.changes.send(key).await;
            }
        }
    }

    async fn leave(&self, key: &Key) {
        if let Some(deployment) = self.store.get(&reference(key)) {
            self.writer.lock().await.apply_watcher_event(&Event::Delete(deployment.as_ref().clone()));
        }
    }

    /// Says in the status of a deployment that it cannot be read, once.
    async fn tell(&self, key: &Key, object: &DynamicObject, error: &serde_json::Error) {
        let Key { namespace, name } = key;
        tracing::warn!(namespace, name, %error, "a deployment cannot be read");
        let Some(status) = unreadable(object, error) else { return };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource());
        let written = api.patch_status(name, &merge_params(), &Patch::Merge(json!({"status": status}))).await;
        if let Err(error) = written.map_err(Error::api("write the status of", format!("MiniMaxM1Deployment {name}"))) {
            tracing::warn!(namespace, name, %error, "nobody is told");
        }
    }
}

/// A deployment, where it can be read; with less of a status that cannot.
fn read(object: &DynamicObject) -> Result<MiniMaxM1Deployment, serde_json::Error> {
    let mut object = object.clone();
    object.managed_fields_mut().clear();
    let mut value = serde_json::to_value(object)?;
    serde_json::from_value(value.clone()).or_else(|_| {
        if let Some(status) = value["status"].as_object_mut() {
            status.retain(|field, _| KEPT.contains(&field.as_str()));
        }
        serde_json::from_value(value)
    })
}

/// What the status of a deployment that cannot be read should say; none where it says so already.
fn unreadable(object: &DynamicObject, error: &serde_json::Error) -> Option<Value> {
    let kind = ConditionType::Accepted.as_str();
    let message = format!(
        "this version of the operator ({}) cannot read it: {error}; what runs goes on and is not looked after until that is mended or the \
         operator upgraded",
        env!("CARGO_PKG_VERSION")
    );
    let before = object.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let (said, mut conditions): (Vec<Value>, Vec<Value>) = before.into_iter().partition(|condition| condition["type"] == kind);
    let generation = object.metadata.generation;
    let is_said = |said: &Value| said["message"] == message.as_str() && said["observedGeneration"] == json!(generation);
    if said.iter().any(is_said) {
        return None;
    }
    let refused = ConditionStatus::False.as_str();
    let since = said.iter().find(|said| said["status"] == refused).map(|said| said["lastTransitionTime"].clone());
    let now = || json!(seconds(k8s_openapi::jiff::Timestamp::now()));
    conditions.insert(
        0,
        json!({
            "type": kind, "status": refused, "reason": Reason::InvalidSpec.as_str(), "message": message,
            "lastTransitionTime": since.unwrap_or_else(now), "observedGeneration": generation,
        }),
    );
    Some(json!({"observedGeneration": generation, "conditions": conditions}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "serving.minimax-m1.dev/v1alpha1", "kind": "MiniMaxM1Deployment",
            "metadata": {"name": "m1", "namespace": "models", "generation": 3}, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn model() -> Value {
        json!({"model": {"source": {"hostPath": {"path": "/m"}}}})
    }

    #[test]
    fn a_status_of_another_version_loses_what_cannot_be_read() {
        let newer = json!({"workerImage": "w:2", "conditions": [{"type": "Ready", "status": "True", "reason": "OfTheFuture"}]});
        let status = read(&object(model(), newer)).unwrap().status.unwrap();
        assert_eq!((status.worker_image.as_deref(), status.conditions.len()), (Some("w:2"), 0));
    }

    #[test]
    fn a_spec_of_another_version_is_refused_by_name_and_once() {
        let mut spec = model();
        spec["fieldOfTheFuture"] = json!(1);
        let ready =
            json!({"type": "Ready", "status": "True", "reason": "OfTheFuture", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut found = object(spec, json!({"replicas": 2, "conditions": [ready]}));
        let error = read(&found).unwrap_err();
        let said = unreadable(&found, &error).unwrap();
        assert_eq!((&said["conditions"][0]["type"], &said["conditions"][0]["status"]), (&json!("Accepted"), &json!("False")));
        assert!(said["conditions"][0]["message"].as_str().unwrap().contains("fieldOfTheFuture"), "{said}");
        assert_eq!(said["conditions"][1]["type"], "Ready", "what others said stays");
        found.data["status"] = said;
        assert_eq!(unreadable(&found, &error), None, "writing it brings it back by the watch");
    }
}
