//! What every pod has in common: who it runs as, what it may not do, and the model's files.

use m1_operator_api::{ModelCache, Toleration};
use serde_json::{Value, json};

use super::USER;
use crate::Source;

/// Where the checkpoint's volume is mounted.
const MODEL_MOUNT: &str = "/model";
/// Where the cache of fetched files is mounted.
const CACHE_MOUNT: &str = "/model-cache";
/// Where the Secret with the hub's token is mounted.
const TOKEN_MOUNT: &str = "/hub-token";
/// The token in it, whatever its key is called.
const TOKEN_FILE: &str = "token";

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

/// The model's files: volumes, their mounts, and the flags by which the process finds them.
pub struct ModelFiles {
    /// Entries of `volumes`.
    pub volumes: Vec<Value>,
    /// Entries of `volumeMounts`.
    pub mounts: Vec<Value>,
    /// Flags of the process, without dashes.
    pub flags: Vec<(&'static str, String)>,
}

/// How the model reaches a pod whose fetched files lie in `cache`.
pub fn model(source: &Source, cache: Cache) -> ModelFiles {
    match source {
        Source::HostPath { path } => mounted("hostPath", json!({"path": path, "type": "Directory"}), ""),
        Source::PersistentVolumeClaim { claim_name, path } => {
            mounted("persistentVolumeClaim", json!({"claimName": claim_name, "readOnly": true}), path)
        }
        Source::Image { reference } => mounted("image", json!({"reference": reference, "pullPolicy": "IfNotPresent"}), ""),
        Source::HuggingFace { repo, revision, token_secret } => {
            let mut files = fetched(format!("hf://{repo}@{revision}"), cache);
            if let Some(secret) = token_secret {
                let item = json!({"key": secret.key, "path": TOKEN_FILE});
                // Octal 440: the group of the pod reads it.
                let volume = json!({"secretName": secret.name, "items": [item], "optional": false, "defaultMode": 0o440});
                files.volumes.push(json!({"name": "hub-token", "secret": volume}));
                files.mounts.push(json!({"name": "hub-token", "mountPath": TOKEN_MOUNT, "readOnly": true}));
                files.flags.push(("hub-token-file", format!("{TOKEN_MOUNT}/{TOKEN_FILE}")));
            }
            files
        }
        Source::Url { url } => fetched(url.clone(), cache),
    }
}

/// A volume that holds the checkpoint, in this directory.
fn mounted(kind: &str, volume: Value, path: &str) -> ModelFiles {
    let folder = match path.trim_matches('/') {
        "" => MODEL_MOUNT.to_owned(),
        path => format!("{MODEL_MOUNT}/{path}"),
    };
    ModelFiles {
        volumes: vec![json!({"name": "model", kind: volume})],
        mounts: vec![json!({"name": "model", "mountPath": MODEL_MOUNT, "readOnly": true})],
        flags: vec![("model", folder)],
    }
}

/// A volume for what the process fetches.
fn fetched(address: String, cache: Cache) -> ModelFiles {
    ModelFiles {
        volumes: vec![json!({"name": "model-cache", cache.kind: cache.volume})],
        mounts: vec![json!({"name": "model-cache", "mountPath": CACHE_MOUNT})],
        flags: vec![("model", address), ("cache", CACHE_MOUNT.to_owned())],
    }
}

/// The volume of a cache: its kind, as the API server calls it, and what that kind wants to know.
pub struct Cache {
    kind: &'static str,
    volume: Value,
}

impl Cache {
    /// What the spec says for workers; else a directory of the pod.
    pub fn of(cache: Option<&ModelCache>) -> Self {
        let given = cache.cloned().unwrap_or_default();
        if let Some(source) = given.host_path {
            return Self { kind: "hostPath", volume: json!({"path": source.path, "type": "Directory"}) };
        }
        if let Some(claim) = given.persistent_volume_claim {
            return Self { kind: "persistentVolumeClaim", volume: json!(claim) };
        }
        Self { kind: "emptyDir", volume: json!(given.empty_dir.unwrap_or_default()) }
    }
}

/// Taints of a node that is not well, or gives no sign of life.
pub const LOST_NODES: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// What the spec accepts, and lost nodes for so many seconds; for ever where none are given.
pub fn tolerations(given: &[Toleration], lost: &[&str], seconds: Option<u32>) -> Vec<Value> {
    let mut tolerations: Vec<Value> = given.iter().map(|toleration| json!(toleration)).collect();
    tolerations.extend(lost.iter().map(|key| {
        let mut toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = json!(seconds);
        }
        toleration
    }));
    tolerations
}

/// A probe of the admin port.
pub fn probe(path: &str, port: &str, period: u32, failures: u64) -> Value {
    json!({"httpGet": {"path": path, "port": port}, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures})
}
