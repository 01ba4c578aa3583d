//! Writes an image as one file that every runtime loads: an OCI layout (oci-layout, index.json, blobs/sha256/...) that
//! also holds the manifest.json of `docker save`, over the same blobs. Formats: OCI image specification 1.0. The bytes
//! depend on the image only: packing the same image again gives the same file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::digest::{Digest, Hashed};
use super::layer::{Layer, READABLE};

pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The name of an image as containerd reads it.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The name of an image as podman and skopeo read it.
pub const OCI_NAME: &str = "org.opencontainers.image.ref.name";
/// Beyond 6 gzip needs several times as long for one hundredth less.
const LEVEL: u32 = 6;
/// "Unknown": the header must not tell where an image was packed.
const GZIP_SYSTEM: u8 = 255;

/// How a container of an image starts.
pub struct Run {
    pub entrypoint: String,
    pub user: String,
    pub env: Vec<String>,
}

/// What an image consists of.
pub struct Image {
    /// NAME:TAG.
    pub reference: String,
    /// Seconds since 1970: time of creation, and of every file.
    pub created: u64,
    pub labels: Vec<(String, String)>,
    /// None for an image that only holds data.
    pub run: Option<Run>,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the manifest: what a registry and containerd call the image's digest.
    pub digest: String,
    /// Bytes of the compressed layers.
    pub compressed: u64,
}

/// A layer as a blob.
struct Packed {
    title: String,
    blob: Digest,
    /// Of the layer before compression.
    diff: Digest,
}

/// Writes the archive at `path`, whole or not at all.
pub fn write(image: &Image, path: &Path) -> Result<Written> {
    let folder = path.parent().context("an archive has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    // Beside the archive and not in /tmp, which may be small.
    let scratch = TempDir::with_prefix_in(".image-", folder).context("create a scratch folder")?;
    let packed: Vec<Packed> = image.layers.iter().map(|layer| pack(layer, image.created, scratch.path())).collect::<Result<_>>()?;

    let config = rendered(&config(image, &packed))?;
    let manifest = rendered(&manifest(image, &Digest::of(&config), &packed))?;
    let digest = Digest::of(&manifest);
    let mut archive = Layer::new("the archive");
    archive.file("oci-layout", READABLE, rendered(&json!({"imageLayoutVersion": "1.0.0"}))?);
    archive.file("index.json", READABLE, rendered(&index(image, &digest))?);
    archive.file("manifest.json", READABLE, rendered(&docker_manifest(image, &Digest::of(&config), &packed))?);
    for layer in &packed {
        archive.copy(&blob_path(&layer.blob), READABLE, scratch.path().join(&layer.blob.hex));
    }
    for bytes in [config, manifest] {
        archive.file(&blob_path(&Digest::of(&bytes)), READABLE, bytes);
    }
    let part = scratch.path().join("archive");
    let file = BufWriter::new(File::create(&part).context("create the archive")?);
    archive.write(image.created, file)?.flush().context("write the archive")?;
    fs::rename(&part, path).with_context(|| format!("move the archive to {}", path.display()))?;
    Ok(Written { digest: digest.reference(), compressed: packed.iter().map(|layer| layer.blob.size).sum() })
}

/// Compresses a layer into a file named by its digest.
fn pack(layer: &Layer, mtime: u64, scratch: &Path) -> Result<Packed> {
    let part: PathBuf = scratch.join("layer");
    let file = BufWriter::new(File::create(&part).context("create a layer")?);
    let gzip = GzBuilder::new().mtime(0).operating_system(GZIP_SYSTEM).write(Hashed::new(file), Compression::new(LEVEL));
    let (gzip, diff) = layer.write(mtime, Hashed::new(gzip))?.finish();
    let (mut file, blob) = gzip.finish().context("compress a layer")?.finish();
    file.flush().context("write a layer")?;
    fs::rename(&part, scratch.join(&blob.hex)).context("name a layer")?;
    Ok(Packed { title: layer.title.clone(), blob, diff })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex)
}

fn rendered(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("render JSON")
}

/// Seconds since 1970 as RFC 3339 has it.
pub fn timestamp(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

fn labels(image: &Image) -> Value {
    Value::Object(image.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>())
}

fn config(image: &Image, packed: &[Packed]) -> Value {
    let created = timestamp(image.created);
    let mut run = json!({"Labels": labels(image)});
    if let Some(Run { entrypoint, user, env }) = &image.run {
        run["User"] = json!(user);
        run["Env"] = json!(env);
        run["Entrypoint"] = json!([entrypoint]);
        run["WorkingDir"] = json!("/");
    }
    let history = packed.iter().map(|layer| json!({"created": created, "created_by": "cargo xtask image", "comment": layer.title}));
    json!({
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": packed.iter().map(|layer| layer.diff.reference()).collect::<Vec<_>>()},
        "history": history.collect::<Vec<_>>(),
    })
}

fn descriptor(media_type: &str, digest: &Digest) -> Value {
    json!({"mediaType": media_type, "digest": digest.reference(), "size": digest.size})
}

fn manifest(image: &Image, config: &Digest, packed: &[Packed]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, config),
        "layers": packed.iter().map(|layer| descriptor(LAYER_TYPE, &layer.blob)).collect::<Vec<_>>(),
        "annotations": labels(image),
    })
}

fn index(image: &Image, manifest: &Digest) -> Value {
    let mut entry = descriptor(MANIFEST_TYPE, manifest);
    entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
    entry["annotations"] = json!({CONTAINERD_NAME: image.reference, OCI_NAME: image.reference});
    json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})
}

fn docker_manifest(image: &Image, config: &Digest, packed: &[Packed]) -> Value {
    json!([{
        "Config": blob_path(config),
        "RepoTags": [image.reference],
        "Layers": packed.iter().map(|layer| blob_path(&layer.blob)).collect::<Vec<_>>(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(top: &str) -> Image {
        let mut base = Layer::new("base");
        base.file("/etc/passwd", READABLE, "root");
        let mut program = Layer::new("program");
        program.file("/bin/a", 0o755, top);
        let run = Some(Run { entrypoint: "/bin/a".into(), user: "1:1".into(), env: vec!["A=b".into()] });
        let labels = vec![("title".to_owned(), "x".to_owned())];
        Image { reference: "x.dev/a:1".into(), created: 0, labels, run, layers: vec![base, program] }
    }

    fn blobs(path: &Path) -> Vec<String> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
        names.filter(|name| name.len() > "blobs/sha256/".len()).collect()
    }

    #[test]
    fn the_same_image_gives_the_same_bytes_and_another_byte_another_digest() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, other] = ["one", "two", "other"].map(|name| folder.path().join(name));
        let first = write(&image("x"), &one).unwrap();
        assert_eq!(first, write(&image("x"), &two).unwrap());
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        assert_ne!(first.digest, write(&image("y"), &other).unwrap().digest);
        // The lower layer is the same blob: an upgrade moves the upper one, the configuration and the manifest.
        let (before, after) = (blobs(&one), blobs(&other));
        assert_eq!((before.len(), before.iter().filter(|name| !after.contains(name)).count()), (4, 3));
    }

    #[test]
    fn nothing_is_left_beside_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        write(&image("x"), &folder.path().join("a.tar")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let mut broken = image("x");
        broken.layers[0].copy("/a", READABLE, "/nowhere");
        assert!(write(&broken, &folder.path().join("b.tar")).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn time_is_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(1_709_164_800), "2024-02-29T00:00:00Z");
    }
}
