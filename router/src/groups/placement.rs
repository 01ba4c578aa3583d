//! One `ExpertPlacement` read as a replica group. Only what the router needs is read, field by field: a field that a newer operator adds is no error, one
//! that is wrong is named with its path.

use std::sync::Arc;

use kube::ResourceExt;
use kube::core::DynamicObject;
use m1_arch::ExpertSet;
use m1_operator_api::Traffic;
use m1_router_core::{GroupSpec, PodSpec, Revision};
use m1_runtime::member::Deployment;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::shown;
use crate::workers::is_address;

/// A field that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: given {given}, allowed: {allowed}")]
pub struct PlacementError {
    /// Its path.
    pub field: String,
    given: String,
    allowed: String,
}

impl PlacementError {
    fn new(field: String, given: &Value, allowed: impl Into<String>) -> Self {
        Self { field, given: shown(given), allowed: allowed.into() }
    }

    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        "BadPlacement"
    }
}

/// Whether the object is on its way out.
pub fn is_leaving(object: &DynamicObject) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

/// The group that an object stands for. One that is being deleted is closed.
///
/// # Errors
/// The first field that is wrong.
pub fn read(object: &DynamicObject) -> Result<GroupSpec, PlacementError> {
    let spec = Part { path: "spec".to_owned(), value: object.data.get("spec").unwrap_or(&Value::Null) };
    let layers: u32 = spec.needed("layers", "a whole number")?;
    let experts: u32 = spec.needed("experts", "a whole number")?;
    let revision: Option<String> = spec.read("revision", "a text")?;
    let traffic: Option<Traffic> = spec.read("traffic", "Open or Closed")?;
    let encrypted: Option<bool> = spec.read("encrypted", "true or false")?;
    let pods: Vec<Value> = spec.needed("pods", "an array with at least one pod")?;
    if pods.is_empty() {
        return Err(PlacementError::new(spec.field("pods"), &Value::Array(pods), "an array with at least one pod"));
    }
    let mut read = Vec::with_capacity(pods.len());
    let owner = owner(object);
    for (place, value) in pods.iter().enumerate() {
        let pod = Part { path: format!("spec.pods[{place}]"), value };
        let member = member(owner.as_ref(), &pod, place)?;
        let pod = PodSpec { member, ..read_pod(&pod, layers, experts)? };
        if read.iter().any(|other: &PodSpec| other.address == pod.address) {
            let given = Value::from(&*pod.address);
            return Err(PlacementError::new(format!("spec.pods[{place}].address"), &given, "one that no other pod has"));
        }
        read.push(pod);
    }
    let open = traffic.unwrap_or_default() == Traffic::Open && !is_leaving(object);
    let revision = Revision::new(&revision.unwrap_or_default());
    Ok(GroupSpec { revision, open, encrypted: encrypted.unwrap_or_default(), pods: read })
}

/// The deployment that owns the object; none where nobody does who could be named.
fn owner(object: &DynamicObject) -> Option<Deployment> {
    let owner =
        object.owner_references().iter().find(|owner| owner.controller == Some(true) && owner.kind == "MiniMaxM1Deployment")?;
    let namespace = object.metadata.namespace.clone()?;
    Some(Deployment { namespace, name: owner.name.clone(), uid: owner.uid.clone() })
}

/// Who answers in a pod: its group is in its name, its number is its place in the list. None where that is not said.
fn member(owner: Option<&Deployment>, pod: &Part<'_>, place: usize) -> Result<Option<Arc<str>>, PlacementError> {
    let name: Option<String> = pod.read("pod", "a pod's name")?;
    let named = || {
        let (name, place) = (name?, u16::try_from(place).ok()?);
        let group = name.strip_suffix(&format!("-{place}"))?;
        Some(owner?.member(group, place).to_string().into())
    };
    Ok(named())
}

fn read_pod(pod: &Part<'_>, layers: u32, experts: u32) -> Result<PodSpec, PlacementError> {
    let address: String = pod.needed("address", "HOST:PORT")?;
    if !is_address(&address) {
        return Err(PlacementError::new(pod.field("address"), &Value::from(address), "HOST:PORT"));
    }
    let holds: String = pod.needed("holds", "a bitmap in hex")?;
    let set = ExpertSet::from_hex(layers as usize, experts as usize, &holds)
        .map_err(|error| PlacementError::new(pod.field("holds"), &Value::from(holds.as_str()), error.to_string()))?;
    Ok(PodSpec { address: address.into(), holds: Some(Arc::new(set)), member: None })
}

/// An object within the object.
struct Part<'a> {
    path: String,
    value: &'a Value,
}

impl Part<'_> {
    fn field(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    fn read<T: DeserializeOwned>(&self, name: &str, allowed: &str) -> Result<Option<T>, PlacementError> {
        match self.value.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|_| PlacementError::new(self.field(name), value, allowed)),
        }
    }

    fn needed<T: DeserializeOwned>(&self, name: &str, allowed: &str) -> Result<T, PlacementError> {
        self.read(name, allowed)?.ok_or_else(|| PlacementError::new(self.field(name), &Value::Null, allowed))
    }
}

#[cfg(test)]
mod tests {
    use m1_operator_api::{ExpertPlacement, ExpertPlacementSpec, PodHolding};
    use serde_json::json;

