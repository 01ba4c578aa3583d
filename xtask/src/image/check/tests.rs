//! One sound image, then one thing wrong at a time.

use super::super::elf::fake;
use super::super::layer::{EXECUTABLE, Layer, READABLE};
use super::super::oci::{self, Image, Run};
use super::*;

fn program(needed: &[&str]) -> Vec<u8> {
    let needed = needed.iter().map(|name| (*name).to_owned()).collect();
    fake::write(&Elf { interpreter: Some("/lib64/ld.so".into()), needed, ..Elf::default() })
}

fn library(needed: &[&str]) -> Vec<u8> {
    fake::write(&Elf { needed: needed.iter().map(|name| (*name).to_owned()).collect(), ..Elf::default() })
}

fn sound() -> Image {
    let mut base = Layer::new("base");
    base.file("/lib64/ld.so", EXECUTABLE, library(&[]));
    base.file("/usr/lib/libx.so", READABLE, library(&["ld.so"]));
    let mut top = Layer::new("top");
    top.file("/bin/a", EXECUTABLE, program(&["libx.so"]));
    top.file("/etc/a", READABLE, "text");
    let run = Some(Run { entrypoint: "/bin/a".into(), user: "65532:65532".into(), env: vec![] });
    Image { reference: "x.dev/a:1".into(), created: 0, labels: vec![], run, layers: vec![base, top] }
}

fn error(change: impl FnOnce(&mut Image)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let mut image = sound();
    change(&mut image);
    oci::write(&image, &path).unwrap();
    format!("{:#}", check(&path).unwrap_err())
}

fn start(image: &mut Image) -> &mut Run {
    image.run.as_mut().unwrap()
}

#[test]
fn a_sound_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let written = oci::write(&sound(), &path).unwrap();
    let expected = Checked { reference: "x.dev/a:1".into(), digest: written.digest, files: 4, elf_files: 3 };
    assert_eq!(check(&path).unwrap(), expected);
}

#[test]
fn data_needs_no_entry_point() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let mut layer = Layer::new("data");
    layer.file("config.json", READABLE, "{}");
    let image = Image { run: None, layers: vec![layer], ..sound() };
    oci::write(&image, &path).unwrap();
    assert_eq!(check(&path).unwrap().files, 1);
}

#[test]
fn libraries_are_all_inside_and_none_is_idle() {
    let missing = |image: &mut Image| image.layers[1].file("/bin/a", EXECUTABLE, program(&["libx.so", "liby.so"]));
    assert!(error(missing).contains("/bin/a needs liby.so, which is in none of"), "{}", error(missing));
    let below = |image: &mut Image| image.layers[0].file("/usr/lib/libx.so", READABLE, library(&["libz.so"]));
    assert!(error(below).contains("/usr/lib/libx.so needs libz.so"));
    let elsewhere = |image: &mut Image| image.layers[0].file("/opt/libx.so", READABLE, library(&[]));
    assert!(error(elsewhere).ends_with("no program loads /opt/libx.so"));
    let no_loader = |image: &mut Image| image.layers[0].file("/lib64/ld.so", READABLE, "text");
    assert!(error(no_loader).contains("needs the loader /lib64/ld.so"));
}

#[test]
fn the_program_starts_as_an_ordinary_user() {
    assert!(error(|image| start(image).entrypoint = "/bin/b".into()).ends_with("the entry point /bin/b is missing"));
    assert!(error(|image| start(image).entrypoint = "/etc/a".into()).ends_with("may not be executed by everybody"));
    for user in ["", "0", "0:0", "root", "nonroot"] {
        assert!(error(|image| start(image).user = user.into()).ends_with("is not a number other than 0"), "{user}");
    }
    assert!(error(|image| image.layers[1].file("/bin/su", 0o4755, "x")).ends_with("/bin/su would run as another user"));
}

/// Rewrites one member of a sound archive; `to` is as long as `from`.
fn tampered(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    oci::write(&sound(), &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    format!("{:#}", check(&path).unwrap_err())
}

#[test]
fn tampering_is_seen() {
    assert!(
        tampered(
            "\"architecture\":\"amd64\",\"os\":\"linux\",\"config\"",
            "\"architecture\":\"arm64\",\"os\":\"linux\",\"config\""
        )
        .ends_with("holds other bytes than its name says")
    );
    assert!(
        tampered("\"RepoTags\":[\"x.dev/a:1\"]", "\"RepoTags\":[\"x.dev/a:2\"]").ends_with("does not say what index.json says")
    );
    assert!(
        tampered("\"io.containerd.image.name\":\"x.dev/a:1\"", "\"io.containerd.image.name\":\"x.dev/a:2\"")
            .ends_with("index.json gives two names")
    );
    assert!(tampered("\"imageLayoutVersion\":\"1.0.0\"", "\"imageLayoutVersion\":\"2.0.0\"").ends_with("than 1.0.0"));
    assert!(tampered("index.json", "idnex.json").ends_with("index.json is missing"));
}

#[test]
fn a_cut_archive_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    oci::write(&sound(), &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 100, 2000, bytes.len() / 2] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(check(&path).is_err(), "cut at {length}");
    }
    assert!(check(&folder.path().join("none.tar")).is_err());
}

#[test]
fn paths_become_normal() {
    assert_eq!(normal("/usr/lib/../lib64//./x"), "/usr/lib64/x");
    assert_eq!(normal("/../../x"), "/x");
}
