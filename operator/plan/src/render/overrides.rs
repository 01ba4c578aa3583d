//! `spec.worker.podTemplate`: a strategic-merge patch over the generated pod template, and the list of what it may not touch.
//!
//! Objects are merged key by key, `null` deletes a key, lists of things with a merge key are merged by that key as Kubernetes
//! does, all other lists are replaced.

use m1_operator_api::{FieldError, labels};
use serde_json::{Map, Value};

/// Merge keys of the lists of a pod template (`patchMergeKey` in Kubernetes' own types).
const MERGE_KEYS: [(&str, &str); 11] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ports", "containerPort"),
    ("imagePullSecrets", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
];

/// Fields of the template that the operator needs as they are.
const FIXED: [&str; 14] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.generateName",
    "spec.hostname",
    "spec.subdomain",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "spec.hostPID",
    "spec.hostIPC",
    "spec.terminationGracePeriodSeconds",
    "spec.securityContext.runAsNonRoot",
    "spec.securityContext.seccompProfile",
];

/// Fields of the container `worker` that the operator needs as they are.
const FIXED_IN_WORKER: [&str; 8] =
    ["command", "args", "image", "ports", "startupProbe", "livenessProbe", "readinessProbe", "securityContext"];

/// The template with the patch over it.
pub fn apply(mut template: Value, patch: Option<&Map<String, Value>>) -> Value {
    if let Some(patch) = patch {
        merge_object(&mut template, patch);
    }
    template
}

/// What a patch may not do, each with its field.
pub fn check_pod_template(patch: &Map<String, Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |field: String, given: &Value, why: &str| {
        errors.push(FieldError::invalid(format!("spec.worker.podTemplate.{field}"), given, why));
    };
    for key in patch.keys().filter(|key| !matches!(key.as_str(), "metadata" | "spec")) {
        refuse(key.clone(), &patch[key], "allowed: metadata and spec, as in a pod template");
    }
    let root = Value::Object(patch.clone());
    directives(&root, "", &mut |field, given| refuse(field, given, "directives are not known; null deletes a field"));
    for path in FIXED {
        if let Some(given) = root.pointer(&format!("/{}", path.replace('.', "/"))) {
            refuse(path.to_owned(), given, "the operator sets it; it cannot be overridden");
        }
    }
    for list in ["labels", "annotations"] {
        let keys = root.pointer(&format!("/metadata/{list}")).and_then(Value::as_object).into_iter().flatten();
        for (key, given) in keys.filter(|(key, _)| is_ours(key)) {
            refuse(format!("metadata.{list}.{key}"), given, "the operator sets it; it cannot be overridden");
        }
    }
    let containers = root.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    for (place, container) in containers.enumerate() {
        let Some(name) = container.get("name").and_then(Value::as_str) else {
            refuse(format!("spec.containers[{place}].name"), &Value::Null, "required: it says which container is meant");
            continue;
        };
        if name != "worker" {
            continue;
        }
        for field in FIXED_IN_WORKER {
            if let Some(given) = container.get(field) {
                refuse(format!("spec.containers[{place}].{field}"), given, "the operator sets it; it cannot be overridden");
            }
        }
        for list in ["requests", "limits"] {
            if let Some(given) = container.pointer(&format!("/resources/{list}/nvidia.com~1gpu")) {
                refuse(
                    format!("spec.containers[{place}].resources.{list}.nvidia.com/gpu"),
                    given,
                    "set parallelism.tensor instead",
                );
            }
        }
    }
    errors
}

/// Names the directives of a strategic-merge patch, such as `$patch: delete`.
fn directives(value: &Value, path: &str, found: &mut impl FnMut(String, &Value)) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| match key.starts_with('$') {
            true => found(below(key), value),
            false => directives(value, &below(key), found),
        }),
        Value::Array(items) => {
            (0..).zip(items).for_each(|(place, item): (usize, _)| directives(item, &format!("{path}[{place}]"), found))
        }
        _ => {}
    }
}

