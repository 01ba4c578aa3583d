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

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        crd_files().remove(0).object
    }

    #[test]
    fn subresources_names_and_columns() {
        let crd = deployment();
        let scale = &crd["spec"]["versions"][0]["subresources"]["scale"];
        assert_eq!(scale["specReplicasPath"], ".spec.replicas");
        assert_eq!(scale["labelSelectorPath"], ".status.selector");
        assert_eq!(crd["spec"]["names"]["shortNames"][0], "m1d");
        assert_eq!(crd_files()[1].object["spec"]["names"]["shortNames"][0], "m1ep");
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().map(Vec::len);
        assert_eq!(columns, Some(8));
    }

    /// Visits every schema under `properties` and `items`.
    fn visit(schema: &Value, path: &str, see: &mut impl FnMut(&str, &Value)) {
        see(path, schema);
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            visit(field, &format!("{path}.{name}"), see);
        }
        if schema.get("items").is_some() {
            visit(&schema["items"], &format!("{path}[]"), see);
        }
    }

    #[test]
    fn every_field_is_documented_and_no_format_is_foreign() {
        for file in crd_files() {
            let schema = &file.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            visit(&schema["properties"]["spec"], "spec", &mut |path, field| {
                assert!(field.get("description").is_some() || path.ends_with("[]"), "{}: {path} has no description", file.name);
            });
            visit(schema, "", &mut |path, field| {
                let format = field["format"].as_str().unwrap_or("int32");
                assert!(["int32", "int64", "double", "date-time"].contains(&format), "{path}: {format}");
            });
        }
    }

    #[test]
    fn replicas_are_always_there_for_scale() {
        assert_eq!(spec_schema().pointer("/properties/replicas/default"), Some(&Value::from(1)));
    }
}
