//! The project's own chores: `crd` writes or checks the CRDs under manifests/crds, `docs` their reference, `chart` what is generated of the Helm chart,
//! `proto` the types of the wire, `tidy` holds the tree to its style, `image` writes container images.

mod chart;
mod crd;
mod generated;
mod image;
mod proto;
mod reference;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use generated::Generated;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  crd           write manifests/crds/*.yaml from the API types
  crd --check   fail when they differ
  docs          write docs/custom-resource.md from the CRD
  docs --check  fail when it differs
  chart         write the chart's CRDs, rights and README
  chart --check fail when they differ
  proto         write the types of the wire from the .proto files
  proto --check fail when they differ
  tidy          check headers, lengths of files and functions, leftovers, and which crates the pure ones reach
  image [operator|router|worker|demo|all]... [--profile dev|release] [--output DIR] [--tag TAG] [--programs DIR]
                write container images as archives (all, release, target/images, the workspace's version);
                --programs takes built programs from DIR instead of building them
  image --check ARCHIVE
                check digests, and that every program finds its libraries inside";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = root();
    let outcome = match words.as_slice() {
        [command @ ("crd" | "docs" | "chart" | "proto")] => generated(command, &root).and_then(|files| files.write(&root)),
        [command @ ("crd" | "docs" | "chart" | "proto"), "--check"] => {
            generated(command, &root).and_then(|files| files.check(&root))
        }
        ["tidy"] => tidy::run(&root),
        ["image", words @ ..] => image::run(&root, words),
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

/// What a command writes.
fn generated(command: &str, root: &Path) -> anyhow::Result<Generated> {
    match command {
        "crd" => crd::generated(),
        "docs" => Ok(reference::generated()),
        "chart" => chart::generated(root),
        _ => proto::generated(root),
    }
}

/// The repository: the directory above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}
