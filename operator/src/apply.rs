//! Carries a decision out: writes what differs, deletes what is no longer wanted, and nothing else. What is as it should be is not
//! written again; what somebody else owns is not touched.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use kube::api::{DeleteParams, DynamicObject, Patch, Preconditions, PropagationPolicy};
use kube::{Client, ResourceExt};
use m1_operator_api::{ExpertPlacementStatus, labels};
use m1_operator_plan::{Decision, Kind, Object, PlacementWrite, PodDeletion, holds, seconds};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cache::{Cache, Family, Key, Wish};
use crate::cluster::{api, merge_params, owner_uid, owner_words, post_params, write_status};
use crate::error::{Error, Verdict, code};
use crate::notes::Notes;

/// One thing that was done, for events and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// The word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
    /// Whether it is worth a warning.
    pub warning: bool,
}

/// Where and for whom a decision is carried out.
pub struct Hand<'a> {
    /// The API server.
    pub client: &'a Client,
    /// What is known.
    pub cache: &'a Cache,
    /// The deployment.
    pub key: &'a Key,
    /// Its uid.
    pub uid: &'a str,
    /// What belongs to it, as it was when the decision was made.
    pub family: &'a Family,
    /// What is remembered of it.
    pub notes: &'a Notes,
    /// When to look again: at once after anything was written or deleted, later for what is not set right yet.
    pub look_again: &'a Mutex<Option<Duration>>,
}

