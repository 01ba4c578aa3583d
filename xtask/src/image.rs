//! Container images as files, without a registry, a daemon or a base image: what is inside is written down here. Layers
//! from below: system libraries and certificates, libtorch where a program needs it, programs, so that an upgrade moves the last one.
//!
//! The same programs, packages and commit give the same digest: nothing else of the machine or the hour goes in.

mod check;
mod crates;
mod debian;
mod digest;
mod elf;
mod layer;
mod loader;
mod oci;
mod options;
mod package;
mod programs;
mod sbom;
mod torch;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use layer::{EXECUTABLE, Layer, READABLE};
use options::{Kind, Options};

/// Before the image's name. A domain of its own keeps an image that was never pushed from being looked for elsewhere.
const PREFIX: &str = "minimax-m1.dev";
const DEMO: &str = "demo/m1-demo";

/// Writes images or checks one.
pub fn run(root: &Path, words: &[&str]) -> Result<String> {
    match options::parse(words, env!("CARGO_PKG_VERSION"))? {
        options::Command::Check(path) => {
            let found = check::check(&path)?;
            let check::Checked { reference, digest, files, elf_files } = found;
            Ok(format!("image: {reference} {digest} is sound: {files} files, {elf_files} of them ELF with all they need"))
        }
        options::Command::Write(options) => write_all(root, &options),
    }
}

/// What images have in common.
struct Origin {
    metadata: crates::Metadata,
    output: PathBuf,
    /// Seconds since 1970 for all that has an age.
    created: u64,
    /// None for a tree with changes.
    revision: Option<String>,
}

/// A line of the table at the end.
struct Row {
    reference: String,
    written: oci::Written,
    path: PathBuf,
}

fn write_all(root: &Path, options: &Options) -> Result<String> {
    let metadata = crates::Metadata::ask(root)?;
    let output = match &options.output {
        Some(folder) => folder.clone(),
        None => metadata.target_directory()?.join("images"),
    };
    let origin = Origin { metadata, output, created: source_date_epoch()?, revision: revision(root) };
    let rows = options.kinds.iter().map(|kind| write(root, *kind, options, &origin)).collect::<Result<Vec<_>>>()?;
    Ok(table(&rows))
}

fn write(root: &Path, kind: Kind, options: &Options, origin: &Origin) -> Result<Row> {
    let reference = format!("{PREFIX}/{}:{}", kind.as_str(), options.tag);
    let image = match kind {
        Kind::DemoModel => demo(root, &reference, origin)?,
        _ => programs_image(root, kind, &reference, options, origin)?,
    };
    let path = origin.output.join(format!("minimax-m1-{}.tar", kind.as_str()));
    let written = oci::write(&image, &path)?;
    check_size(kind, written.compressed)?;
    check::check(&path)?;
    Ok(Row { reference, written, path })
}

fn programs_image(root: &Path, kind: Kind, reference: &str, options: &Options, origin: &Origin) -> Result<oci::Image> {
    debian::check_machine()?;
    let folder = match &options.programs {
        Some(folder) => folder.clone(),
        None => {
            programs::build(root, kind.programs(), options.profile)?;
            origin.metadata.target_directory()?.join(options.profile.folder())
        }
    };
    let programs: Vec<_> = kind.programs().iter().map(|name| programs::take(name, &folder)).collect::<Result<_>>()?;
    let libraries: BTreeSet<_> = programs.iter().flat_map(|program| program.libraries.iter().cloned()).collect();
    let (system, mut packages) = debian::layer(&libraries)?;
    let (torch, wheels) = torch::layer(root, &libraries)?;
    packages.extend(wheels);
    let crates = origin.metadata.crates(root, kind.programs())?;
    let contents = sbom::Contents { reference, created: origin.created, programs: &programs, crates: &crates, packages: &packages };
    let components = sbom::document(&contents)?;

    let name = format!("minimax-m1-{}.spdx.json", kind.as_str());
    fs::create_dir_all(&origin.output).with_context(|| format!("create {}", origin.output.display()))?;
    fs::write(origin.output.join(&name), &components).with_context(|| format!("write {name}"))?;
    let mut top = Layer::new(kind.programs().join(", "));
    for program in programs {
        top.file(&format!("/usr/local/bin/{}", program.name), EXECUTABLE, program.bytes);
    }
    top.file(&format!("/usr/share/sbom/{name}"), READABLE, components);
    top.copy("/usr/share/doc/minimax-m1/LICENSE", READABLE, root.join("LICENSE"));
    Ok(oci::Image {
        reference: reference.to_owned(),
        created: origin.created,
        labels: labels(kind, origin),
        run: kind.programs().first().map(|program| start(program)),
        layers: [system, torch, top].into_iter().filter(|layer| !layer.is_empty()).collect(),
    })
}

