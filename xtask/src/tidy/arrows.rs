//! The direction of dependencies: the pure crates reach no async runtime, no network, no API server, no tensor library and
//! no generated protocol. `cargo tree` is asked crate by crate: metadata of the whole workspace unifies features and would
//! blame one crate for what another switches on.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Finding;

/// The crates that decide and do not act, and where they lie.
const PURE: [(&str, &str); 8] = [
    ("m1-arch", "model/arch"),
    ("m1-text", "model/text"),
    ("m1-operator-api", "operator/api"),
    ("m1-operator-plan", "operator/plan"),
    ("m1-router-core", "router/core"),
    ("m1-engine", "worker/engine"),
    ("m1-exchange", "worker/exchange"),
    ("m1-kernels", "worker/kernels"),
];
/// What they must not reach.
const FORBIDDEN: [&str; 5] = ["tokio", "tonic", "kube-client", "tch", "m1-proto"];

/// The programs, which link no tensor library unless they are asked to by a feature.
const PROGRAMS: [(&str, &str); 4] =
    [("m1ctl", "cli"), ("m1-operator", "operator"), ("m1-router", "router"), ("m1-worker", "worker")];

/// Adds a finding for every forbidden crate that a pure one reaches; returns how many crates were looked at.
pub fn check(root: &Path, findings: &mut Vec<Finding>) -> Result<usize> {
    for (name, folder) in PURE {
        let tree = tree(root, name)?;
        for reached in reached(&tree) {
            let message = format!("{name} is pure and must not reach {reached}: `cargo tree -p {name} -e normal -i {reached}`");
            findings.push(Finding { path: format!("{folder}/Cargo.toml"), line: 1, rule: "arrow", message });
        }
    }
    for (name, folder) in PROGRAMS {
        if reached(&tree(root, name)?).contains(&"tch") {
            let message = format!("{name} must build without libtorch: `cargo tree -p {name} -e normal -i tch`");
            findings.push(Finding { path: format!("{folder}/Cargo.toml"), line: 1, rule: "arrow", message });
        }
    }
    Ok(PURE.len())
}

fn tree(root: &Path, name: &str) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "-p", name, "-e", "normal", "--prefix", "none"])
        .current_dir(root)
        .output()
        .context("run cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree -p {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("cargo tree")
}

/// The forbidden crates of a tree, each once.
fn reached(tree: &str) -> Vec<&'static str> {
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    FORBIDDEN.into_iter().filter(|name| names.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_crates_are_found_by_their_whole_name() {
        assert_eq!(reached("m1-x v0.1.0 (/x)\nserde v1.0.0\ntokio v1.54.0 (*)\n"), ["tokio"]);
        assert_eq!(reached("m1-x v0.1.0\ntokio-macros v2.0.0\n"), [""; 0]);
    }
}