impl Hand<'_> {
    /// Carries out everything but the status. Says what was done also where something failed: it stays done and is found so the
    /// next time.
    pub async fn carry_out(
        &self,
        decision: &Decision,
        object: impl Fn(&PlacementWrite) -> Option<Object>,
    ) -> (Vec<Deed>, Result<(), Error>) {
        let mut deeds = Vec::new();
        let carried = self.carry_out_into(&mut deeds, decision, object).await;
        (deeds, carried)
    }

    async fn carry_out_into(
        &self,
        deeds: &mut Vec<Deed>,
        decision: &Decision,
        object: impl Fn(&PlacementWrite) -> Option<Object>,
    ) -> Result<(), Error> {
        let family = self.family;
        // A placement says that its group is closed before anything of the group goes.
        for write in &decision.placements {
            deeds.extend(self.place(family, write, object(write)).await?);
        }
        // What is refused stops nothing else: old things go and lost pods are replaced all the same.
        let mut failed = None;
        for stage in Stage::ALL {
            let objects = decision.apply.iter().filter(|object| Stage::of(object.kind) == stage);
            for written in join_all(objects.map(|object| self.apply(family, object))).await {
                match written {
                    Ok(deed) => deeds.extend(deed),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        for (name, evictable) in &decision.budgets {
            self.set_budget(name, *evictable).await?;
        }
        for (name, status) in &decision.applied {
            self.tell_applied(name, status).await?;
        }
        if decision.prune {
            deeds.extend(self.prune(family, decision).await?);
        }
        for pod in &decision.pods {
            deeds.extend(self.delete_pod(pod).await?);
        }
        failed.map_or(Ok(()), Err)
    }

    async fn delete_pod(&self, pod: &PodDeletion) -> Result<Option<Deed>, Error> {
        let what = format!("Pod {}", pod.name);
        // A finalizer keeps it there.
        if let Err(left) = self.notes.may_mend(self.key, &what) {
            self.look_again(left);
            return Ok(None);
        }
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(self.client.clone(), &self.key.namespace);
        let params = DeleteParams { grace_period_seconds: pod.force.then_some(0), ..DeleteParams::default() };
        self.look_again(Duration::ZERO);
        gone(pods.delete(&pod.name, &params).await).map_err(Error::api("delete", what))?;
        let (reason, how) = if pod.force { ("PodForceDeleted", " by force") } else { ("PodDeleted", "") };
        Ok(Some(Deed { reason, message: format!("pod {} was deleted{how}: {}", pod.name, pod.why), warning: true }))
    }

    fn look_again(&self, after: Duration) {
        let mut known = self.look_again.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(known.map_or(after, |known| known.min(after)));
    }

    /// Writes an object if it is not as it should be.
    async fn apply(&self, family: &Family, object: &Object) -> Result<Option<Deed>, Error> {
        let (known, wish) = (family.objects.get(&(object.kind, object.name.clone())), Wish::of(object));
        if known.is_some_and(|known| known.stays_with(self.uid) && known.fulfils(wish)) {
            return Ok(None);
        }
        let digest = digest(object);
        let mut wanted = object.clone();
        wanted.value["metadata"]["annotations"][labels::APPLIED] = json!(digest);
        let Some((known, kept)) = known.and_then(|known| known.object().zip(Some(known))) else {
            if !self.is_free(object).await? {
                return Ok(None);
            }
            self.write(&wanted).await?;
            let message = format!("{} {}", object.kind.as_str(), object.name);
            return Ok(Some(Deed { reason: "Created", message: format!("created {message}"), warning: false }));
        };
        let former = is_former(known, self.key, self.uid);
        if former || known.metadata.deletion_timestamp.is_some() {
            // It is made anew once it is gone: its deletion will be seen.
            return Ok(None);
        }
        if owner_uid(known) != Some(self.uid) {
            return Err(foreign(object, known));
        }
        let frozen = object.kind == Kind::StatefulSet && known.annotations().get(labels::APPLIED) != Some(&digest);
        if frozen {
            freeze(&mut wanted, known);
        }
        let live = serde_json::to_value(known)?;
        let same = frozen || known.annotations().get(labels::APPLIED) == Some(&digest);
        let name = format!("{} {}", object.kind.as_str(), object.name);
        if same && holds(&live, &wanted.value) {
            kept.note_fulfilled(wish);
            self.notes.is_right(self.key, &name);
            return Ok(None);
        }
        if same && let Err(left) = self.notes.may_mend(self.key, &name) {
            self.look_again(left);
            return Ok(None);
        }
        match self.write(&wanted).await {
            // Somebody's entry of a list stands in the way: lists are set as a whole first.
            Err(error) if same && !frozen && error.verdict() == Verdict::Refused => {
                self.replace_lists(&wanted).await?;
                self.write(&wanted).await?;
            }
            written => written?,
        }
        let deed = match same {
            true => Deed {
                reason: "DriftCorrected",
                message: format!("{name} was changed by somebody else and is set back"),
                warning: true,
            },
            false => Deed { reason: "Updated", message: format!("updated {name}"), warning: false },
        };
        Ok(Some(deed))
    }

    async fn write(&self, object: &Object) -> Result<(), Error> {
        let written = crate::cluster::apply(self.client, &self.key.namespace, object).await?;
        self.note(object.kind, written);
        Ok(())
    }

    /// Sets the spec by a merge patch, which replaces lists where server-side apply merges them.
    async fn replace_lists(&self, object: &Object) -> Result<(), Error> {
        let patch = json!({"spec": object.value["spec"]});
        let patched =
            api(self.client, object.kind, &self.key.namespace).patch(&object.name, &merge_params(), &Patch::Merge(&patch)).await;
        patched.map(|_| ()).map_err(Error::api("patch", format!("{} {}", object.kind.as_str(), object.name)))
    }

    fn note(&self, kind: Kind, written: DynamicObject) {
        self.look_again(Duration::ZERO);
        self.cache.wrote(self.key, kind, written);
    }

    /// Server-side apply would take an object over; so the first write of a name looks first.
    /// False: a former deployment of the same name left it, and it is going.
    async fn is_free(&self, object: &Object) -> Result<bool, Error> {
        let api = api(self.client, object.kind, &self.key.namespace);
        let found = api.get_opt(&object.name).await;
        match found.map_err(Error::api("get", format!("{} {}", object.kind.as_str(), object.name)))? {
            Some(found) if is_former(&found, self.key, self.uid) => Ok(false),
            Some(found) if owner_uid(&found) != Some(self.uid) => Err(foreign(object, &found)),
            _ => Ok(true),
        }
    }

    /// Writes a placement on top of the version it was decided for, so that a leader that was deposed cannot undo a newer one.
    async fn place(&self, family: &Family, write: &PlacementWrite, object: Option<Object>) -> Result<Option<Deed>, Error> {
        let known = family.object(Kind::ExpertPlacement, &write.name);
        let written = match (&write.resource_version, object) {
            // It was made already, by a look that came no further.
            (None, _) if known.is_some_and(|known| owner_uid(known) == Some(self.uid)) => return Ok(None),
            (None, Some(object)) => self.create_placement(write, object).await?,
            (None, None) => return Ok(None),
            (Some(version), _) => {
                let since = write.closed_since.map(seconds);
                let patch = json!({
                    "metadata": {"resourceVersion": version, "annotations": {labels::CLOSED_SINCE: since}},
                    "spec": write.spec,
                });
                let api = api(self.client, Kind::ExpertPlacement, &self.key.namespace);
                let patched = api.patch(&write.name, &merge_params(), &Patch::Merge(&patch)).await;
                patched.map_err(Error::api("patch", format!("ExpertPlacement {}", write.name)))?
            }
        };
        let before = known.and_then(|known| known.data.pointer("/spec/traffic").cloned());
        self.note(Kind::ExpertPlacement, written);
        let traffic = write.spec.traffic;
        let changed = before.is_some_and(|before| before != json!(traffic.as_str()));
        let message =
            format!("group {} ({}) is {} for new requests", write.spec.group, write.name, traffic.as_str().to_lowercase());
        Ok(changed.then_some(Deed { reason: "TrafficChanged", message, warning: false }))
    }

    /// Sets how many pods of a group may be evicted, and nothing else of its budget.
    async fn set_budget(&self, name: &str, evictable: u32) -> Result<(), Error> {
        let kind = Kind::PodDisruptionBudget;
        let Some(known) = self.family.object(kind, name).filter(|known| owner_uid(known) == Some(self.uid)) else { return Ok(()) };
        if known.data.pointer("/spec/maxUnavailable") == Some(&json!(evictable)) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"spec": {"maxUnavailable": evictable}}));
        let patched = api(self.client, kind, &self.key.namespace).patch(name, &merge_params(), &patch).await;
        self.note(kind, patched.map_err(Error::api("patch", format!("PodDisruptionBudget {name}")))?);
        Ok(())
    }

    /// Writes into a placement what its pods have applied.
    async fn tell_applied(&self, name: &str, status: &ExpertPlacementStatus) -> Result<(), Error> {
        let kind = Kind::ExpertPlacement;
        let api = api(self.client, kind, &self.key.namespace);
        if let Some(written) = write_status(&api, (&kind.api_version(), kind.as_str()), name, status).await? {
            self.cache.wrote(self.key, kind, written);
        }
        Ok(())
    }

    /// Creates a placement, or finds the one that an earlier look created.
    async fn create_placement(&self, write: &PlacementWrite, mut object: Object) -> Result<DynamicObject, Error> {
        let api = api(self.client, Kind::ExpertPlacement, &self.key.namespace);
        let what = format!("ExpertPlacement {}", write.name);
        object.value["spec"] = serde_json::to_value(&write.spec)?;
        let wanted: DynamicObject = serde_json::from_value(object.value.clone())?;
        match api.create(&post_params(), &wanted).await {
            Err(error) if code(&error) == Some(409) => {
                let found = api.get(&write.name).await.map_err(Error::api("get", what))?;
                match owner_uid(&found) == Some(self.uid) || is_former(&found, self.key, self.uid) {
                    true => Ok(found),
                    false => Err(foreign(&object, &found)),
                }
            }
            created => created.map_err(Error::api("create", what)),
        }
    }

    /// Deletes what belongs to the deployment and is not wanted.
    async fn prune(&self, family: &Family, decision: &Decision) -> Result<Vec<Deed>, Error> {
        let wanted: BTreeSet<(Kind, &str)> = decision.apply.iter().map(|object| (object.kind, object.name.as_str())).collect();
        let kept = |kind: Kind, name: &str| wanted.contains(&(kind, name)) || decision.keep.contains(&(kind, name.to_owned()));
        let mut deeds = Vec::new();
        for ((kind, name), object) in &family.objects {
            if !object.stays_with(self.uid) || kept(*kind, name) {
                continue;
            }
            self.delete(*kind, name, object.uid()).await?;
            deeds.push(Deed { reason: "Deleted", message: format!("deleted {} {name}", kind.as_str()), warning: false });
        }
        Ok(deeds)
    }

    async fn delete(&self, kind: Kind, name: &str, uid: &str) -> Result<(), Error> {
        // A group's StatefulSet stays until its pods are gone, so that what still holds nodes is seen.
        let policy = if kind == Kind::StatefulSet { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let api = api(self.client, kind, &self.key.namespace);
        self.look_again(Duration::ZERO);
        gone(api.delete(name, &params).await).map_err(Error::api("delete", format!("{} {name}", kind.as_str())))?;
        if kind != Kind::StatefulSet {
            self.cache.deleted(self.key, kind, name);
        }
        Ok(())
    }
}

