//! The project's own chores: `crd` writes or checks the CRDs under manifests/crds, `docs` their reference, `tidy` holds the tree to its style.

mod crd;
mod reference;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  crd           write manifests/crds/*.yaml from the API types
  crd --check   fail when they differ
  docs          write docs/custom-resource.md from the CRD
  docs --check  fail when it differs
  tidy          check headers, lengths of files and functions, leftovers, and which crates the pure ones reach";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = root();
    let outcome = match words.as_slice() {
        ["crd"] => crd::write(&root),
        ["crd", "--check"] => crd::check(&root),
        ["docs"] => reference::write(&root),
        ["docs", "--check"] => reference::check(&root),
        ["tidy"] => tidy::run(&root),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository: the directory above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}
