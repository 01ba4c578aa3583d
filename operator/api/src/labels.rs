//! Labels and annotations of every object that belongs to a deployment. Recommended labels of Kubernetes first, then our
//! own under one prefix: the same set as LeaderWorkerSet's, so that people and tools recognise them.

/// `app.kubernetes.io/name` of every object.
pub const APP: &str = "minimax-m1";
/// Who writes the objects: field manager and `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "minimax-m1-operator";

/// Recommended label: the application.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// Recommended label: which deployment.
pub const APP_INSTANCE: &str = "app.kubernetes.io/instance";
/// Recommended label: `worker` or `router`.
pub const APP_COMPONENT: &str = "app.kubernetes.io/component";
/// Recommended label: the whole that it is part of.
pub const APP_PART_OF: &str = "app.kubernetes.io/part-of";
/// Recommended label: who writes it.
pub const APP_MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Name of the deployment.
pub const NAME: &str = "serving.minimax-m1.dev/name";
/// Index of the replica group.
pub const GROUP_INDEX: &str = "serving.minimax-m1.dev/group-index";
/// Hash of the revision: a request never crosses it.
pub const REVISION: &str = "serving.minimax-m1.dev/template-revision-hash";
/// Pods of the group.
pub const SIZE: &str = "serving.minimax-m1.dev/size";
/// Index of the pod in its group, as the StatefulSet controller writes it.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// llm-d's labels, for its router and its documents: the model's name.
pub const LLMD_MODEL: &str = "llm-d.ai/model";
/// llm-d: this pod serves inference.
pub const LLMD_SERVING: &str = "llm-d.ai/inference-serving";

/// Annotation of a deployment: when a restart was asked for, RFC 3339. A new value is a new revision.
pub const RESTARTED_AT: &str = "serving.minimax-m1.dev/restartedAt";
/// Annotation of a deployment: gives groups that used up their restart budget another one: since when, RFC 3339.
pub const RESUMED_AT: &str = "serving.minimax-m1.dev/resumedAt";
/// Annotation of a deployment: asks for a new certificate of its members. The value is free; a new one counts.
pub const RENEW_CERTIFICATES_AT: &str = "serving.minimax-m1.dev/renewCertificatesAt";
/// Annotation of a certificate's Secret: the last such value that was obeyed.
pub const RENEWED_FOR: &str = "serving.minimax-m1.dev/renewed-for";
/// Annotation of a certificate's Secret: since when its newest authority is believed, RFC 3339.
pub const AUTHORITY_SINCE: &str = "serving.minimax-m1.dev/authority-since";
/// Annotation of a child: digest of what was applied, so that what the spec no longer wants is noticed.
pub const APPLIED: &str = "serving.minimax-m1.dev/applied";
/// Annotation of a StatefulSet: version of the operator that rendered its template, which another version leaves as it is.
pub const RENDERED_BY: &str = "serving.minimax-m1.dev/rendered-by";
/// Annotation of a StatefulSet: bytes of a GPU that its revision was planned for, 0 for CPUs. Nodes that come later change it no more.
pub const GPU_MEMORY: &str = "serving.minimax-m1.dev/gpu-memory";
/// Annotation of an ExpertPlacement: since when its group takes no new requests, RFC 3339.
pub const CLOSED_SINCE: &str = "serving.minimax-m1.dev/closed-since";
