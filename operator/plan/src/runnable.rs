//! What a runtime of this build cannot do yet. A field that asks for it is refused by name, never ignored; fields that
//! mean something only to a cluster are listed, so that they can be shown.

use m1_operator_api::{Dtype, Experts, FieldError, LossPolicy, MiniMaxM1DeploymentSpec, Rollout, Service, Worker};

use crate::{Checked, Source};

/// Where a plan is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Processes on this machine, started by `m1ctl`.
    Local,
    /// Pods of a cluster, made by the operator.
    Cluster,
}

impl Runtime {
    fn as_str(self) -> &'static str {
        match self {
            Runtime::Local => "the local runtime",
            Runtime::Cluster => "the operator",
        }
    }
}

/// Refuses what the runtime does not run yet.
///
/// # Errors
/// Every field that asks for it, as `NotImplemented`.
pub fn runnable(checked: &Checked, runtime: Runtime) -> Result<(), Vec<FieldError>> {
    let mut wanted = Wanted { runtime, errors: Vec::new() };
    model(checked, &mut wanted);
    experts(&checked.spec().experts, &mut wanted);
    serving(checked.spec(), &mut wanted);
    if runtime == Runtime::Local {
        processes(checked, &mut wanted);
    }
    if wanted.errors.is_empty() { Ok(()) } else { Err(wanted.errors) }
}

/// What is asked for and not built.
struct Wanted {
    runtime: Runtime,
    errors: Vec<FieldError>,
}

impl Wanted {
    /// Notes the field if it asks for something beyond `only`.
    fn refuse(&mut self, asked: bool, field: &str, given: impl std::fmt::Display, only: &str) {
        if asked {
            let message = format!("not implemented by {} yet; it runs {only}", self.runtime.as_str());
            self.errors.push(FieldError::not_implemented(format!("spec.{field}"), given, message));
        }
    }
}

fn model(checked: &Checked, wanted: &mut Wanted) {
    match (wanted.runtime, &checked.source) {
        (Runtime::Local, source) => {
            let field = format!("model.source.{}", source.field());
            wanted.refuse(!matches!(source, Source::HostPath { .. }), &field, "given", "hostPath");
        }
        (Runtime::Cluster, Source::Url { url }) => {
            let only = "https:// and http://: give the bucket's https:// address, or another source";
            wanted.refuse(!url.starts_with("http"), "model.source.url.url", url, only);
        }
        (Runtime::Cluster, _) => {}
    }
    wanted.refuse(checked.dtype == Dtype::BFloat16, "model.dtype", checked.dtype, "Auto and Float32");
    let quantized = checked.expert_quantization != m1_operator_api::ExpertQuantization::None;
    wanted.refuse(quantized, "model.expertQuantization", checked.expert_quantization, "None");
    wanted.refuse(checked.tensor != 1, "parallelism.tensor", checked.tensor, "1");
}

fn experts(experts: &Experts, wanted: &mut Wanted) {
    wanted.refuse(experts.copies != 1, "experts.copies", experts.copies, "1");
    wanted.refuse(experts.redundant_slots_per_pod != 0, "experts.redundantSlotsPerPod", experts.redundant_slots_per_pod, "0");
    let mode = experts.rebalance.mode;
    wanted.refuse(mode != m1_operator_api::RebalanceMode::Off, "experts.rebalance.mode", mode, "Off");
    wanted.refuse(experts.loss.policy != LossPolicy::Wait, "experts.loss.policy", experts.loss.policy, "Wait");
}

fn serving(spec: &MiniMaxM1DeploymentSpec, wanted: &mut Wanted) {
    use m1_operator_api::AutoscalingMode::{External, Off};
    let scaling = spec.autoscaling.mode;
    let (asked, only) = match wanted.runtime {
        Runtime::Local => (scaling != Off, "Off"),
        // Somebody else writes `/scale`.
        Runtime::Cluster => (!matches!(scaling, Off | External), "Off and External"),
    };
    wanted.refuse(asked, "autoscaling.mode", scaling, only);
    wanted.refuse(spec.monitoring.dashboards, "monitoring.dashboards", true, "false");
}

