//! The output of `forward`: a safetensors file written as the logits come, in a temporary file beside it, renamed when whole.
//!
//! Layout: all token tensors first (i64, so that they are aligned), then per prompt its logits and its decode logits (fp32),
//! which is the order in which rows arrive. Tokens are known last, so their place is filled in at the end.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, json};
use tempfile::NamedTempFile;

use super::prompts::Prompt;

/// Why the output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct ArchiveError {
    path: PathBuf,
    source: std::io::Error,
}

/// Writes to the file buffer this much at once.
const BUFFER: usize = 1 << 20;

/// A file that is being written.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    header: u64,
    tokens: Vec<i64>,
}

impl Archive {
    /// Opens the temporary file and writes the header: `decode` tokens per prompt, rows of `vocab` logits.
    ///
    /// # Errors
    /// The folder of `path` cannot be written.
    pub fn create(path: &Path, prompts: &[Prompt], decode: usize, vocab: usize) -> Result<Self, ArchiveError> {
        let failed = |source| ArchiveError { path: path.to_path_buf(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = named(folder).map_err(failed)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        let header = header(prompts, decode, vocab);
        let tokens = vec![0u8; prompts.len() * decode * 8];
        let mut write = |bytes: &[u8]| file.write_all(bytes);
        write(&(header.len() as u64).to_le_bytes()).and_then(|()| write(&header)).and_then(|()| write(&tokens)).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file, header: 8 + header.len() as u64, tokens: Vec::new() })
    }

    /// The next rows of logits, little-endian fp32.
    ///
    /// # Errors
    /// The disk is full, or the like.
    pub fn rows(&mut self, values: &[u8]) -> Result<(), ArchiveError> {
        self.file.write_all(values).map_err(|source| ArchiveError { path: self.path.clone(), source })
    }

    /// The decode tokens of the next prompt.
    pub fn tokens(&mut self, ids: &[u32]) {
        self.tokens.extend(ids.iter().map(|&id| i64::from(id)));
    }

    /// Fills in the tokens and gives the file its name.
    ///
    /// # Errors
    /// As above, or the name cannot be taken.
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError { path: self.path.clone(), source };
        self.file.seek(SeekFrom::Start(self.header)).map_err(failed)?;
        for id in &self.tokens {
            self.file.write_all(&id.to_le_bytes()).map_err(failed)?;
        }
        let file = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// A temporary file that, once renamed, has the mode of any new file.
fn named(folder: &Path) -> std::io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".m1ctl-").suffix(".part").permissions(mode).tempfile_in(folder)
}

/// The JSON header, padded with spaces so that the data is aligned to 8 bytes.
fn header(prompts: &[Prompt], decode: usize, vocab: usize) -> Vec<u8> {
    let mut entries = Map::new();
    let mut at = 0;
    let mut add = |name: String, dtype: &str, size: usize, shape: &[usize]| {
        let end = at + size * shape.iter().product::<usize>();
        entries.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    };
    if decode > 0 {
        for prompt in prompts {
            add(format!("{}.decode_tokens", prompt.name), "I64", 8, &[decode]);
        }
    }
    for prompt in prompts {
        add(format!("{}.logits", prompt.name), "F32", 4, &[prompt.ids.len(), vocab]);
        if decode > 0 {
            add(format!("{}.decode_logits", prompt.name), "F32", 4, &[decode, vocab]);
        }
    }
    let mut text = serde_json::Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, SafeTensors};

    use super::*;

    fn prompts() -> Vec<Prompt> {
        vec![Prompt { name: "b".into(), ids: vec![1, 2, 0] }, Prompt { name: "a".into(), ids: vec![1] }]
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.safetensors");
        let mut archive = Archive::create(&path, &prompts(), 1, 3).unwrap();
        archive.rows(&floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
        archive.rows(&floats(&[6.0, 7.0, 8.0, 9.0, 9.5, 9.75])).unwrap();
        archive.tokens(&[2]);
        archive.rows(&floats(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])).unwrap();
        archive.tokens(&[1]);
        assert!(!path.exists());
        archive.finish().unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let logits = read.tensor("b.logits").unwrap();
        assert_eq!((logits.dtype(), logits.shape()), (Dtype::F32, &[3, 3][..]));
        assert_eq!(logits.data()[..4], 0.0f32.to_le_bytes());
        assert_eq!(read.tensor("b.decode_logits").unwrap().data(), floats(&[9.0, 9.5, 9.75]));
        assert_eq!(read.tensor("a.decode_logits").unwrap().data(), floats(&[-4.0, -5.0, -6.0]));
        let tokens = read.tensor("a.decode_tokens").unwrap();
        assert_eq!((tokens.dtype(), tokens.data()), (Dtype::I64, &1i64.to_le_bytes()[..]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn without_decode_there_are_only_logits() {
        let text = String::from_utf8(header(&prompts(), 0, 3)).unwrap();
        assert_eq!(
            text.trim_end(),
            r#"{"b.logits":{"dtype":"F32","shape":[3,3],"data_offsets":[0,36]},"a.logits":{"dtype":"F32","shape":[1,3],"data_offsets":[36,48]}}"#
        );
        assert_eq!(text.len() % 8, 0);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(Archive::create(&folder.path().join("out"), &prompts(), 2, 3).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(Archive::create(Path::new("/no/such/folder/out"), &prompts(), 2, 3).is_err());
    }
}
