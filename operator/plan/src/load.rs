//! From YAML text to a `MiniMaxM1Deployment`, with every structural error at once.

use std::path::{Component, Path, PathBuf};

use m1_operator_api::{FieldError, MiniMaxM1Deployment, check_deployment};
use serde_json::Value;

/// Reads one manifest. `base_dir` is the absolute directory of its file: a relative `hostPath` is resolved against it
/// (`.` and `..` by their text, not through links). The result is complete in structure; [`crate::validate`] does the rest.
///
/// # Errors
/// Text that is no YAML, another kind, unknown fields (with the nearest known one), wrong types, words and ranges.
pub fn load(yaml: &str, base_dir: &Path) -> Result<MiniMaxM1Deployment, Vec<FieldError>> {
    let manifest = parse(yaml)?;
    let errors = check_deployment(&manifest);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut deployment: MiniMaxM1Deployment =
        serde_json::from_value(manifest).map_err(|error| vec![FieldError::malformed(error.to_string())])?;
    if let Some(source) = &mut deployment.spec.model.source.host_path {
        source.path = resolve(&source.path, base_dir);
    }
    Ok(deployment)
}

/// YAML as a value. Only `true` and `false` are booleans, so that the word `Off` is a word.
fn parse(yaml: &str) -> Result<Value, Vec<FieldError>> {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(yaml, options)
        .map_err(|error| vec![FieldError::malformed(format!("no single YAML object: {error}"))])
}

/// An absolute path as it is, a relative one under `base_dir`.
fn resolve(path: &str, base_dir: &Path) -> String {
    if path.is_empty() || path.starts_with('/') {
        return path.to_owned();
    }
    let mut resolved = PathBuf::new();
    for part in base_dir.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                resolved.pop();
            }
            other => resolved.push(other),
        }
    }
    resolved.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_lie_beside_the_file() {
        let base = Path::new("/repo/manifests/examples");
        assert_eq!(resolve("../../demo/m1-demo", base), "/repo/demo/m1-demo");
        assert_eq!(resolve("./model", base), "/repo/manifests/examples/model");
        assert_eq!(resolve("/models/m1", base), "/models/m1");
    }
}
