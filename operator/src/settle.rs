//! From a deployment as written to what can be carried out: validated, planned, its images resolved, or refused with the words that
//! `m1ctl plan` has.

use kube::ResourceExt;
use m1_arch::{Architecture, Bytes};
use m1_operator_api::{ConditionType, DeploymentStatus, FieldError, FieldReason, MiniMaxM1Deployment, Reason, labels};
use m1_operator_plan::render::Images;
use m1_operator_plan::{Checked, Environment, Plan, Refusal, Revision, Runtime, condition, plan, runnable, validate};
use serde_json::Value;

/// An accepted deployment.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its checked spec.
    pub checked: Checked,
    /// Its plan.
    pub plan: Plan,
    /// Its images.
    pub images: Images,
    /// Its revision.
    pub revision: Revision,
}

/// Validates and plans. `memory` says what a GPU has where the spec does not; 0 stands for CPUs.
///
/// # Errors
/// What stands in `Accepted=False`.
pub fn settle(
    deployment: &MiniMaxM1Deployment,
    defaults: &Images,
    memory: &dyn Fn(&Checked, &Revision) -> Option<Bytes>,
) -> Result<Settled, Refusal> {
    let checked = validate(deployment).map_err(|errors| refused(&errors))?;
    runnable(&checked, Runtime::Cluster).map_err(|errors| refused(&errors))?;
    let architecture = match &checked.config {
        Some(config) => Architecture::from_value(&Value::Object(config.clone()))
            .map_err(|error| Refusal { reason: Reason::InvalidSpec, message: format!("spec.model.config: {error}") })?,
        None => Architecture::minimax_m1(),
    };
    let restarted = deployment.annotations().get(labels::RESTARTED_AT).map(String::as_str);
    let images = images(&checked, deployment, defaults, restarted);
    let revision = Revision::of(&checked, &images.worker, restarted);
    let environment = Environment { memory_per_gpu: memory(&checked, &revision), ..Environment::new(architecture) };
    let plan = plan(&checked, &environment).map_err(|error| Refusal { reason: error.condition(), message: error.to_string() })?;
    Ok(Settled { checked, plan, images, revision })
}

/// What the spec says; else what was resolved before, so that an upgrade of the operator restarts nothing; else the default. A restart on
/// request resolves anew, and so does what never served and has no image.
fn images(checked: &Checked, deployment: &MiniMaxM1Deployment, defaults: &Images, restarted: Option<&str>) -> Images {
    let status = deployment.status.as_ref();
    let status = status.filter(|status| status.restarted_at.as_deref() == restarted && !lacks_images(status));
    let spec = checked.spec();
    let first = |given: &Option<String>, known: Option<&String>, default: &String| {
        given.clone().or_else(|| known.cloned()).unwrap_or_else(|| default.clone())
    };
    Images {
        worker: first(&spec.worker.image, status.and_then(|status| status.worker_image.as_ref()), &defaults.worker),
        router: first(&spec.router.image, status.and_then(|status| status.router_image.as_ref()), &defaults.router),
    }
}

/// Whether nothing ever served for want of an image.
fn lacks_images(status: &DeploymentStatus) -> bool {
    let ready = condition(status, ConditionType::Ready);
    let lacks = ready.is_some_and(|ready| matches!(ready.reason, Reason::ImageUnavailable | Reason::RouterUnavailable));
    lacks && status.groups.iter().all(|group| group.epoch == 0)
}

fn refused(errors: &[FieldError]) -> Refusal {
    let missing = errors.iter().all(|error| error.reason == FieldReason::NotImplemented);
    let message: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Refusal { reason: if missing { Reason::NotImplemented } else { Reason::InvalidSpec }, message: message.join("; ") }
}

#[cfg(test)]
mod tests {
    use m1_operator_api::{Condition, ConditionStatus, GroupStatus};

    use super::*;

    fn deployment(restarted: Option<&str>, status: DeploymentStatus) -> MiniMaxM1Deployment {
        let annotations: serde_json::Map<String, Value> =
            restarted.map(|time| (labels::RESTARTED_AT.to_owned(), Value::from(time))).into_iter().collect();
        let object = serde_json::json!({
            "metadata": {"name": "m1", "namespace": "models", "annotations": annotations},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}},
            "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn known(restarted: Option<&str>, ready: Reason, epoch: u64) -> DeploymentStatus {
        let ready = Condition {
            kind: ConditionType::Ready,
            status: ConditionStatus::False,
            reason: ready,
            message: String::new(),
            last_transition_time: "2026-01-01T00:00:00Z".to_owned(),
            observed_generation: None,
        };
        DeploymentStatus {
            worker_image: Some("w:1".to_owned()),
            router_image: Some("r:1".to_owned()),
            restarted_at: restarted.map(str::to_owned),
            conditions: vec![ready],
            groups: vec![GroupStatus { epoch, ..GroupStatus::default() }],
            ..DeploymentStatus::default()
        }
    }

    #[test]
    fn images_are_resolved_once_and_at_a_restart() {
        let defaults = Images { worker: "w:2".to_owned(), router: "r:2".to_owned() };
        let resolved = |deployment: MiniMaxM1Deployment| {
            let restarted = deployment.annotations().get(labels::RESTARTED_AT).map(String::as_str);
            let images = images(&validate(&deployment).unwrap(), &deployment, &defaults, restarted);
            (images.worker, images.router)
        };
        let (old, new) = (("w:1".to_owned(), "r:1".to_owned()), ("w:2".to_owned(), "r:2".to_owned()));
        assert_eq!(resolved(deployment(None, known(None, Reason::Starting, 0))), old, "another default restarts nothing");
        let (first, second) = (Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z"));
        assert_eq!(resolved(deployment(first, known(first, Reason::Serving, 1))), old);
        assert_eq!(resolved(deployment(second, known(first, Reason::Serving, 1))), new, "a restart is asked for");
        assert_eq!(resolved(deployment(None, known(None, Reason::ImageUnavailable, 0))), new, "there is nothing to keep");
        assert_eq!(resolved(deployment(None, known(None, Reason::ImageUnavailable, 1))), old, "it served with it");
    }
}
