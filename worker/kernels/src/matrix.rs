//! [`Matrix`]: weights as a checkpoint stores them, used where they lie.

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// The upper 16 bits of those.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Why bytes are no matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixError {
    /// Bytes given.
    pub given: usize,
    /// Bytes that its shape takes; none where that is beyond all memory.
    pub needed: Option<usize>,
}

impl std::fmt::Display for MatrixError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.needed {
            Some(needed) => write!(out, "{} bytes given, the matrix has {needed}", self.given),
            None => write!(out, "{} bytes given, the matrix is larger than all memory", self.given),
        }
    }
}

impl std::error::Error for MatrixError {}

/// `[outputs, inputs]`, row by row, little-endian as safetensors are. Needs no alignment: a mapped file gives none.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    outputs: usize,
    inputs: usize,
}

impl<'a> Matrix<'a> {
    /// Bytes as a matrix.
    ///
    /// # Errors
    /// They are more or fewer than the shape takes.
    pub fn new(bytes: &'a [u8], dtype: Dtype, outputs: usize, inputs: usize) -> Result<Self, MatrixError> {
        let needed = outputs.checked_mul(inputs).and_then(|numbers| numbers.checked_mul(dtype.bytes()));
        if needed != Some(bytes.len()) {
            return Err(MatrixError { given: bytes.len(), needed });
        }
        Ok(Self { bytes, dtype, outputs, inputs })
    }

    /// Rows of the matrix: numbers that a product gives for each row of its input.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix: numbers of each row of a product's input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How it is stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Where it lies; `outputs * inputs` numbers of `dtype` from there, unaligned.
    pub(crate) fn start(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// One row, widened, into `out`. `row` and `out` must fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let width = self.inputs * self.dtype.bytes();
        let stored = &self.bytes[row * width..(row + 1) * width];
        assert_eq!(out.len(), self.inputs, "numbers of a row");
        match self.dtype {
            Dtype::F32 => {
                for (out, bytes) in out.iter_mut().zip(stored.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::Bf16 => {
                for (out, bytes) in out.iter_mut().zip(stored.as_chunks::<2>().0) {
                    *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_has_the_bytes_of_its_shape() {
        assert!(Matrix::new(&[0; 24], Dtype::F32, 2, 3).is_ok());
        let refused = Matrix::new(&[0; 24], Dtype::Bf16, 2, 3).unwrap_err();
        assert_eq!(refused.to_string(), "24 bytes given, the matrix has 12");
        let refused = Matrix::new(&[0; 24], Dtype::F32, usize::MAX, 3).unwrap_err();
        assert_eq!(refused.to_string(), "24 bytes given, the matrix is larger than all memory");
    }

    #[test]
    fn rows_are_read_as_they_are_stored() {
        let mut out = [0.0; 2];
        let stored: Vec<u8> = [1.0f32, -2.5, 3.0, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect();
        Matrix::new(&stored, Dtype::F32, 2, 2).unwrap().read_row(1, &mut out);
        assert_eq!(out, [3.0, 0.1]);
        let stored: Vec<u8> = [0x3f80u16, 0xc020, 0, 0x4040].iter().flat_map(|x| x.to_le_bytes()).collect();
        Matrix::new(&stored, Dtype::Bf16, 2, 2).unwrap().read_row(0, &mut out);
        assert_eq!(out, [1.0, -2.5]);
    }
}
