//! From a deployment as written to what can be carried out: validated, planned, its images resolved, or refused with the words that
//! `m1ctl plan` has.

use kube::ResourceExt;
use m1_arch::{Architecture, Bytes};
use m1_operator_api::{FieldError, FieldReason, MiniMaxM1Deployment, Reason, labels};
use m1_operator_plan::render::Images;
use m1_operator_plan::{Checked, Environment, Plan, Refusal, Revision, Runtime, plan, runnable, validate};
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
    let images = images(&checked, deployment, defaults);
    let restarted = deployment.annotations().get(labels::RESTARTED_AT).map(String::as_str);
    let revision = Revision::of(&checked, &images.worker, restarted);
    let environment = Environment { memory_per_gpu: memory(&checked, &revision), ..Environment::new(architecture) };
    let plan = plan(&checked, &environment).map_err(|error| Refusal { reason: error.condition(), message: error.to_string() })?;
    Ok(Settled { checked, plan, images, revision })
}

/// What the spec says; else what was resolved before, so that an upgrade of the operator restarts nothing; else the default.
fn images(checked: &Checked, deployment: &MiniMaxM1Deployment, defaults: &Images) -> Images {
    let status = deployment.status.as_ref();
    let spec = checked.spec();
    let first = |given: &Option<String>, known: Option<&String>, default: &String| {
        given.clone().or_else(|| known.cloned()).unwrap_or_else(|| default.clone())
    };
    Images {
        worker: first(&spec.worker.image, status.and_then(|status| status.worker_image.as_ref()), &defaults.worker),
        router: first(&spec.router.image, status.and_then(|status| status.router_image.as_ref()), &defaults.router),
    }
}

fn refused(errors: &[FieldError]) -> Refusal {
    let missing = errors.iter().all(|error| error.reason == FieldReason::NotImplemented);
    let message: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Refusal { reason: if missing { Reason::NotImplemented } else { Reason::InvalidSpec }, message: message.join("; ") }
}
