//! Reads what `m1ctl forward` writes and what it is compared with.

use std::path::Path;

use safetensors::SafeTensors;

/// A safetensors file in memory.
pub struct Tensors(Vec<u8>);

impl Tensors {
    /// Reads a file.
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}: run `make test`", path.display())))
    }

    /// Shape and values of an fp32 tensor.
    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = tensors.tensor(name).expect(name);
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        (tensor.shape().to_vec(), values)
    }

    /// Values of an i64 or i32 tensor.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let tensors = SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = tensors.tensor(name).expect(name);
        let whole = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("8 bytes"));
        match tensor.dtype() {
            safetensors::Dtype::I64 => tensor.data().chunks_exact(8).map(whole).collect(),
            safetensors::Dtype::I32 => {
                tensor.data().chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Runs `m1ctl forward` over a model's own prompts.json.
pub fn forward(model: &Path, extra: &[&str]) -> Tensors {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (out, tokens) = (scratch.path().join("out.safetensors"), model.join("prompts.json"));
    let mut line: Vec<&std::ffi::OsStr> = vec!["forward".as_ref(), "--model".as_ref(), model.as_ref()];
    line.extend([AsRef::<std::ffi::OsStr>::as_ref("--tokens"), tokens.as_ref(), "--output".as_ref(), out.as_ref()]);
    line.extend(extra.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    let (ok, _, stderr) = crate::m1ctl(&line);
    assert!(ok, "{line:?}:\n{stderr}");
    Tensors::read(&out)
}

/// Holds logits to 1e-4.
#[track_caller]
pub fn near(got: &[f32], expected: &[f32], what: &str) {
    const TOLERANCE: f32 = 1e-4;
    assert_eq!(got.len(), expected.len(), "{what}");
    // Not a maximum, which would pass over values that are no numbers.
    let close = |(a, b): (&f32, &f32)| a.is_finite() && (a - b).abs() <= TOLERANCE;
    let wrong = got.iter().zip(expected).enumerate().find(|(_, pair)| !close(*pair));
    assert!(wrong.is_none(), "{what}: logits differ at {wrong:?}");
}
