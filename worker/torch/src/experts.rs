//! [`Experts`]: the experts held here, and the weighted sums that they give for rows: every expert runs once over all of
//! its rows. `y = down(silu(gate x) * up x)`.

use m1_arch::{Architecture, ExpertId, ExpertSet, LayerId};
use m1_engine::{Brought, Held, Use};
use m1_weights::{ExpertPart, TensorName};
use tch::{TchError, Tensor};

use crate::error::TorchError;
use crate::load::Reader;
use crate::ops::options;

/// One expert's matrices, as transposed views of the stored ones.
#[derive(Debug)]
pub struct Expert {
    /// `[hidden, 2 * expert_hidden]`: gate, then up.
    gate_up: Tensor,
    /// `[expert_hidden, hidden]`.
    down: Tensor,
}

/// Held experts of all layers.
pub(crate) struct Experts {
    pub held: Held<Expert>,
    inner: i64,
}

impl Experts {
    /// None held.
    pub fn none(arch: &Architecture) -> Self {
        Experts { held: Held::none(arch.layers.len(), arch.experts), inner: arch.expert_hidden as i64 }
    }

    /// Reads experts, one after another; those that the model lacks are left out.
    pub fn bring(experts: &ExpertSet, reader: &mut Reader<'_>, take: &mut dyn FnMut(Brought<Expert>)) -> Result<(), TorchError> {
        let (layers, width) = (reader.architecture().layers.len(), reader.architecture().experts);
        for (layer, expert) in ExpertSet::full(layers, width).intersection(experts).iter() {
            let part = |part| TensorName::Expert { layer, expert, part };
            let what = Expert {
                gate_up: reader.stacked(&[part(ExpertPart::Gate), part(ExpertPart::Up)])?.f_tr()?,
                down: reader.tensor(part(ExpertPart::Down))?.f_tr()?,
            };
            take(Brought { layer, expert, what });
        }
        Ok(())
    }

    /// Adds `factor` times the weighted sums of held experts for rows of `x` to the same rows of `sums`; `uses` are sorted by expert.
    pub fn add(&self, layer: LayerId, x: &Tensor, uses: &[Use], factor: f64, sums: &mut Tensor) -> Result<(), TchError> {
        let Some(first) = uses.first() else { return Ok(()) };
        if uses.iter().any(|one| one.row != first.row) {
            return self.add_rows(layer, x, uses, factor, sums);
        }
        let row = i64::from(first.row);
        self.add_row(layer, &x.f_narrow(0, row, 1)?, uses, factor, &mut sums.f_narrow(0, row, 1)?)
    }

    /// One row: nothing to gather, and the last product adds into `sum` itself.
    fn add_row(&self, layer: LayerId, x: &Tensor, uses: &[Use], factor: f64, sum: &mut Tensor) -> Result<(), TchError> {
        for one in uses {
            let Some(expert) = self.expert(layer, one.expert) else { continue };
            let mut inner = self.activate(&x.f_mm(&expert.gate_up)?)?;
            let inner = inner.f_mul_scalar_(f64::from(one.weight) * factor)?;
            let _ = sum.f_addmm_(&inner, &expert.down)?;
        }
        Ok(())
    }

    /// Many rows: gathered in order of experts, so that each expert multiplies one slice.
    fn add_rows(&self, layer: LayerId, x: &Tensor, uses: &[Use], factor: f64, sums: &mut Tensor) -> Result<(), TchError> {
        let (count, width) = (uses.len() as i64, x.size()[1]);
        let rows = Tensor::f_from_slice(&uses.iter().map(|one| i64::from(one.row)).collect::<Vec<_>>())?.f_to(x.device())?;
        let weights: Vec<f32> = uses.iter().map(|one| (f64::from(one.weight) * factor) as f32).collect();
        let weights = Tensor::f_from_slice(&weights)?.f_view([-1, 1])?.f_to(x.device())?;
        let gathered = x.f_index_select(0, &rows)?;
        let projected = Tensor::f_empty([count, 2 * self.inner], options(x))?;
        self.each_expert(layer, uses, |expert, start, len| {
            gathered.f_narrow(0, start, len)?.f_mm_out(&projected.f_narrow(0, start, len)?, &expert.gate_up)
        })?;
        let inner = self.activate(&projected)?.f_mul_(&weights)?;
        let outputs = Tensor::f_empty([count, width], options(x))?;
        self.each_expert(layer, uses, |expert, start, len| {
            inner.f_narrow(0, start, len)?.f_mm_out(&outputs.f_narrow(0, start, len)?, &expert.down)
        })?;
        sums.f_index_add_(0, &rows, &outputs).map(drop)
    }

    fn each_expert(
        &self,
        layer: LayerId,
        uses: &[Use],
        run: impl Fn(&Expert, i64, i64) -> Result<Tensor, TchError>,
    ) -> Result<(), TchError> {
        let mut start = 0;
        for group in uses.chunk_by(|a, b| a.expert == b.expert) {
            let len = group.len() as i64;
            if let Some(expert) = self.expert(layer, group[0].expert) {
                let _ = run(expert, start, len)?;
            }
            start += len;
        }
        Ok(())
    }

    /// `silu(gate) * up` of `[rows, 2 * expert_hidden]`.
    fn activate(&self, projected: &Tensor) -> Result<Tensor, TchError> {
        projected.f_narrow(1, 0, self.inner)?.f_silu()?.f_mul_(&projected.f_narrow(1, self.inner, self.inner)?)
    }

    fn expert(&self, layer: LayerId, expert: u16) -> Option<&Expert> {
        self.held.get(layer, ExpertId(expert))
    }
}
