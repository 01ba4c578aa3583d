//! From the file of a MiniMaxM1Deployment to its plan. Deciding is the planner's; here files are read and errors get their
//! file's name.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use m1_arch::Architecture;
use m1_operator_api::MiniMaxM1Deployment;
use m1_operator_plan::{Checked, Environment, FieldError, FieldReason, Plan, Source};

use crate::error::Failure;

/// Reads and checks a file.
///
/// # Errors
/// It cannot be read, or everything that is wrong with it, one line each.
pub fn load(file: &Path) -> Result<Checked, Failure> {
    check(file, &read(file)?)
}

/// Checks what was read from a file.
///
/// # Errors
/// Everything that is wrong with it, one line each.
pub fn check(file: &Path, deployment: &MiniMaxM1Deployment) -> Result<Checked, Failure> {
    m1_operator_plan::validate(deployment).map_err(|errors| refused(file, &errors))
}

/// Reads a file. Its values are not checked yet.
///
/// # Errors
/// It cannot be read, or is no MiniMaxM1Deployment.
pub fn read(file: &Path) -> Result<MiniMaxM1Deployment, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure::new(file.display(), error))?;
    let absolute = std::path::absolute(file).map_err(|error| Failure::new(file.display(), error))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    m1_operator_plan::load(&text, folder).map_err(|errors| refused(file, &errors))
}

/// Whether a file says how many groups there are. Where it does not, `kubectl apply` leaves the number that somebody else has set.
pub fn says_replicas(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    serde_saphyr::from_str::<serde_json::Value>(&text).is_ok_and(|manifest| manifest.pointer("/spec/replicas").is_some())
}

/// Field errors, each on its line, with the word for what this build does not run yet.
pub fn refused(file: &Path, errors: &[FieldError]) -> Failure {
    let line = |error: &FieldError| match error.reason {
        FieldReason::NotImplemented => format!("{}: {error} ({})", file.display(), error.reason()),
        _ => format!("{}: {error}", file.display()),
    };
    Failure::lines(errors.iter().map(line).collect())
}

/// The checkpoint's folder, where this machine could have it.
pub fn folder(checked: &Checked) -> Option<PathBuf> {
    match &checked.source {
        Source::HostPath { path } => Some(PathBuf::from(path)),
        _ => None,
    }
}

/// The model's shape: of the source's config.json where this machine has it, else of spec.model.config, else MiniMax-M1's.
///
/// # Errors
/// The config.json or spec.model.config describes no MiniMax-M1.
pub fn architecture(file: &Path, checked: &Checked) -> Result<Architecture, Failure> {
    let found = folder(checked).map(|folder| folder.join("config.json"));
    if let Some((path, text)) = found.and_then(|path| std::fs::read_to_string(&path).ok().map(|text| (path, text))) {
        let found = Architecture::from_json(&text).map_err(|error| Failure::new(path.display(), error))?;
        agrees(file, checked, &found)?;
        return Ok(found);
    }
    match &checked.config {
        Some(config) => Architecture::from_value(&serde_json::Value::Object(config.clone()))
            .map_err(|error| Failure::new(format_args!("{}: spec.model.config", file.display()), error)),
        None => Ok(Architecture::minimax_m1()),
    }
}

/// Refuses a checkpoint that is not what spec.model.config says, as workers in a cluster do.
///
/// # Errors
/// They differ.
pub fn agrees(file: &Path, checked: &Checked, found: &Architecture) -> Result<(), Failure> {
    let Some(config) = &checked.config else { return Ok(()) };
    let what = format!("{}: spec.model.config", file.display());
    let said = Architecture::from_value(&serde_json::Value::Object(config.clone())).map_err(|error| Failure::new(&what, error))?;
    match said == *found {
        true => Ok(()),
        false => Err(Failure::new(what, "the checkpoint's config.json describes another model (ArchitectureMismatch)")),
    }
}

/// Plans a deployment.
///
/// # Errors
/// The planner's words, with the file's name.
pub fn plan(file: &Path, checked: &Checked, environment: &Environment) -> Result<Plan, Failure> {
    m1_operator_plan::plan(checked, environment).map_err(|error| Failure::new(file.display(), &error as &dyn Display))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
apiVersion: serving.minimax-m1.dev/v1alpha1
kind: MiniMaxM1Deployment
metadata: {name: demo}
spec:
  model: {source: {hostPath: {path: model}}}
  parallelism: {expert: 2}
";

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cr.yaml");
        std::fs::write(&file, text).unwrap();
        (folder, file)
    }

    #[test]
    fn a_relative_path_starts_at_the_file() {
        let (home, file) = written(GOOD);
        let checked = load(&file).unwrap();
        assert_eq!(folder(&checked), Some(home.path().join("model")));
        assert_eq!(checked.pods, 2);
    }

    #[test]
    fn the_architecture_comes_from_the_nearest_source() {
        let (home, file) = written(GOOD);
        let checked = load(&file).unwrap();
        assert_eq!(architecture(&file, &checked).unwrap(), Architecture::minimax_m1());
        std::fs::create_dir(home.path().join("model")).unwrap();
        std::fs::write(home.path().join("model/config.json"), "{}").unwrap();
        let error = architecture(&file, &checked).unwrap_err().to_string();
        assert!(error.contains("model/config.json: "), "{error}");
    }

    #[test]
    fn every_field_error_has_its_line() {
        let (_home, file) = written(&GOOD.replace("expert: 2", "expert: 0, tensor: 0"));
        let error = load(&file).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.lines().all(|line| line.starts_with(&format!("m1ctl: {}: spec.parallelism.", file.display()))), "{error}");
    }

    #[test]
    fn what_is_not_built_is_named_with_its_field() {
        let error = FieldError::not_implemented("spec.replicas", 2, "not implemented by the local runtime yet; it runs 1");
        let text = refused(Path::new("cr.yaml"), &[error]).to_string();
        assert_eq!(
            text,
            "m1ctl: cr.yaml: spec.replicas: 2: not implemented by the local runtime yet; it runs 1 (NotImplemented)\n"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        assert!(load(Path::new("/no/such.yaml")).unwrap_err().to_string().starts_with("m1ctl: /no/such.yaml: "));
    }
}
