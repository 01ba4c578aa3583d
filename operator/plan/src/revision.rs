//! The revision of a deployment: a hash of what its worker processes can notice. Groups of different revisions never share a
//! request, and a new revision replaces groups. Nothing that this program merely computes or renders is in it, so that an
//! upgrade of the operator restarts nothing.

use std::collections::BTreeMap;
use std::fmt;

use m1_operator_api::{LocalObjectRef, Loss, Model, Parallelism, Quantity, Scheduling, TlsMode, Toleration};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::Checked;

/// Kubernetes' own alphabet for generated names: no vowels, so no words; no digits that look like letters.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// 27^6 = 387 million: two revisions of one deployment do not meet, and the StatefulSet's name stays below 52 characters.
const LENGTH: usize = 6;

/// Hash of a revision: six characters that fit into a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(String);

impl Revision {
    /// As it stands in a label. Nothing is checked: what does not come from [`Revision::of`] equals none of them.
    pub fn from_label(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The revision of a checked spec with its image resolved. `restarted_at` is the annotation that asks for a restart.
    pub fn of(checked: &Checked, image: &str, restarted_at: Option<&str>) -> Self {
        let text = serde_json::to_string(&Noticed::of(checked, image, restarted_at)).unwrap_or_default();
        Self::hash(text.as_bytes())
    }

    fn hash(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let letters = (0..LENGTH as u32).map(|place| ALPHABET[(number / 27_u64.pow(place) % 27) as usize] as char);
        Self(letters.collect())
    }

    /// The hash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What worker processes notice. A field added here must be left out while it has its default, or every deployment restarts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Noticed<'a> {
    image: &'a str,
    model: &'a Model,
    parallelism: &'a Parallelism,
    copies: u32,
    redundant_slots: u32,
    loss: &'a Loss,
    memory_per_gpu: Option<&'a Quantity>,
    requests: &'a BTreeMap<String, Quantity>,
    limits: &'a BTreeMap<String, Quantity>,
    node_selector: &'a BTreeMap<String, String>,
    tolerations: &'a [Toleration],
    image_pull_secrets: &'a [LocalObjectRef],
    pod_template: Option<&'a Map<String, Value>>,
    drain_seconds: u32,
    scheduling: &'a Scheduling,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restarted_at: Option<&'a str>,
}

impl<'a> Noticed<'a> {
    fn of(checked: &'a Checked, image: &'a str, restarted_at: Option<&'a str>) -> Self {
        let spec = checked.spec();
        let worker = &spec.worker;
        Self {
            image,
            model: &spec.model,
            parallelism: &spec.parallelism,
            copies: spec.experts.copies,
            redundant_slots: spec.experts.redundant_slots_per_pod,
            loss: &spec.experts.loss,
            memory_per_gpu: worker.memory_per_gpu.as_ref(),
            requests: &worker.resources.requests,
            limits: &worker.resources.limits,
            node_selector: &worker.node_selector,
            tolerations: &worker.tolerations,
            image_pull_secrets: &worker.image_pull_secrets,
            pod_template: worker.pod_template.as_ref(),
            drain_seconds: worker.drain_seconds,
            scheduling: &spec.scheduling,
            tls: (spec.tls.mode != TlsMode::Off).then_some(spec.tls.mode),
            restarted_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_fits_into_a_name() {
        let revision = Revision::hash(b"x");
        assert_eq!(revision.as_str().len(), LENGTH);
        assert!(revision.as_str().bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_ne!(revision, Revision::hash(b"y"));
    }
}
