//! The layer of libtorch: the libraries that the worker finds through its RUNPATH, as the pinned wheels hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::debian;
use super::layer::{EXECUTABLE, Layer};
use super::loader::Library;
use super::package::{Package, encoded};

/// A folder that the image's loader searches by itself. The RUNPATH of the worker names the folder it was linked against,
/// which an image does not have; this way neither the program nor LD_LIBRARY_PATH has to be changed.
const FOLDER: &str = "/usr/lib/x86_64-linux-gnu";
/// Versions and digests of the wheels that scripts/libtorch.py unpacks.
const PINNED: &str = "scripts/libtorch-cpu.txt";

/// Beginnings of file names: the wheel each came out of, and its licence. NVIDIA's is not on SPDX's list.
const WHEELS: [(&str, &str, Option<&str>); 5] = [
    ("libtorch", "torch", Some("BSD-3-Clause")),
    ("libc10", "torch", Some("BSD-3-Clause")),
    ("libgomp", "torch", Some("BSD-3-Clause")),
    ("libcudart", "nvidia-cuda-runtime", None),
    ("libcupti", "nvidia-cuda-cupti", None),
];

/// The layer, and the wheels its files came from; both empty where no program needs libtorch.
pub fn layer(root: &Path, libraries: &BTreeSet<Library>) -> Result<(Layer, Vec<Package>)> {
    let mut layer = Layer::new("libtorch");
    let mut packages = BTreeSet::new();
    let pinned = fs::read_to_string(root.join(PINNED)).with_context(|| format!("read {PINNED}"))?;
    let versions = versions(&pinned);
    for library in libraries.iter().filter(|library| !debian::owns(library)) {
        layer.copy(&format!("{FOLDER}/{}", library.name), EXECUTABLE, &library.path);
        packages.insert(wheel(library, &versions)?);
    }
    if let Some(torch) = libraries.iter().find(|library| library.name == "libtorch_cpu.so") {
        let marker = Path::new(&torch.path).with_file_name("../build-version");
        let found = fs::read_to_string(&marker).with_context(|| format!("read {}", marker.display()))?;
        let expected = versions.get("torch").copied().unwrap_or("");
        ensure!(found.trim() == expected, "libtorch is {}, but {PINNED} says {expected}: run `make torch`", found.trim());
    }
    Ok((layer, packages.into_iter().collect()))
}

/// `NAME==VERSION ...` of every line that is not a comment.
fn versions(pinned: &str) -> BTreeMap<&str, &str> {
    let words = pinned.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    words.filter_map(|word| word.split_once("==")).collect()
}

fn wheel(library: &Library, versions: &BTreeMap<&str, &str>) -> Result<Package> {
    let known = WHEELS.iter().find(|(beginning, _, _)| library.name.starts_with(beginning));
    let (_, wheel, licence) = known.with_context(|| format!("{} comes from no known package", library.path))?;
    let version = versions.get(wheel).with_context(|| format!("{PINNED} does not pin {wheel}"))?;
    let purl = format!("pkg:pypi/{wheel}@{}", encoded(version));
    Ok(Package { name: (*wheel).to_owned(), version: (*version).to_owned(), licence: *licence, purl })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_has_its_wheel() {
        let pinned = "# why\ntorch==2.11.0 --hash=sha256:0\nnvidia-cuda-cupti==13.0.85 --hash=sha256:1\n";
        let versions = versions(pinned);
        let of = |name: &str| wheel(&Library { name: name.into(), path: format!("/opt/{name}") }, &versions);
        assert_eq!(of("libtorch_cpu.so").unwrap().purl, "pkg:pypi/torch@2.11.0");
        assert_eq!(of("libcupti.so.13").unwrap().version, "13.0.85");
        assert!(of("libcudart.so.13").unwrap_err().to_string().contains("does not pin nvidia-cuda-runtime"));
        assert!(of("libmkl.so").unwrap_err().to_string().contains("no known package"));
    }

    #[test]
    fn libtorch_has_to_be_the_pinned_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("scripts")).unwrap();
        fs::create_dir_all(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join(PINNED), "torch==2.11.0\n").unwrap();
        let path = folder.path().join("lib/libtorch_cpu.so").display().to_string();
        let libraries = BTreeSet::from([Library { name: "libtorch_cpu.so".into(), path }]);
        fs::write(folder.path().join("build-version"), "2.11.0\n").unwrap();
        assert_eq!(layer(folder.path(), &libraries).unwrap().1.len(), 1);
        fs::write(folder.path().join("build-version"), "2.10.0\n").unwrap();
        assert!(layer(folder.path(), &libraries).unwrap_err().to_string().starts_with("libtorch is 2.10.0"));
    }
}
