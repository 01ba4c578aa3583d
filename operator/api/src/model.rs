//! `spec.model`: where the weights lie and how they are read.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantity::Quantity;
use crate::words::words;

/// What is served.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.cache) || has(self.source.huggingFace) || has(self.source.url)").message("model.cache: only with source.huggingFace or source.url, which are fetched")
)]
pub struct Model {
    /// The name clients send as `model`. Letters, digits and `. _ / : -`, at most 128 characters. Default: `metadata.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"))]
    pub served_name: Option<String>,
    /// Where the checkpoint lies. Exactly one of its fields.
    pub source: ModelSource,
    /// Where workers keep what they fetch from `huggingFace` or `url`; other sources have no cache. Exactly one of its fields.
    /// Default: `emptyDir: {}`, because it is the one volume that every cluster admits: Pod Security `restricted` forbids host
    /// paths. It is the pod's own: pods of one node fetch the same file twice, and a new pod fetches everything again. For the
    /// full model (912 GB) give a `hostPath` or a claim. Routers fetch config and tokenizer only and need no cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ModelCache>,
    /// The model's `config.json` as an object, for the planner, which cannot read the source before pods exist.
    /// Default: MiniMax-M1's own. Workers compare it with the checkpoint and refuse a difference (`ArchitectureMismatch`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub config: Option<Map<String, Value>>,
    /// In which precision weights are held. `Auto`: bfloat16 on GPUs, float32 on CPUs. `BFloat16`. `Float32`. Default `Auto`.
    #[serde(default)]
    pub dtype: Dtype,
    /// Whether the experts' weights are quantized at load. `None`: as `dtype` says. `Int8`: one byte per weight and one
    /// scale per output row; halves the experts' memory at some cost in quality. Default `None`.
    #[serde(default)]
    pub expert_quantization: ExpertQuantization,
    /// The window: prompt and answer of one request together, in tokens. At most what the model's positions allow.
    /// The planner keeps KV memory for at least one sequence of this length. Default 1000000, MiniMax-M1's trained length.
    #[serde(default = "trained_context")]
    #[schemars(range(min = 1, max = 10_240_000))]
    pub max_context_tokens: u32,
}

/// MiniMax-M1's trained context; beyond it positions exist (10,240,000) but quality is unknown.
fn trained_context() -> u32 {
    1_000_000
}

/// An object of any shape: the API server keeps its fields as they are.
pub(crate) fn free_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

words! {
    /// Precision of the weights.
    #[derive(Default)]
    Dtype {
        /// bfloat16 on GPUs, float32 on CPUs.
        #[default]
        Auto,
        /// bfloat16 everywhere.
        BFloat16,
        /// float32 everywhere.
        Float32,
    }
}

words! {
    /// Quantization of the experts' weights.
    #[derive(Default)]
    ExpertQuantization {
        /// None.
        #[default]
        None,
        /// One byte per weight, one scale per output row.
        Int8,
    }
}

/// Where the checkpoint lies: exactly one field is set.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) + (has(self.huggingFace) ? 1 : 0) + (has(self.image) ? 1 : 0) + (has(self.url) ? 1 : 0) == 1").message("model.source: exactly one of persistentVolumeClaim, hostPath, huggingFace, image, url")
)]
pub struct ModelSource {
    /// A claim that holds the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSource>,
    /// A directory of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathSource>,
    /// A repository of the Hugging Face hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
    /// An OCI image, mounted as a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A web or object-store address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<UrlSource>,
}

/// A claim that holds the checkpoint.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PersistentVolumeClaimSource {
    /// Name of a PersistentVolumeClaim in the namespace of the deployment.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Directory of the checkpoint inside the volume, relative, without `..`. Default: the volume's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')").message("path: relative to the volume's root, without '..'"))]
    pub path: Option<String>,
}

/// A directory of the node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPathSource {
    /// Directory of the checkpoint: absolute, without `..`. In a file given to `m1ctl`, a relative path is resolved
    /// against that file's directory first.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')").message("hostPath.path: an absolute path without '..'"))]
    pub path: String,
}

/// Where workers keep what they fetch: exactly one field is set.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(has(self.hostPath) ? 1 : 0) + (has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.emptyDir) ? 1 : 0) == 1").message("model.cache: exactly one of hostPath, persistentVolumeClaim, emptyDir")
)]
pub struct ModelCache {
    /// A directory of the node, shared by the pods of a node: each file is fetched once per node, and stays. It must be there
    /// and user 65532 must be able to write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<CacheHostPath>,
    /// A claim, shared by all pods that mount it. With pods on several nodes it must be `ReadWriteMany`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<CacheClaim>,
    /// A directory that lives and dies with the pod. It outlives a restart of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<CacheEmptyDir>,
}

/// A directory of the node that workers may write.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheHostPath {
    /// The directory: absolute, without `..`.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')").message("cache.hostPath.path: an absolute path without '..'"))]
    pub path: String,
}

/// A claim that workers may write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheClaim {
    /// Name of a PersistentVolumeClaim in the namespace of the deployment.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// A directory of the pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheEmptyDir {
    /// Most bytes, as in `500Gi`; a pod that exceeds it is evicted. Default: what the node's disk has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// A repository of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HuggingFaceSource {
    /// `owner/name`, as in `MiniMaxAI/MiniMax-M1-80k`.
    #[schemars(length(min = 3, max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub repo: String,
    /// Branch, tag or commit. A commit is the one form that cannot change under a running deployment. Default `main`.
    #[serde(default = "main_branch")]
    #[schemars(length(min = 1, max = 128))]
    pub revision: String,
    /// Key of a Secret that holds an access token, for private and gated repositories. It is sent to the hub's own host only.
    /// Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<SecretKeyRef>,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// One key of a Secret in the namespace of the deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key inside it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// An OCI image, mounted as a volume (Kubernetes image volumes).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    /// Reference of the image; the checkpoint lies at its root.
    #[schemars(length(min = 1, max = 512))]
    pub reference: String,
}

/// A web or object-store address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlSource {
    /// `https://` or `http://` address of the checkpoint's directory; every file is fetched from `URL/FILE`. With a file
    /// `SHA256SUMS` beside the others (what `sha256sum *` writes) checksums are verified, else length and ETag. `s3://` and
    /// `gs://` are not implemented yet: give the bucket's `https://` address.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^(https?|s3|gs)://"))]
    pub url: String,
}