fn is_ours(key: &str) -> bool {
    key.starts_with("serving.minimax-m1.dev/")
        || matches!(key, labels::APP_NAME | labels::APP_INSTANCE | labels::APP_COMPONENT | labels::APP_MANAGED_BY)
}

fn merge_object(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (key, change) in patch {
        match change {
            Value::Null => {
                fields.shift_remove(key);
            }
            Value::Object(change) => merge_object(fields.entry(key.clone()).or_insert(Value::Null), change),
            Value::Array(change) => merge_list(fields.entry(key.clone()).or_insert(Value::Array(Vec::new())), key, change),
            other => {
                fields.insert(key.clone(), other.clone());
            }
        }
    }
}

fn merge_list(target: &mut Value, list: &str, patch: &[Value]) {
    let merge_key = MERGE_KEYS.iter().find(|(name, _)| *name == list).map(|(_, key)| *key);
    let (Some(key), Some(items)) = (merge_key, target.as_array_mut()) else {
        *target = Value::Array(patch.to_vec());
        return;
    };
    for change in patch {
        let same = items.iter_mut().find(|item| change.get(key).is_some() && item.get(key) == change.get(key));
        match (same, change) {
            (Some(item), Value::Object(change)) => merge_object(item, change),
            (Some(item), other) => *item = other.clone(),
            (None, change) => items.push(change.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_patch_adds_and_changes_and_deletes() {
        let template = json!({"spec": {
            "containers": [{"name": "worker", "env": [{"name": "A", "value": "1"}], "tty": true}],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "tolerations": [{"key": "a"}],
        }});
        let patch = object(json!({"metadata": {"annotations": {"team": "x"}}, "spec": {
            "containers": [
                {"name": "worker", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}], "tty": null},
                {"name": "sidecar", "image": "s"},
            ],
            "volumes": [{"name": "more", "emptyDir": {}}],
            "tolerations": [{"key": "b"}],
            "runtimeClassName": "nvidia",
        }}));
        let merged = apply(template, Some(&patch));
        let expected = json!({
            "metadata": {"annotations": {"team": "x"}},
            "spec": {
                "containers": [
                    {"name": "worker", "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
                    {"name": "sidecar", "image": "s"},
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "more", "emptyDir": {}}],
                "tolerations": [{"key": "b"}],
                "runtimeClassName": "nvidia",
            },
        });
        assert_eq!(merged, expected);
    }

    #[test]
    fn what_the_operator_needs_is_not_overridden() {
        let patch = object(json!({
            "kind": "Pod",
            "metadata": {"labels": {"serving.minimax-m1.dev/name": "other", "mine": "x"}},
            "spec": {
                "hostNetwork": true,
                "securityContext": {"fsGroup": 7, "runAsNonRoot": false},
                "containers": [
                    {"name": "worker", "args": ["x"], "resources": {"limits": {"nvidia.com/gpu": 1}}},
                    {"image": "nameless"},
                    {"name": "sidecar", "args": ["mine"]},
                    {"name": "injected", "$patch": "delete"},
                ],
            },
        }));
        let fields: Vec<String> = check_pod_template(&patch).iter().map(|error| error.path.clone()).collect();
        let expected = [
            "spec.worker.podTemplate.kind",
            "spec.worker.podTemplate.spec.containers[3].$patch",
            "spec.worker.podTemplate.spec.hostNetwork",
            "spec.worker.podTemplate.spec.securityContext.runAsNonRoot",
            "spec.worker.podTemplate.metadata.labels.serving.minimax-m1.dev/name",
            "spec.worker.podTemplate.spec.containers[0].args",
            "spec.worker.podTemplate.spec.containers[0].resources.limits.nvidia.com/gpu",
            "spec.worker.podTemplate.spec.containers[1].name",
        ];
        assert_eq!(fields, expected);
    }
}
