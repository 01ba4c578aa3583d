//! The CRDs as files: what the API server is given, word for word.

use std::sync::OnceLock;

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ExpertPlacement, MiniMaxM1Deployment};

/// One CRD as it is written to disk.
#[derive(Clone, Debug, PartialEq)]
pub struct CrdFile {
    /// File name.
    pub name: &'static str,
    /// The object.
    pub object: Value,
}

/// Every CRD of this API.
pub fn crd_files() -> Vec<CrdFile> {
    let files = [
        ("minimaxm1deployments.yaml", serde_json::to_value(MiniMaxM1Deployment::crd())),
        ("expertplacements.yaml", serde_json::to_value(ExpertPlacement::crd())),
    ];
    files.into_iter().map(|(name, crd)| CrdFile { name, object: plain(crd.unwrap_or_default()) }).collect()
}

/// The schema of a deployment's spec, as the API server has it.
pub(crate) fn spec_schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let crd = plain(serde_json::to_value(MiniMaxM1Deployment::crd()).unwrap_or_default());
        crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").cloned().unwrap_or_default()
    })
}

/// Rust's unsigned formats become the two that OpenAPI knows: the API server warns about others. Their range stands in
/// `minimum` and `maximum`. Whole-number bounds lose the `.0` that the schema types give them.
fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            if let Some(Value::String(format)) = fields.get_mut("format") {
                match format.as_str() {
                    "uint8" | "uint16" | "uint32" => *format = "int32".to_owned(),
                    "uint" | "uint64" => *format = "int64".to_owned(),
                    _ => {}
                }
            }
            for (key, field) in fields.iter_mut() {
                let bound = matches!(key.as_str(), "minimum" | "maximum");
                *field = match field.as_f64().filter(|number| bound && number.fract() == 0.0) {
                    Some(number) => Value::from(number as i64),
                    None => plain(field.take()),
                };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    value
}