/// What is written together. The way to the pods comes first, because weights take longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Without these a pod is refused, and tried again only after a pause; or placed alone, or open to everybody for a moment.
    Wanted,
    /// The pods.
    Pods,
    /// What has no order.
    Others,
    /// A binding is refused before its role is there.
    Bindings,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Wanted, Self::Pods, Self::Others, Self::Bindings];

    fn of(kind: Kind) -> Self {
        match kind {
            Kind::ServiceAccount | Kind::NetworkPolicy | Kind::PodGroup | Kind::VolcanoPodGroup => Self::Wanted,
            Kind::StatefulSet => Self::Pods,
            Kind::RoleBinding => Self::Bindings,
            _ => Self::Others,
        }
    }
}

/// A StatefulSet's template never changes: its name says which revision it is. Where it would be rendered differently now (another
/// version of the operator, other nodes), it is taken as it is; only how many pods it has is this operator's.
fn freeze(wanted: &mut Object, known: &DynamicObject) {
    let replicas = wanted.value["spec"]["replicas"].take();
    wanted.value["spec"] = known.data.get("spec").cloned().unwrap_or(Value::Null);
    wanted.value["spec"]["replicas"] = replicas;
    wanted.value["metadata"]["annotations"] = json!(known.annotations());
}

/// Whether an object belongs to a deployment of the same name that is gone: the cluster's garbage collection has not come to it yet.
fn is_former(known: &DynamicObject, key: &Key, uid: &str) -> bool {
    let owners = known.owner_references();
    owners.iter().any(|owner| owner.kind == "MiniMaxM1Deployment" && owner.name == key.name && owner.uid != uid)
}

fn foreign(object: &Object, found: &DynamicObject) -> Error {
    Error::Foreign { kind: object.kind, name: object.name.clone(), owner: owner_words(found) }
}

/// A deletion of what is gone already, or was replaced, has succeeded.
fn gone<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Of what is rendered; how many pods a StatefulSet has changes without another rendering.
fn digest(object: &Object) -> String {
    let mut value = object.value.clone();
    if object.kind == Kind::StatefulSet {
        value["spec"]["replicas"] = Value::Null;
    }
    let hash = Sha256::digest(value.to_string().as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
