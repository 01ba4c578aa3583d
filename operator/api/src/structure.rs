//! Checks a manifest against the CRD's own schema, as the API server does: unknown fields, types, required fields,
//! words, ranges and lengths. It finds everything at once and names the nearest known field.
//!
//! Patterns and CEL rules are not read here: what they say is checked where the spec becomes a plan.

use serde_json::{Map, Value};

use crate::crd::spec_schema;
use crate::{API_VERSION, FieldError};

/// Fields of the root object that the CRD's schema does not describe.
const ROOT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// Fields of `metadata` that a manifest may carry.
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// Everything that is wrong with the structure of a MiniMaxM1Deployment.
pub fn check_deployment(manifest: &Value) -> Vec<FieldError> {
    let Value::Object(root) = manifest else {
        return vec![FieldError::malformed("a MiniMaxM1Deployment is an object with apiVersion, kind, metadata and spec")];
    };
    let mut errors = Vec::new();
    expect_word(root, "apiVersion", API_VERSION, &mut errors);
    expect_word(root, "kind", "MiniMaxM1Deployment", &mut errors);
    unknown_fields(root, "", &ROOT, &mut errors);
    check_metadata(root.get("metadata"), &mut errors);
    match root.get("spec") {
        Some(spec) => check_structure(spec, spec_schema(), "spec", &mut errors),
        None => errors.push(FieldError::required("spec", "required")),
    }
    errors
}

fn expect_word(root: &Map<String, Value>, field: &str, word: &str, errors: &mut Vec<FieldError>) {
    match root.get(field) {
        Some(Value::String(given)) if given == word => {}
        Some(given) => errors.push(FieldError::invalid(field, written(given), format!("must be {word}"))),
        None => errors.push(FieldError::required(field, format!("required: {word}"))),
    }
}

fn check_metadata(metadata: Option<&Value>, errors: &mut Vec<FieldError>) {
    let Some(Value::Object(metadata)) = metadata else {
        return errors.push(FieldError::required("metadata.name", "required"));
    };
    unknown_fields(metadata, "metadata", &METADATA, errors);
    match metadata.get("name") {
        Some(Value::String(_)) => {}
        Some(given) => errors.push(FieldError::invalid("metadata.name", written(given), "must be a string")),
        None => errors.push(FieldError::required("metadata.name", "required")),
    }
    for field in ["labels", "annotations"] {
        let texts = |value: &Value| value.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if metadata.get(field).is_some_and(|value| !value.is_null() && !texts(value)) {
            errors.push(FieldError::invalid(format!("metadata.{field}"), "", "must be an object of strings"));
        }
    }
}

/// Compares `value` with a structural schema and adds what is wrong, each with its path.
pub fn check_structure(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    if flag(schema, "x-kubernetes-int-or-string") {
        if !(value.is_string() || value.is_number()) {
            errors.push(FieldError::invalid(path, written(value), "must be a number or a string"));
        }
        return;
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    match (kind, value) {
        ("object", Value::Object(fields)) => check_object(fields, schema, path, errors),
        ("array", Value::Array(items)) => check_array(items, schema, path, errors),
        ("string", Value::String(text)) => check_text(text, schema, path, errors),
        ("integer", Value::Number(number)) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            check_range(number, schema, path, errors);
        }
        ("number", Value::Number(number)) => check_range(number, schema, path, errors),
        ("boolean", Value::Bool(_)) => {}
        ("", _) => {}
        _ => errors.push(FieldError::invalid(path, written(value), format!("must be {}", article(kind)))),
    }
}

fn check_object(fields: &Map<String, Value>, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let known = schema.get("properties").and_then(Value::as_object);
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(required) {
            errors.push(FieldError::required(join(path, required), "required"));
        }
    }
    for (name, value) in fields {
        let field =
            known.and_then(|known| known.get(name)).or_else(|| schema.get("additionalProperties").filter(|s| s.is_object()));
        if let Some(field) = field {
            check_structure(value, field, &join(path, name), errors);
        }
    }
    let open = flag(schema, "x-kubernetes-preserve-unknown-fields") || schema.get("additionalProperties").is_some();
    if let (false, Some(known)) = (open, known) {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        unknown_fields(fields, path, &names, errors);
    }
}

