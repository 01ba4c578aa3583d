//! Objects of a cluster as values: what is rendered, applied, compared and pruned. Owns the list of kinds that the operator
//! writes; a kind that is not here is never touched.

use m1_operator_api::Quantity;
use serde_json::Value;

/// A kind of object that belongs to a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Identity of pods.
    ServiceAccount,
    /// What the routers may read.
    Role,
    /// Who may read it.
    RoleBinding,
    /// Names and addresses.
    Service,
    /// What may reach whom.
    NetworkPolicy,
    /// How many pods may be evicted.
    PodDisruptionBudget,
    /// The pods of a group.
    StatefulSet,
    /// The routers.
    Deployment,
    /// Who holds which expert.
    ExpertPlacement,
    /// A group as a gang, for scheduler-plugins.
    PodGroup,
    /// A group as a gang, for Volcano.
    VolcanoPodGroup,
    /// What Prometheus scrapes.
    PodMonitor,
    /// What cert-manager makes a certificate from.
    Certificate,
}

impl Kind {
    /// Every kind, in the order of application: what others refer to comes first.
    pub const ALL: [Kind; 13] = [
        Kind::ServiceAccount,
        Kind::Role,
        Kind::RoleBinding,
        Kind::NetworkPolicy,
        Kind::PodGroup,
        Kind::VolcanoPodGroup,
        Kind::ExpertPlacement,
        Kind::Service,
        Kind::StatefulSet,
        Kind::Deployment,
        Kind::PodDisruptionBudget,
        Kind::PodMonitor,
        Kind::Certificate,
    ];

    /// API group, version, kind and plural.
    pub fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Kind::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Kind::Role => ("rbac.authorization.k8s.io", "v1", "Role", "roles"),
            Kind::RoleBinding => ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
            Kind::Service => ("", "v1", "Service", "services"),
            Kind::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
            Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Kind::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
            Kind::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Kind::ExpertPlacement => (m1_operator_api::GROUP, m1_operator_api::VERSION, "ExpertPlacement", "expertplacements"),
            Kind::PodGroup => ("scheduling.x-k8s.io", "v1alpha1", "PodGroup", "podgroups"),
            Kind::VolcanoPodGroup => ("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups"),
            Kind::PodMonitor => ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
            Kind::Certificate => ("cert-manager.io", "v1", "Certificate", "certificates"),
        }
    }

    /// The kind's name, as events and messages write it.
    pub fn as_str(self) -> &'static str {
        self.names().2
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> String {
        match self.names() {
            ("", version, ..) => version.to_owned(),
            (group, version, ..) => format!("{group}/{version}"),
        }
    }

    /// Whether a cluster may lack this kind: somebody else's CRD.
    pub fn is_optional(self) -> bool {
        matches!(self, Kind::PodGroup | Kind::VolcanoPodGroup | Kind::PodMonitor | Kind::Certificate)
    }
}

/// One object as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// All that the operator has to say about it.
    pub value: Value,
}

/// Whether everything that `wanted` says is so in `found`. Fields that only `found` has (defaults, other writers' fields) do not count.
/// Lists of named things are compared by name, all others in order and at full length.
pub fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| match found.get(key) {
            Some(found) if matches!(key.as_str(), "requests" | "limits") => same_amounts(found, wanted),
            Some(found) if key == "sizeLimit" => same_amount(found, wanted),
            Some(found) => holds(found, wanted),
            // The API server drops what is empty.
            None => is_empty(wanted),
        }),
        (Value::Array(found), Value::Array(wanted)) => holds_list(found, wanted),
        (Value::Number(found), Value::Number(wanted)) => found.as_f64() == wanted.as_f64(),
        (found, wanted) => found == wanted,
    }
}

/// Quantities are compared by amount: the API server writes `1000m` as `1`.
fn same_amounts(found: &Value, wanted: &Value) -> bool {
    let mut wanted = wanted.as_object().into_iter().flatten();
    wanted.all(|(key, wanted)| found.get(key).is_some_and(|found| same_amount(found, wanted)))
}

fn same_amount(found: &Value, wanted: &Value) -> bool {
    let amount = |value: &Value| Quantity(value.as_str()?.to_owned()).amount().ok();
    // `0.7` and `700m` are two numbers by a hair.
    let near = |(found, wanted): (f64, f64)| (found - wanted).abs() <= found.abs() * 1e-9;
    found == wanted || amount(found).zip(amount(wanted)).is_some_and(near)
}

fn holds_list(found: &[Value], wanted: &[Value]) -> bool {
    let named = !wanted.is_empty() && wanted.iter().all(|item| item.get("name").is_some());
    if named {
        return wanted.iter().all(|item| found.iter().any(|other| other.get("name") == item.get("name") && holds(other, item)));
    }
    found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| holds(found, wanted))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_the_server_are_no_difference() {
        let found = json!({"spec": {"a": 1, "default": true, "list": [{"name": "x", "more": 1}, {"name": "injected"}]}});
        assert!(holds(&found, &json!({"spec": {"a": 1.0, "empty": [], "off": false, "list": [{"name": "x"}]}})));
        assert!(!holds(&found, &json!({"spec": {"a": 2}})));
        assert!(!holds(&found, &json!({"spec": {"list": [{"name": "y"}]}})));
        assert!(!holds(&json!({"l": [1, 2]}), &json!({"l": [1]})));
        assert!(!holds(&json!({}), &json!({"b": 1})));
        let (found, wanted) =
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), json!({"limits": {"cpu": "1000m", "memory": "1024Mi"}}));
        assert!(holds(&found, &wanted));
        assert!(!holds(&found, &json!({"limits": {"cpu": "1001m"}})));
        for (found, wanted) in [("700m", "0.7"), ("1400m", "1.4"), ("2300m", "2.3")] {
            assert!(holds(&json!({"limits": {"cpu": found}}), &json!({"limits": {"cpu": wanted}})), "{wanted}");
        }
        assert!(holds(&json!({"emptyDir": {"sizeLimit": "1T"}}), &json!({"emptyDir": {"sizeLimit": "1000G"}})));
        assert!(!holds(&found, &json!({"limits": {"gpu": "1"}})));
    }

    #[test]
    fn every_kind_is_named_once() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|kind| (kind.api_version(), kind.as_str())).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
