//! [`Weight`]: a tensor of the checkpoint, used where it lies. Small vectors are widened; so are tensors stored as IEEE halves, which the
//! kernels do not read.

use std::sync::Arc;

use m1_arch::Architecture;
use m1_kernels::{Dtype, Matrix};
use m1_weights::{Checkpoint, Dtype as Stored, MappedFile, MappedTensor, TensorName};

use crate::error::CpuError;

/// A matrix, `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Weight {
    bytes: Bytes,
    dtype: Dtype,
    outputs: usize,
    inputs: usize,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedTensor),
    Widened(Vec<u8>),
}

impl Weight {
    /// The matrix. Its size was checked when it was loaded.
    pub fn matrix(&self) -> Result<Matrix<'_>, CpuError> {
        let bytes = match &self.bytes {
            Bytes::Mapped(tensor) => tensor.bytes(),
            Bytes::Widened(bytes) => bytes,
        };
        Ok(Matrix::new(bytes, self.dtype, self.outputs, self.inputs)?)
    }

    /// Whether what was computed with it before this call counts.
    ///
    /// # Errors
    /// Its file has changed.
    pub fn check(&self) -> Result<(), CpuError> {
        match &self.bytes {
            Bytes::Mapped(tensor) => Ok(tensor.file().check()?),
            Bytes::Widened(_) => Ok(()),
        }
    }
}

/// Takes tensors of a checkpoint and counts their bytes.
pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(u64),
    read: u64,
    /// Those of tensors that are used where they lie, each once.
    files: Vec<Arc<MappedFile>>,
}

impl<'a> Loader<'a> {
    /// `progress` is told the sum of stored bytes that are in memory so far.
    pub fn new(checkpoint: &'a Checkpoint, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self { checkpoint, progress, read: 0, files: Vec::new() }
    }

    /// The network that they are of.
    pub fn architecture(&self) -> &'a Architecture {
        self.checkpoint.architecture()
    }

    /// The files in which matrices so far are used.
    pub fn files(&self) -> &[Arc<MappedFile>] {
        &self.files
    }

    /// Looks at them: to be called when all has come.
    ///
    /// # Errors
    /// One has changed meanwhile.
    pub fn look(&self) -> Result<(), CpuError> {
        Ok(self.files.iter().try_for_each(|file| file.look())?)
    }

    /// A matrix, brought into memory.
    pub fn matrix(&mut self, name: TensorName) -> Result<Weight, CpuError> {
        let tensor = self.touched(name)?;
        let inputs = tensor.shape.last().copied().unwrap_or(0);
        let outputs = tensor.shape.iter().product::<usize>().checked_div(inputs).unwrap_or(0);
        let (dtype, bytes) = match tensor.dtype {
            Stored::F32 => (Dtype::F32, self.mapped(tensor)),
            Stored::BF16 => (Dtype::Bf16, self.mapped(tensor)),
            Stored::F16 => {
                let widened = values(&tensor).flat_map(f32::to_le_bytes).collect();
                tensor.file().look()?;
                (Dtype::F32, Bytes::Widened(widened))
            }
        };
        let weight = Weight { bytes, dtype, outputs, inputs };
        weight.matrix()?;
        Ok(weight)
    }

    /// A vector, widened.
    pub fn vector(&mut self, name: TensorName) -> Result<Vec<f32>, CpuError> {
        let tensor = self.touched(name)?;
        let values = values(&tensor).collect();
        tensor.file().look()?;
        Ok(values)
    }

    fn mapped(&mut self, tensor: MappedTensor) -> Bytes {
        if !self.files.iter().any(|file| Arc::ptr_eq(file, tensor.file())) {
            self.files.push(tensor.file().clone());
        }
        Bytes::Mapped(tensor)
    }

    fn touched(&mut self, name: TensorName) -> Result<MappedTensor, CpuError> {
        let tensor = self.checkpoint.mapped(&name)?;
        tensor.touch(&mut |bytes| {
            self.read += bytes as u64;
            (self.progress)(self.read);
        })?;
        Ok(tensor)
    }
}

/// A tensor's numbers.
fn values(tensor: &MappedTensor) -> impl Iterator<Item = f32> + '_ {
    let dtype = tensor.dtype;
    tensor.bytes().chunks_exact(dtype.size()).map(move |bytes| match (dtype, bytes) {
        (Stored::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Stored::BF16, &[a, b]) => f32::from_le_bytes([0, 0, a, b]),
        (Stored::F16, &[a, b]) => from_half(u16::from_le_bytes([a, b])),
        _ => 0.0,
    })
}

/// An IEEE half, exactly: 1 sign, 5 exponent and 10 fraction bits.
fn from_half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, u32::from(bits >> 10) & 31, u32::from(bits) & 1023);
    match exponent {
        // Below the least exponent: the fraction times 2^-24.
        0 => f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x3555, 0.333_251_95), (0x7bff, 65504.0), (0x0001, 5.960_464_5e-8)] {
            assert_eq!(from_half(bits), value, "{bits:#x}");
        }
        assert_eq!(from_half(0x8000).to_bits(), (-0.0f32).to_bits());
        assert!(from_half(0x7c00) == f32::INFINITY && from_half(0x7e00).is_nan());
        assert_eq!(from_half(0x03ff), 1023.0 * 2f32.powi(-24));
    }
}
