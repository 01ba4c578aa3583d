//! One good manifest, and what a change of it leads to.
#![allow(dead_code, reason = "every test file uses a part")]

pub mod world;

use std::path::Path;

use m1_operator_plan::{Checked, Environment, FieldError, Plan, PlanError, load, plan, validate};

/// A good manifest that names no default.
pub const GOOD: &str = "
apiVersion: serving.minimax-m1.dev/v1alpha1
kind: MiniMaxM1Deployment
metadata: {name: m1}
spec:
  model:
    source: {hostPath: {path: /models/m1}}
  parallelism: {tensor: 8, expert: 2}
  worker: {memoryPerGpu: 80G}
";

/// The good manifest with one text replaced; the text must be there.
pub fn changed(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from} is not in the good manifest");
    GOOD.replace(from, to)
}

/// The good manifest with lines added under `spec`.
pub fn added(lines: &str) -> String {
    format!("{GOOD}  {}\n", lines.replace('\n', "\n  "))
}

/// Loads and validates.
pub fn check(yaml: &str) -> Result<Checked, Vec<FieldError>> {
    load(yaml, Path::new("/repo/manifests/examples")).and_then(|deployment| validate(&deployment))
}

/// The errors of a manifest, as they are shown.
pub fn errors(yaml: &str) -> Vec<String> {
    check(yaml).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// The environment of MiniMax-M1 with nothing measured.
pub fn m1() -> Environment {
    Environment::new(m1_arch::Architecture::minimax_m1())
}

/// Plans a manifest that is valid.
pub fn planned(yaml: &str) -> Result<Plan, PlanError> {
    plan(&check(yaml).expect("the manifest is valid"), &m1())
}
