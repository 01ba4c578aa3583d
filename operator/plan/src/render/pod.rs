//! What every pod has in common: who it runs as, what it may not do, and the model's files.

use m1_operator_api::Worker;
use serde_json::{Value, json};

use super::USER;
use crate::Source;

/// Where the checkpoint's volume is mounted.
const MODEL_MOUNT: &str = "/model";

/// `securityContext` of a pod.
pub fn security() -> Value {
    json!({
        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// `securityContext` of a container.
pub fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

/// The model as a volume and its mount; and the folder of the checkpoint as the process sees it.
pub struct ModelVolume {
    /// Entry of `volumes`.
    pub volume: Value,
    /// Entry of `volumeMounts`.
    pub mount: Value,
    /// The folder.
    pub folder: String,
}

/// How a source reaches a pod.
pub fn model(source: &Source) -> ModelVolume {
    let mount = json!({"name": "model", "mountPath": MODEL_MOUNT, "readOnly": true});
    let (volume, folder) = match source {
        Source::HostPath { path } => (json!({"name": "model", "hostPath": {"path": path, "type": "Directory"}}), String::new()),
        Source::PersistentVolumeClaim { claim_name, path } => {
            (json!({"name": "model", "persistentVolumeClaim": {"claimName": claim_name, "readOnly": true}}), path.clone())
        }
        Source::Image { reference } => {
            (json!({"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}), String::new())
        }
        // Not run yet (`runnable` refuses them): the volume is what a download would fill.
        Source::HuggingFace { .. } | Source::Url { .. } => (json!({"name": "model", "emptyDir": {}}), String::new()),
    };
    let folder = match folder.trim_matches('/') {
        "" => MODEL_MOUNT.to_owned(),
        path => format!("{MODEL_MOUNT}/{path}"),
    };
    ModelVolume { volume, mount, folder }
}

/// What the spec accepts, and a node that is gone for as long as the spec says.
pub fn tolerations(worker: &Worker) -> Vec<Value> {
    let mut tolerations: Vec<Value> = worker.tolerations.iter().map(|toleration| json!(toleration)).collect();
    tolerations.extend(["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(
        |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": worker.unreachable_seconds}),
    ));
    tolerations
}

/// A probe of the admin port.
pub fn probe(path: &str, port: &str, period: u32, failures: u64) -> Value {
    json!({"httpGet": {"path": path, "port": port}, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures})
}
