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
/// Beyond 2^53 a fraction cannot be told from none.
const WHOLE: f64 = 9_007_199_254_740_992.0;
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
        let mut noticed = serde_json::to_value(Noticed::of(checked, image, restarted_at)).unwrap_or_default();
        // What clients call the model is the routers' business.
        if let Some(model) = noticed["model"].as_object_mut() {
            model.remove("servedName");
        }
        Self::hash(canonical(noticed).to_string().as_bytes())
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

/// A value as every writer agrees on it: keys sorted, whole numbers without a fraction. The API server sorts keys and stores `2.0` as
/// `2`; a file has what its author wrote.
pub fn canonical(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<String, Value> = fields.into_iter().map(|(key, value)| (key, canonical(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(canonical).collect()),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < WHOLE => Value::from(float as i64),
            _ => Value::Number(number),
        },
        other => other,
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

    #[test]
    fn a_file_and_the_api_server_mean_the_same() {
        let file: Value = serde_json::from_str(r#"{"b": 2.0, "a": [{"d": 1e-05, "c": 10000000}]}"#).unwrap();
        let server: Value = serde_json::from_str(r#"{"a": [{"c": 10000000, "d": 0.00001}], "b": 2}"#).unwrap();
        assert_eq!(canonical(file).to_string(), canonical(server).to_string());
    }
}
