//! One `ExpertPlacement` read as a replica group. Only what the router needs is read, field by field: a field that a newer operator adds is no error, one
//! that is wrong is named with its path.

use std::sync::Arc;

use kube::core::DynamicObject;
use m1_arch::ExpertSet;
use m1_operator_api::Traffic;
use m1_router_core::{GroupSpec, PodSpec, Revision};
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
    for (place, value) in pods.iter().enumerate() {
        let pod = read_pod(&Part { path: format!("spec.pods[{place}]"), value }, layers, experts)?;
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

fn read_pod(pod: &Part<'_>, layers: u32, experts: u32) -> Result<PodSpec, PlacementError> {
    let address: String = pod.needed("address", "HOST:PORT")?;
    if !is_address(&address) {
        return Err(PlacementError::new(pod.field("address"), &Value::from(address), "HOST:PORT"));
    }
    let holds: String = pod.needed("holds", "a bitmap in hex")?;
    let set = ExpertSet::from_hex(layers as usize, experts as usize, &holds)
        .map_err(|error| PlacementError::new(pod.field("holds"), &Value::from(holds.as_str()), error.to_string()))?;
    Ok(PodSpec { address: address.into(), holds: Some(Arc::new(set)) })
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
