//! The API server as the operator uses it: kinds as dynamic APIs, and the one field manager.

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use m1_operator_api::{ExpertPlacementSpec, labels};
use m1_operator_plan::{Kind, Object};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::{Error, code};

/// Where a kind is found.
fn resource(kind: Kind) -> ApiResource {
    let (group, version, name, plural) = kind.names();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural)
}

/// The objects of a kind in a namespace.
pub fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

/// The objects of a kind in one namespace, or in all.
pub fn api_in(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => api(client, kind, namespace),
        None => Api::all_with(client.clone(), &resource(kind)),
    }
}

/// The same for a type of its own.
pub fn typed_in<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// What an ExpertPlacement says; none where it cannot be read.
pub fn placement_spec(object: &DynamicObject) -> Option<ExpertPlacementSpec> {
    serde_json::from_value(object.data.get("spec")?.clone()).ok()
}

/// A create or replace under the operator's name.
pub fn post_params() -> PostParams {
    PostParams { field_manager: Some(labels::MANAGER.to_owned()), ..PostParams::default() }
}

/// Server-side apply as this operator does it. Unknown fields are errors: a typing mistake must not be dropped silently.
fn apply_params() -> PatchParams {
    PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply(labels::MANAGER).force() }
}

/// Brings an object to what it should be. Fields of other writers stay.
///
/// # Errors
/// The API server's.
pub async fn apply(client: &Client, namespace: &str, object: &Object) -> Result<DynamicObject, Error> {
    let api = api(client, object.kind, namespace);
    let patched = api.patch(&object.name, &apply_params(), &Patch::Apply(&object.value)).await;
    patched.map_err(Error::api("apply", format!("{} {}", object.kind.as_str(), object.name)))
}

/// Whether the API server would take an object. Nothing is written.
///
/// # Errors
/// The API server's.
pub async fn try_apply(client: &Client, namespace: &str, object: &Object) -> Result<(), Error> {
    let api = api(client, object.kind, namespace);
    let tried = api.patch(&object.name, &apply_params().dry_run(), &Patch::Apply(&object.value)).await;
    tried.map(|_| ()).map_err(Error::api("try", format!("{} {}", object.kind.as_str(), object.name)))
}

/// A merge patch under the operator's name.
pub fn merge_params() -> PatchParams {
    PatchParams { field_manager: Some(labels::MANAGER.to_owned()), ..PatchParams::default() }
}

/// Writes the status of an object. None where it is gone, which is no error.
///
/// # Errors
/// The API server's.
pub async fn write_status<K, S>(api: &Api<K>, (version, kind): (&str, &str), name: &str, status: &S) -> Result<Option<K>, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
    S: Serialize + Sync,
{
    let object = json!({"apiVersion": version, "kind": kind, "status": status});
    let params = PatchParams::apply(labels::MANAGER).force();
    match api.patch_status(name, &params, &Patch::Apply(&object)).await {
        Ok(written) => Ok(Some(written)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(Error::api("write the status of", format!("{kind} {name}"))(error)),
    }
}

/// Uid of the controller that owns an object.
pub fn owner_uid(object: &DynamicObject) -> Option<&str> {
    let owner = object.owner_references().iter().find(|owner| owner.controller == Some(true))?;
    Some(&owner.uid)
}

/// Who owns an object, in words.
pub fn owner_words(object: &DynamicObject) -> String {
    match object.owner_references().iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => format!("{} {}", owner.kind, owner.name),
        None => "nobody known to Kubernetes".to_owned(),
    }
}