    use super::*;

    /// A good object as the operator writes it, through its own type.
    fn good() -> Value {
        let pod = |pod: u32, holds: &str| PodHolding {
            pod: format!("m1-0-{pod}"),
            address: format!("m1-0-{pod}.m1:7000"),
            holds: holds.to_owned(),
        };
        let spec = ExpertPlacementSpec {
            deployment: "m1".into(),
            epoch: 3,
            layers: 2,
            experts: 4,
            revision: "abc".into(),
            pods: vec![pod(0, "c8"), pod(1, "37")],
            ..ExpertPlacementSpec::default()
        };
        serde_json::to_value(ExpertPlacement::new("m1-0-abc", spec)).unwrap()
    }

    fn read_changed(change: impl Fn(&mut Value)) -> Result<GroupSpec, PlacementError> {
        let mut object = good();
        change(&mut object);
        read(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn an_object_of_the_operator_is_a_group() {
        let group = read_changed(|_| {}).unwrap();
        assert_eq!((group.revision.as_str(), group.open, group.encrypted), ("abc", true, false));
        assert!(read_changed(|object| object["spec"]["encrypted"] = json!(true)).unwrap().encrypted);
        let addresses: Vec<&str> = group.pods.iter().map(|pod| &*pod.address).collect();
        assert_eq!(addresses, ["m1-0-0.m1:7000", "m1-0-1.m1:7000"]);
        let holds: Vec<String> = group.pods.iter().map(|pod| pod.holds.as_ref().unwrap().to_hex()).collect();
        assert_eq!(holds, ["c8", "37"]);
    }

    #[test]
    fn its_owner_says_who_answers_in_its_pods() {
        let members = |change: &dyn Fn(&mut Value)| {
            let group = read_changed(|object| {
                object["metadata"]["namespace"] = json!("serving");
                object["metadata"]["ownerReferences"] = json!([{
                    "apiVersion": "serving.minimax-m1.dev/v1alpha1", "kind": "MiniMaxM1Deployment", "name": "m1", "uid": "0b54-11",
                    "controller": true,
                }]);
                change(object);
            });
            group.unwrap().pods.iter().map(|pod| pod.member.as_deref().map(str::to_owned)).collect::<Vec<_>>()
        };
        let named = |pod: u32| Some(format!("serving/m1/0b54-11/m1-0/{pod}"));
        assert_eq!(members(&|_| {}), [named(0), named(1)]);
        // Nobody is named whose name is not certain: such a call means nobody in particular, as before.
        assert_eq!(members(&|object| object["metadata"]["ownerReferences"] = Value::Null), [None, None]);
        assert_eq!(members(&|object| object["spec"]["pods"][1]["pod"] = json!("m1-0-7")), [named(0), None]);
        assert_eq!(read_changed(|object| object["spec"]["pods"][0]["pod"] = json!(7)).unwrap_err().field, "spec.pods[0].pod");
    }

    #[test]
    fn closed_or_leaving_is_closed() {
        assert!(!read_changed(|object| object["spec"]["traffic"] = json!("Closed")).unwrap().open);
        assert!(!read_changed(|object| object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")).unwrap().open);
    }

    #[test]
    fn what_a_newer_operator_adds_is_no_error() {
        let group = read_changed(|object| {
            object["spec"]["colour"] = json!("red");
            object["spec"]["pods"][0]["zone"] = json!("a");
        });
        assert!(group.is_ok());
    }

    #[test]
    fn wrong_fields_are_named() {
        let field = |change: fn(&mut Value)| read_changed(change).unwrap_err().field;
        assert_eq!(field(|object| object["spec"] = Value::Null), "spec.layers");
        assert_eq!(field(|object| object["spec"]["experts"] = json!("4")), "spec.experts");
        assert_eq!(field(|object| object["spec"]["traffic"] = json!("Ajar")), "spec.traffic");
        assert_eq!(field(|object| object["spec"]["encrypted"] = json!("yes")), "spec.encrypted");
        assert_eq!(field(|object| object["spec"]["pods"] = json!([])), "spec.pods");
        assert_eq!(field(|object| object["spec"]["pods"][1]["address"] = Value::Null), "spec.pods[1].address");
        assert_eq!(field(|object| object["spec"]["pods"][1]["address"] = json!("m1-0-1.m1")), "spec.pods[1].address");
        assert_eq!(field(|object| object["spec"]["pods"][0]["address"] = json!("a b:70")), "spec.pods[0].address");
        assert_eq!(field(|object| object["spec"]["pods"][1]["address"] = json!("m1-0-0.m1:7000")), "spec.pods[1].address");
        assert_eq!(field(|object| object["spec"]["pods"][0]["holds"] = json!("c")), "spec.pods[0].holds");
        assert_eq!(field(|object| object["spec"]["pods"][0]["holds"] = json!("xy")), "spec.pods[0].holds");
        let error = read_changed(|object| object["spec"]["pods"][1]["holds"] = json!("c8f")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "spec.pods[1].holds: given \"c8f\", allowed: expert bitmap has 3 characters: allowed are 2 (2 layers x 1 hex digits)"
        );
    }
}
