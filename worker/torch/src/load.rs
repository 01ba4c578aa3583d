//! [`Reader`]: checkpoint -> fp32 tensors on the device, piece by piece, so that no second copy of a tensor ever exists.

use m1_arch::Architecture;
use m1_engine::Progress;
use m1_weights::{Checkpoint, Dtype, TensorName};
use tch::{Device, Kind, TchError, Tensor};

use crate::error::TorchError;

/// Stored bytes converted at a time: enough to keep the copy fast, little beside any limit on memory.
const PIECE_BYTES: usize = 4 << 20;

/// Reads tensors of a checkpoint and counts the bytes.
pub(crate) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    progress: Progress<'a>,
    read: u64,
}

impl<'a> Reader<'a> {
    /// `progress` is told the sum of stored bytes read so far, after each piece.
    pub fn new(checkpoint: &'a Checkpoint, device: Device, progress: Progress<'a>) -> Self {
        Reader { checkpoint, device, progress, read: 0 }
    }

    /// The network's shape.
    pub fn architecture(&self) -> &Architecture {
        self.checkpoint.architecture()
    }

    /// What tensors here are made of.
    pub fn options(&self) -> (Kind, Device) {
        (Kind::Float, self.device)
    }

    /// Numbers that no checkpoint holds.
    pub fn given(&self, numbers: &[f32]) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(numbers)?.f_to(self.device)
    }

    /// One tensor in fp32, in its own shape.
    pub fn tensor(&mut self, name: TensorName) -> Result<Tensor, TorchError> {
        let shape: Vec<i64> = self.checkpoint.tensor(&name)?.shape.iter().map(|size| *size as i64).collect();
        let target = Tensor::f_empty(&shape, self.options())?;
        self.fill(&mut target.f_view([-1])?, name)?;
        Ok(target)
    }

    /// Matrices of the same width, one below the other, as one.
    pub fn stacked(&mut self, names: &[TensorName]) -> Result<Tensor, TorchError> {
        let (mut rows, mut columns) = (Vec::new(), 0);
        for name in names {
            let view = self.checkpoint.tensor(name)?;
            columns = view.shape.last().copied().unwrap_or(0) as i64;
            rows.push(view.shape.iter().product::<usize>() as i64 / columns.max(1));
        }
        let target = Tensor::f_empty([rows.iter().sum(), columns], self.options())?;
        let mut start = 0;
        for (name, rows) in names.iter().zip(rows) {
            self.fill(&mut target.f_narrow(0, start, rows)?.f_view([-1])?, *name)?;
            start += rows;
        }
        Ok(target)
    }

    fn fill(&mut self, target: &mut Tensor, name: TensorName) -> Result<(), TorchError> {
        let view = self.checkpoint.tensor(&name)?;
        let kind = match view.dtype {
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F32 => Kind::Float,
        };
        let mut start = 0;
        for piece in view.data.chunks(PIECE_BYTES) {
            let elements = (piece.len() / kind.elt_size_in_bytes()) as i64;
            let stored = Tensor::f_from_data_size(piece, &[elements], kind)?;
            target.f_narrow(0, start, elements)?.f_copy_(&stored)?;
            start += elements;
            self.read += piece.len() as u64;
            (self.progress)(self.read);
        }
        view.file.check()?;
        Ok(())
    }
}
