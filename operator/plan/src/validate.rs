//! The loose spec becomes checked values, or every error at once.

use m1_arch::Bytes;
use m1_operator_api::{
    Dtype, ExpertQuantization, FieldError, MiniMaxM1Deployment, MiniMaxM1DeploymentSpec, ModelSource, Placement, ResourceName,
    SecretKeyRef, check_deployment,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::rules::broken_rules;

/// Where the checkpoint lies.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A directory of the node, absolute.
    HostPath {
        /// The directory.
        path: String,
    },
    /// A directory of a volume.
    PersistentVolumeClaim {
        /// Name of the claim.
        claim_name: String,
        /// Directory inside the volume; empty for its root.
        path: String,
    },
    /// A repository of the Hugging Face hub.
    HuggingFace {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Secret with the token.
        #[serde(skip_serializing_if = "Option::is_none")]
        token_secret: Option<SecretKeyRef>,
    },
    /// An OCI image.
    Image {
        /// Its reference.
        reference: String,
    },
    /// A web or object-store address.
    Url {
        /// The address.
        url: String,
    },
}

impl Source {
    fn of(source: &ModelSource) -> Option<Self> {
        if let Some(source) = &source.host_path {
            return Some(Source::HostPath { path: source.path.clone() });
        }
        if let Some(claim) = &source.persistent_volume_claim {
            let path = claim.path.clone().unwrap_or_default();
            return Some(Source::PersistentVolumeClaim { claim_name: claim.claim_name.clone(), path });
        }
        if let Some(hub) = &source.hugging_face {
            let token_secret = hub.token_secret.clone();
            return Some(Source::HuggingFace { repo: hub.repo.clone(), revision: hub.revision.clone(), token_secret });
        }
        if let Some(image) = &source.image {
            return Some(Source::Image { reference: image.reference.clone() });
        }
        source.url.as_ref().map(|source| Source::Url { url: source.url.clone() })
    }

    /// The field of `spec.model.source` that was given.
    pub fn field(&self) -> &'static str {
        match self {
            Source::HostPath { .. } => "hostPath",
            Source::PersistentVolumeClaim { .. } => "persistentVolumeClaim",
            Source::HuggingFace { .. } => "huggingFace",
            Source::Image { .. } => "image",
            Source::Url { .. } => "url",
        }
    }
}

/// A spec whose values are known to be sound. Only [`validate`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Name of the deployment.
    pub name: ResourceName,
    /// The name clients send.
    pub served_name: String,
    /// Where the checkpoint lies.
    pub source: Source,
    /// The model's `config.json`, where the manifest carries it.
    pub config: Option<Map<String, Value>>,
    /// Precision of the weights.
    pub dtype: Dtype,
    /// Quantization of the experts.
    pub expert_quantization: ExpertQuantization,
    /// The window in tokens, at least 1.
    pub max_context: u32,
    /// Replica groups.
    pub replicas: u32,
    /// GPUs per pod, at least 1.
    pub tensor: u32,
    /// Pods per group, at least 1.
    pub pods: u32,
    /// How experts are placed.
    pub placement: Placement,
    /// Copies of every expert, 1 to `pods`.
    pub copies: u32,
    /// Places per pod for hot experts.
    pub redundant_slots: u32,
    /// Memory of one GPU, where the manifest says.
    pub memory_per_gpu: Option<Bytes>,
    /// Memory limit of a pod, where the manifest has one.
    pub pod_memory: Option<Bytes>,
    /// Compute threads of a pod: its CPU limit, rounded down, at least 1.
    pub threads: Option<u32>,
    /// The spec it was made from, its defaults filled in.
    spec: Box<MiniMaxM1DeploymentSpec>,
}

impl Checked {
    /// The spec it was made from, its defaults filled in.
    pub fn spec(&self) -> &MiniMaxM1DeploymentSpec {
        &self.spec
    }
}

/// Checks a deployment: its structure against the CRD's schema, then the CRD's rules.
///
/// # Errors
/// Everything that is wrong, each with field, value and what is allowed.
pub fn validate(deployment: &MiniMaxM1Deployment) -> Result<Checked, Vec<FieldError>> {
    let manifest = serde_json::to_value(deployment).map_err(|error| vec![FieldError::malformed(error.to_string())])?;
    let mut errors = check_deployment(&manifest);
    let spec = &deployment.spec;
    errors.extend(broken_rules(spec));
    errors.extend(spec.worker.pod_template.iter().flat_map(crate::render::check_pod_template));
    let text = deployment.metadata.name.as_deref().unwrap_or_default();
    let name = ResourceName::new(text);
    if let (Err(error), Some(_)) = (&name, &deployment.metadata.name) {
        errors.push(FieldError::invalid("metadata.name", text, error.to_string()));
    }
    match (name, Source::of(&spec.model.source)) {
        (Ok(name), Some(source)) if errors.is_empty() => Ok(checked(name, source, spec)),
        _ => Err(errors),
    }
}

/// Carries checked values over; cannot fail.
fn checked(name: ResourceName, source: Source, spec: &MiniMaxM1DeploymentSpec) -> Checked {
    let amount = |quantity: Option<&m1_operator_api::Quantity>| quantity.and_then(|quantity| quantity.amount().ok());
    let threads = amount(spec.worker.resources.limits.get("cpu")).map(|cpus| (cpus as u32).max(1));
    Checked {
        served_name: spec.model.served_name.clone().unwrap_or_else(|| name.to_string()),
        name,
        source,
        config: spec.model.config.clone(),
        dtype: spec.model.dtype,
        expert_quantization: spec.model.expert_quantization,
        max_context: spec.model.max_context_tokens,
        replicas: spec.replicas,
        tensor: spec.parallelism.tensor,
        pods: spec.parallelism.expert,
        placement: spec.experts.placement,
        copies: spec.experts.copies,
        redundant_slots: spec.experts.redundant_slots_per_pod,
        memory_per_gpu: amount(spec.worker.memory_per_gpu.as_ref()).map(|bytes| Bytes(bytes as u64)),
        pod_memory: amount(spec.worker.resources.limits.get("memory")).map(|bytes| Bytes(bytes as u64)),
        threads,
        spec: Box::new(spec.clone()),
    }
}
