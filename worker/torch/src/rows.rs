//! [`Rows`]: some entries of a tensor's first dimension, taken without a copy where they lie side by side.

use tch::{Device, TchError, Tensor};

/// Rows of a tensor.
#[derive(Debug)]
pub(crate) enum Rows {
    /// Consecutive and ascending: a view will do.
    Run {
        /// The first.
        start: i64,
        /// How many.
        len: i64,
    },
    /// Anything else, as an i64 index.
    List(Tensor),
}

impl Rows {
    /// Rows by number, of tensors on this device.
    pub fn new(rows: impl IntoIterator<Item = impl Into<i64>>, device: Device) -> Result<Self, TchError> {
        let rows: Vec<i64> = rows.into_iter().map(Into::into).collect();
        let start = rows.first().copied().unwrap_or(0);
        if rows.iter().zip(start..).all(|(row, wanted)| *row == wanted) {
            return Ok(Rows::Run { start, len: rows.len() as i64 });
        }
        Ok(Rows::List(Tensor::f_from_slice(&rows)?.f_to(device)?))
    }

    /// These rows of `tensor`: a view of a run, a copy of a list.
    pub fn pick(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Rows::Run { start, len } => tensor.f_narrow(0, *start, *len),
            Rows::List(index) => tensor.f_index_select(0, index),
        }
    }

    /// Writes these rows of `tensor`.
    pub fn put(&self, tensor: &mut Tensor, rows: &Tensor) -> Result<(), TchError> {
        match self {
            Rows::Run { start, len } => tensor.f_narrow(0, *start, *len)?.f_copy_(rows),
            Rows::List(index) => tensor.f_index_copy_(0, index, rows).map(drop),
        }
    }

    /// Adds to these rows of `tensor`; a row may come twice.
    pub fn add(&self, tensor: &mut Tensor, rows: &Tensor) -> Result<(), TchError> {
        match self {
            Rows::Run { start, len } => tensor.f_narrow(0, *start, *len)?.f_add_(rows).map(drop),
            Rows::List(index) => tensor.f_index_add_(0, index, rows).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_views_and_lists_are_not() -> Result<(), TchError> {
        let mut table = Tensor::f_from_slice(&[10f32, 20., 30., 40.])?;
        let run = Rows::new([1, 2], table.device())?;
        let list = Rows::new([3, 0, 3], table.device())?;
        assert!(matches!((&run, &list), (Rows::Run { start: 1, len: 2 }, Rows::List(_))));
        list.add(&mut table, &Tensor::f_from_slice(&[1f32, 2., 3.])?)?;
        run.put(&mut table, &Tensor::f_from_slice(&[5f32, 6.])?)?;
        assert_eq!(Vec::<f32>::try_from(&table)?, [12., 5., 6., 44.]);
        assert_eq!(Vec::<f32>::try_from(&list.pick(&table)?)?, [44., 12., 44.]);
        Ok(())
    }
}