fn start(program: &str) -> oci::Run {
    let env = vec!["PATH=/usr/local/bin".to_owned(), format!("SSL_CERT_FILE={}", debian::CERTIFICATES)];
    oci::Run { entrypoint: format!("/usr/local/bin/{program}"), user: debian::USER.to_owned(), env }
}

/// The files of the demo checkpoint at the root, as an image volume shows them.
fn demo(root: &Path, reference: &str, origin: &Origin) -> Result<oci::Image> {
    let mut layer = Layer::new("demo checkpoint");
    for entry in fs::read_dir(root.join(DEMO)).with_context(|| format!("list {DEMO}"))? {
        let entry = entry.with_context(|| format!("list {DEMO}"))?;
        let name = entry.file_name();
        layer.copy(name.to_str().context("a name that is not UTF-8")?, READABLE, entry.path());
    }
    let labels = labels(Kind::DemoModel, origin);
    Ok(oci::Image { reference: reference.to_owned(), created: origin.created, labels, run: None, layers: vec![layer] })
}

fn labels(kind: Kind, origin: &Origin) -> Vec<(String, String)> {
    let mut labels = vec![
        ("title", format!("minimax-m1 {}", kind.as_str())),
        ("description", kind.description().to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", "Apache-2.0".to_owned()),
        ("created", oci::timestamp(origin.created)),
    ];
    labels.extend(origin.revision.clone().map(|revision| ("revision", revision)));
    labels.into_iter().map(|(name, value)| (format!("org.opencontainers.image.{name}"), value)).collect()
}

fn check_size(kind: Kind, compressed: u64) -> Result<()> {
    let (size, limit) = (megabytes(compressed), megabytes(kind.limit()));
    ensure!(compressed <= kind.limit(), "image: {} has {size} of compressed layers, at most {limit} are allowed", kind.as_str());
    Ok(())
}

/// What <https://reproducible-builds.org/specs/source-date-epoch> says; 0 without it.
fn source_date_epoch() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH=`{text}` is not a number of seconds")),
        Err(_) => Ok(0),
    }
}

/// The commit; none when files differ from it, or without git.
fn revision(root: &Path) -> Option<String> {
    let ask = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    ask(&["status", "--porcelain"]).filter(String::is_empty)?;
    ask(&["rev-parse", "HEAD"])
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.reference.len()).max().unwrap_or(0);
    let mut table = format!("{:width$}  {:71}  {:>10}  file", "image", "digest", "compressed");
    for Row { reference, written, path } in rows {
        let size = megabytes(written.compressed);
        // Writing to a String cannot fail.
        let _ = write!(table, "\n{reference:width$}  {:71}  {size:>10}  {}", written.digest, path.display());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_an_image_is_refused() {
        assert!(check_size(Kind::Router, 60_000_000).is_ok());
        let error = check_size(Kind::Router, 61_250_000).unwrap_err().to_string();
        assert_eq!(error, "image: router has 61.2 MB of compressed layers, at most 60.0 MB are allowed");
    }

    #[test]
    fn the_table_has_one_line_for_every_image() {
        let row = |name: &str| Row {
            reference: name.to_owned(),
            written: oci::Written { digest: format!("sha256:{}", "0".repeat(64)), compressed: 1_500_000 },
            path: "a.tar".into(),
        };
        let text = table(&[row("x.dev/a:1"), row("x.dev/long:1")]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.find("  file").or(line.find("  a.tar")) == lines[0].find("  file")), "{text}");
        assert!(lines[1].ends_with("1.5 MB  a.tar"));
    }

    #[test]
    fn the_demo_image_is_the_folder_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(DEMO)).unwrap();
        for name in ["config.json", "a.safetensors"] {
            fs::write(folder.path().join(DEMO).join(name), name).unwrap();
        }
        let metadata = crates::Metadata::ask(&crate::root()).unwrap();
        let origin = Origin { metadata, output: folder.path().join("out"), created: 0, revision: None };
        let options::Command::Write(options) = options::parse(&["demo"], "1").unwrap() else { panic!("not a write") };
        let row = write(folder.path(), Kind::DemoModel, &options, &origin).unwrap();
        assert_eq!(row.reference, "minimax-m1.dev/demo-model:1");
        assert_eq!(check::check(&row.path).unwrap().files, 2);
        let bytes = fs::read(&row.path).unwrap();
        assert_eq!(write(folder.path(), Kind::DemoModel, &options, &origin).unwrap().written, row.written);
        assert_eq!(fs::read(&row.path).unwrap(), bytes);
        fs::write(folder.path().join(DEMO).join("config.json"), "config.jsom").unwrap();
        assert_ne!(write(folder.path(), Kind::DemoModel, &options, &origin).unwrap().written.digest, row.written.digest);
    }
}
