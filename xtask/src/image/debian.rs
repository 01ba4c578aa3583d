//! The layer of the system: the C library and its kin, certificates, users. All come from this machine's Debian or Ubuntu
//! packages, whose versions and licences go along. No shell, no package manager.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::layer::{EXECUTABLE, Layer, READABLE};
use super::loader::{DEFAULT_FOLDERS, Library};
use super::package::{Package, encoded};

/// User and group of every program: what distroless images call `nonroot`.
pub const USER: &str = "65532:65532";
/// Where TLS libraries look for certificates.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const CERTIFICATES_PACKAGE: &str = "ca-certificates";

const PASSWD: &str = "\
root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/:/sbin/nologin
";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
/// glibc has had both of them built in since 2.34, so that no plugin is needed.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// What the packages are packages of.
struct Distribution {
    id: String,
    version: String,
}

impl Distribution {
    fn read(release: &str) -> Result<Self> {
        let word = |name| field(release, name).with_context(|| format!("/etc/os-release has no {name}"));
        Ok(Self { id: word("ID")?, version: word("VERSION_ID")? })
    }
}

/// Whether a library is the system's: found where its loader always looks. The others came along with libtorch.
pub fn owns(library: &Library) -> bool {
    library.path.starts_with("/lib64/")
        || library.path.rsplit_once('/').is_some_and(|(folder, _)| DEFAULT_FOLDERS.contains(&folder))
}

/// The layer, and the packages its files came from.
pub fn layer(libraries: &BTreeSet<Library>) -> Result<(Layer, Vec<Package>)> {
    let mut layer = Layer::new("system libraries and certificates");
    let mut names = BTreeSet::from([CERTIFICATES_PACKAGE.to_owned()]);
    for library in libraries.iter().filter(|library| owns(library)) {
        // The loader has to be where programs ask for it; the others go to the first of the default folders.
        let place = match library.path.starts_with("/lib64/") {
            true => library.path.clone(),
            false => format!("{}/{}", DEFAULT_FOLDERS[0], library.name),
        };
        layer.copy(&place, EXECUTABLE, &library.path);
        names.insert(owner(&library.path)?);
    }
    let certificates = fs::read(CERTIFICATES).with_context(|| format!("read {CERTIFICATES} (apt-get install ca-certificates)"))?;
    layer.file(CERTIFICATES, READABLE, certificates);
    layer.file("/etc/passwd", READABLE, PASSWD);
    layer.file("/etc/group", READABLE, GROUP);
    layer.file("/etc/nsswitch.conf", READABLE, NSSWITCH);
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let distribution = Distribution::read(&release)?;
    layer.folder("/tmp", 0o1777);
    let mut packages = Vec::new();
    for name in names {
        packages.push(describe(&name, &distribution, &mut layer)?);
    }
    layer.file("/etc/os-release", READABLE, release);
    Ok((layer, packages))
}

/// Adds what scanners read (a file below status.d for every package, as in distroless images) and the licence.
fn describe(name: &str, distribution: &Distribution, layer: &mut Layer) -> Result<Package> {
    let status = ask("dpkg-query", &["--status", name])?;
    let plain = field(&status, "Package").with_context(|| format!("dpkg says nothing of {name}"))?;
    let version = field(&status, "Version").with_context(|| format!("dpkg knows no version of {name}"))?;
    let architecture = field(&status, "Architecture").unwrap_or_else(|| "all".to_owned());
    let copyright = format!("/usr/share/doc/{plain}/copyright");
    let licence = fs::read(&copyright).with_context(|| format!("read {copyright}, which has to go along with {plain}"))?;
    layer.file(&copyright, READABLE, licence);
    layer.file(&format!("/var/lib/dpkg/status.d/{plain}"), READABLE, status);
    let Distribution { id, version: of } = distribution;
    let purl = format!("pkg:deb/{id}/{plain}@{}?arch={architecture}&distro={id}-{of}", encoded(&version));
    Ok(Package { name: plain, version, licence: None, purl })
}

/// The Debian package that a file belongs to. dpkg knows a file by the path of its package, which may be with or without
/// the /usr that the system has merged.
fn owner(path: &str) -> Result<String> {
    let real = fs::canonicalize(path).with_context(|| format!("find {path}"))?;
    let real = real.to_str().context("a path that is not UTF-8")?;
    let paths = [path, real, real.strip_prefix("/usr").unwrap_or(real)];
    let answer = paths.iter().find_map(|path| ask("dpkg-query", &["--search", path]).ok());
    let answer = answer.with_context(|| format!("no package of this machine owns {path}: images need Debian or Ubuntu"))?;
    package_of(&answer).with_context(|| format!("dpkg-query --search {path} says `{answer}`"))
}

/// `NAME:ARCHITECTURE: PATH`, with the architecture or without. A diversion is told first, in other words.
fn package_of(answer: &str) -> Option<String> {
    let line = answer.lines().find(|line| !line.starts_with("diversion "))?;
    Some(line.split_once(": ")?.0.to_owned())
}

/// The value of `NAME: value` or `NAME=value`.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([':', '=']))?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn ask(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    let output = output.with_context(|| format!("run {program}: images are made on Debian or Ubuntu"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} does not answer in UTF-8"))
}

/// Images hold this machine's libraries, so the machine has to be of their kind.
pub fn check_machine() -> Result<()> {
    let machine = (std::env::consts::OS, std::env::consts::ARCH);
    ensure!(machine == ("linux", "x86_64"), "images are made on Linux x86_64, for it; this is {} {}", machine.0, machine.1);
    ensure!(Path::new("/var/lib/dpkg/status").exists(), "images are made on Debian or Ubuntu: there is no dpkg here");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_with_and_without_architecture() {
        assert_eq!(package_of("libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6\n").as_deref(), Some("libc6:amd64"));
        assert_eq!(package_of("diversion by x from: /y\nadduser: /usr/sbin/adduser\n").as_deref(), Some("adduser"));
        assert_eq!(package_of("nothing"), None);
    }

    #[test]
    fn fields_are_whole_words() {
        let text = "PackageX: no\nPackage: libc6\nID=\"debian\"\n";
        assert_eq!(field(text, "Package").as_deref(), Some("libc6"));
        assert_eq!(field(text, "ID").as_deref(), Some("debian"));
        assert_eq!(field(text, "Version"), None);
    }

    #[test]
    fn the_system_owns_what_its_loader_always_finds() {
        let at = |path: &str| Library { name: "x".into(), path: path.into() };
        assert!(owns(&at("/lib64/ld-linux-x86-64.so.2")) && owns(&at("/usr/lib/x86_64-linux-gnu/x")));
        assert!(!owns(&at("/opt/libtorch/lib/x")) && !owns(&at("/usr/lib/x86_64-linux-gnu/blas/x")));
    }
}
