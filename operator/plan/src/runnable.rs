//! What a runtime of this build cannot do yet. A field that asks for it is refused by name, never ignored; fields that
//! mean something only to a cluster are listed, so that they can be shown.

use m1_operator_api::{Dtype, Experts, FieldError, LossPolicy, MiniMaxM1DeploymentSpec, Rollout, Service, Worker};

use crate::{Checked, Source};

/// Where a plan is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Processes on this machine, started by `m1ctl`.
    Local,
}

/// Refuses what the runtime does not run yet.
///
/// # Errors
/// Every field that asks for it, as `NotImplemented`.
pub fn runnable(checked: &Checked, runtime: Runtime) -> Result<(), Vec<FieldError>> {
    let Runtime::Local = runtime;
    let mut wanted = Wanted::default();
    model(checked, &mut wanted);
    experts(&checked.spec().experts, &mut wanted);
    serving(checked.spec(), &mut wanted);
    if wanted.0.is_empty() { Ok(()) } else { Err(wanted.0) }
}

/// What is asked for and not built.
#[derive(Default)]
struct Wanted(Vec<FieldError>);

impl Wanted {
    /// Notes the field if it asks for something beyond `only`.
    fn refuse(&mut self, asked: bool, field: &str, given: impl std::fmt::Display, only: &str) {
        if asked {
            let message = format!("not implemented by the local runtime yet; it runs {only}");
            self.0.push(FieldError::not_implemented(format!("spec.{field}"), given, message));
        }
    }
}

fn model(checked: &Checked, wanted: &mut Wanted) {
    let elsewhere = !matches!(checked.source, Source::HostPath { .. });
    wanted.refuse(elsewhere, &format!("model.source.{}", checked.source.field()), "given", "hostPath");
    wanted.refuse(checked.dtype == Dtype::BFloat16, "model.dtype", checked.dtype, "Auto and Float32");
    let quantized = checked.expert_quantization != m1_operator_api::ExpertQuantization::None;
    wanted.refuse(quantized, "model.expertQuantization", checked.expert_quantization, "None");
    wanted.refuse(checked.memory_per_gpu.is_some(), "worker.memoryPerGpu", "given", "on the CPU, without this field");
    wanted.refuse(checked.tensor != 1, "parallelism.tensor", checked.tensor, "1");
    wanted.refuse(checked.replicas != 1, "replicas", checked.replicas, "1");
}

fn experts(experts: &Experts, wanted: &mut Wanted) {
    let loss = Experts::default().loss;
    wanted.refuse(experts.copies != 1, "experts.copies", experts.copies, "1");
    wanted.refuse(experts.redundant_slots_per_pod != 0, "experts.redundantSlotsPerPod", experts.redundant_slots_per_pod, "0");
    let mode = experts.rebalance.mode;
    wanted.refuse(mode != m1_operator_api::RebalanceMode::Off, "experts.rebalance.mode", mode, "Off");
    wanted.refuse(experts.loss.policy != LossPolicy::Wait, "experts.loss.policy", experts.loss.policy, "Wait");
    let seconds = experts.loss.wait_seconds;
    wanted.refuse(seconds != loss.wait_seconds, "experts.loss.waitSeconds", seconds, &loss.wait_seconds.to_string());
}

fn serving(spec: &MiniMaxM1DeploymentSpec, wanted: &mut Wanted) {
    let (auth, limits, queue) = (&spec.router.auth, &spec.router.limits, &spec.router.queue);
    let usual = m1_operator_api::Queue::default();
    wanted.refuse(spec.router.replicas != 1, "router.replicas", spec.router.replicas, "1");
    wanted.refuse(auth.mode != m1_operator_api::AuthMode::Off, "router.auth.mode", auth.mode, "Off");
    wanted.refuse(limits.max_output_tokens.is_some(), "router.limits.maxOutputTokens", "given", "without it");
    wanted.refuse(limits.max_body.is_some(), "router.limits.maxBody", "given", "without it");
    wanted.refuse(queue.max_requests != usual.max_requests, "router.queue.maxRequests", queue.max_requests, "the default");
    wanted.refuse(
        queue.max_wait_seconds != usual.max_wait_seconds,
        "router.queue.maxWaitSeconds",
        queue.max_wait_seconds,
        "the default",
    );
    let scaling = spec.autoscaling.mode;
    wanted.refuse(scaling != m1_operator_api::AutoscalingMode::Off, "autoscaling.mode", scaling, "Off");
    wanted.refuse(spec.tls.mode != m1_operator_api::TlsMode::Off, "tls.mode", spec.tls.mode, "Off");
    wanted.refuse(spec.rollout.paused, "rollout.paused", true, "false");
}

/// Fields that are set and mean nothing to the runtime, because it starts processes rather than pods.
pub fn unused(checked: &Checked, runtime: Runtime) -> Vec<&'static str> {
    let Runtime::Local = runtime;
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
