//! How members of a deployment know each other: the Secret with their certificate in routers and workers, and cert-manager's order for
//! it. The operator's own certificates are made by `m1-operator`, because their content is no plan.

use m1_operator_api::TlsMode;
use serde_json::{Value, json};

use super::Scene;
use crate::{Kind, Object};

/// Where the Secret is mounted.
const MOUNT: &str = "/tls";
/// How many hours a certificate is good.
pub const CERTIFICATE_HOURS: u64 = 90 * 24;
/// How many hours before its end there is a new one.
pub const RENEW_HOURS: u64 = 30 * 24;

/// The name that every member's certificate is for.
pub fn name(deployment: &str, namespace: &str) -> String {
    format!("{deployment}.{namespace}.svc")
}

/// The Secret as a volume, its mount, and the flags that name it.
pub struct Volume {
    /// Entry of `volumes`.
    pub volume: Value,
    /// Entry of `volumeMounts`.
    pub mount: Value,
    /// Arguments of the process.
    pub flags: [String; 4],
}

/// The Secret in a pod. An `optional` one may come later.
pub fn volume(scene: &Scene<'_>, optional: bool) -> Volume {
    let secret = scene.checked.name.members_certificate();
    let name = name(scene.checked.name.as_str(), scene.namespace);
    Volume {
        volume: json!({"name": "tls", "secret": {"secretName": secret, "optional": optional}}),
        mount: json!({"name": "tls", "mountPath": MOUNT, "readOnly": true}),
        flags: ["--tls-dir", MOUNT, "--tls-name", &name].map(str::to_owned),
    }
}

/// Whether members of the present revision speak encrypted.
pub fn is_encrypted(scene: &Scene<'_>) -> bool {
    scene.checked.spec().tls.mode != TlsMode::Off
}

/// cert-manager's order for the certificate, where it is asked for.
pub fn certificate(scene: &Scene<'_>) -> Option<Object> {
    let tls = &scene.checked.spec().tls;
    let issuer = tls.issuer_ref.as_ref().filter(|_| tls.mode == TlsMode::CertManager)?;
    let secret = scene.checked.name.members_certificate();
    let body = json!({"spec": {
        "secretName": secret,
        "dnsNames": [name(scene.checked.name.as_str(), scene.namespace)],
        "usages": ["digital signature", "server auth", "client auth"],
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "duration": format!("{CERTIFICATE_HOURS}h0m0s"),
        "renewBefore": format!("{RENEW_HOURS}h0m0s"),
        "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
    }});
    Some(scene.object(Kind::Certificate, &secret, "tls", body))
}