/// What only pods can be asked for.
fn processes(checked: &Checked, wanted: &mut Wanted) {
    let spec = checked.spec();
    let gpus = checked.memory_per_gpu.is_some_and(|memory| memory.0 > 0);
    wanted.refuse(gpus, "worker.memoryPerGpu", "given", "0, for CPUs");
    wanted.refuse(checked.replicas != 1, "replicas", checked.replicas, "1");
    let seconds = spec.experts.loss.wait_seconds;
    let usual = Experts::default().loss.wait_seconds;
    wanted.refuse(seconds != usual, "experts.loss.waitSeconds", seconds, &usual.to_string());
    let (auth, limits, queue) = (&spec.router.auth, &spec.router.limits, &spec.router.queue);
    let usual = m1_operator_api::Queue::default();
    wanted.refuse(spec.router.replicas != 1, "router.replicas", spec.router.replicas, "1");
    wanted.refuse(auth.mode != m1_operator_api::AuthMode::Off, "router.auth.mode", auth.mode, "Off");
    wanted.refuse(limits.max_output_tokens.is_some(), "router.limits.maxOutputTokens", "given", "without it");
    wanted.refuse(limits.max_body.is_some(), "router.limits.maxBody", "given", "without it");
    wanted.refuse(queue.max_requests != usual.max_requests, "router.queue.maxRequests", queue.max_requests, "the default");
    let wait = queue.max_wait_seconds;
    wanted.refuse(wait != usual.max_wait_seconds, "router.queue.maxWaitSeconds", wait, "the default");
    wanted.refuse(spec.tls.mode != m1_operator_api::TlsMode::Off, "tls.mode", spec.tls.mode, "Off");
    wanted.refuse(spec.rollout.paused, "rollout.paused", true, "false");
}

/// Fields that are set and mean nothing to the runtime, because it starts processes rather than pods.
pub fn unused(checked: &Checked, runtime: Runtime) -> Vec<&'static str> {
    if runtime == Runtime::Cluster {
        return Vec::new();
    }
    let (spec, worker, usual) = (checked.spec(), &checked.spec().worker, Worker::default());
    let requests = !worker.resources.requests.is_empty() || worker.resources.limits.keys().any(|name| name != "cpu");
    let router_resources = !spec.router.resources.requests.is_empty() || !spec.router.resources.limits.is_empty();
    let fields = [
        (worker.image.is_some(), "spec.worker.image"),
        (!worker.image_pull_secrets.is_empty(), "spec.worker.imagePullSecrets"),
        (requests, "spec.worker.resources"),
        (!worker.node_selector.is_empty(), "spec.worker.nodeSelector"),
        (!worker.tolerations.is_empty(), "spec.worker.tolerations"),
        (worker.pod_template.is_some(), "spec.worker.podTemplate"),
        (worker.drain_seconds != usual.drain_seconds, "spec.worker.drainSeconds"),
        (worker.restart_budget != usual.restart_budget, "spec.worker.restartBudget"),
        (worker.unreachable_seconds != usual.unreachable_seconds, "spec.worker.unreachableSeconds"),
        (spec.router.image.is_some(), "spec.router.image"),
        (router_resources, "spec.router.resources"),
        (spec.router.service != Service::default(), "spec.router.service"),
        (Rollout { paused: false, ..spec.rollout.clone() } != Rollout::default(), "spec.rollout"),
        (spec.scheduling != m1_operator_api::Scheduling::default(), "spec.scheduling"),
        (spec.monitoring != m1_operator_api::Monitoring::default(), "spec.monitoring"),
    ];
    fields.into_iter().filter(|(set, _)| *set).map(|(_, field)| field).collect()
}