fn check_array(items: &[Value], schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let most = schema.get("maxItems").and_then(Value::as_u64).unwrap_or(u64::MAX);
    if items.len() as u64 > most {
        errors.push(FieldError::invalid(path, format!("{} items", items.len()), format!("at most {most}")));
    }
    if let Some(schema) = schema.get("items") {
        for (index, item) in items.iter().enumerate() {
            check_structure(item, schema, &format!("{path}[{index}]"), errors);
        }
    }
}

fn check_text(text: &str, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        if !words.contains(&text) {
            errors.push(FieldError::invalid(path, text, format!("must be one of {}", words.join(", "))));
        }
    }
    let length = text.chars().count() as u64;
    let least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0);
    let most = schema.get("maxLength").and_then(Value::as_u64).unwrap_or(u64::MAX);
    if length < least || length > most {
        errors.push(FieldError::invalid(path, format!("{length} characters"), format!("must have {least} to {most}")));
    }
}

fn check_range(number: &serde_json::Number, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let value = number.as_f64().unwrap_or(f64::NAN);
    let message = match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) if !(least..=most).contains(&value) => format!("must be {least} to {most}"),
        (Some(least), None) if value < least => format!("must be at least {least}"),
        (None, Some(most)) if value > most => format!("must be at most {most}"),
        _ => return,
    };
    errors.push(FieldError::invalid(path, number, message));
}

/// Reports fields that are not among `known`, each with the nearest one that is.
fn unknown_fields(fields: &Map<String, Value>, path: &str, known: &[&str], errors: &mut Vec<FieldError>) {
    for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
        let message = match nearest(name, known) {
            Some(near) => format!("no such field; did you mean {near}?"),
            None => format!("no such field; known: {}", known.join(", ")),
        };
        errors.push(FieldError::unknown(join(path, name), message));
    }
}

/// The known name with the fewest edits, if a typing error explains it: at most a third of its letters.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = name.to_lowercase();
    let (edits, near) = known.iter().map(|near| (edits(&folded, &near.to_lowercase()), *near)).min_by_key(|(edits, _)| *edits)?;
    (edits <= name.chars().count().max(near.len()) / 3).then_some(near)
}

/// Levenshtein distance.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.chars().enumerate() {
        let mut corner = above;
        row[0] = above + 1;
        for (column, other) in right.iter().enumerate() {
            let change = corner + usize::from(letter != *other);
            corner = row[column + 1];
            row[column + 1] = change.min(corner + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A value as an error shows it: short, and without what lies inside.
fn written(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_a_typing_error_explains() {
        let known = ["placement", "copies", "rebalance", "loss"];
        assert_eq!(nearest("placment", &known), Some("placement"));
        assert_eq!(nearest("Copies", &known), Some("copies"));
        assert_eq!(nearest("quota", &known), None);
    }

    #[test]
    fn edits_are_counted() {
        for (left, right, count) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0)] {
            assert_eq!(edits(left, right), count, "{left} {right}");
        }
    }

    #[test]
    fn an_open_object_keeps_unknown_fields() {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let mut errors = Vec::new();
        check_structure(&json!({"anything": [1]}), &schema, "spec.model.config", &mut errors);
        assert_eq!(errors, []);
        check_structure(&json!(7), &schema, "spec.model.config", &mut errors);
        assert_eq!(errors[0].to_string(), "spec.model.config: 7: must be an object");
    }

    #[test]
    fn the_schema_of_the_spec_is_found() {
        assert!(spec_schema().pointer("/properties/model/properties/source").is_some());
    }
}
