//! The port's calls. Wire format here is fp32 in the host's byte order, which is little-endian on every machine that
//! libtorch is built for.

use bytes::BytesMut;
use m1_arch::LayerId;
use m1_engine::{Assignment, Batch, Executor, ExecutorError, LayerRouting, SlotId, check_assignment, check_rows, in_flight};
use tch::{Tensor, no_grad_guard};

use super::TorchExecutor;
use crate::error::TorchError;
use crate::ops::scale_;
use crate::rows::Rows;

impl Executor for TorchExecutor {
    fn open_slot(&mut self) -> Result<SlotId, ExecutorError> {
        let _guard = no_grad_guard();
        let slot = self.slots.open()?;
        for layer in &mut self.model.layers {
            if let Err(error) = layer.mixer.clear(i64::from(slot.0)) {
                self.slots.close(slot);
                return Err(TorchError::from(error).into());
            }
        }
        Ok(slot)
    }

    fn close_slot(&mut self, slot: SlotId) {
        self.slots.close(slot);
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        Ok(self.start(batch)?)
    }

    fn attention(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        Ok(self.attend(layer, routing)?)
    }

    fn gather(&mut self, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        let step = in_flight(&mut self.step, "gather")?;
        step.order.expect_experts("gather")?;
        check_rows("gathered row", rows, step.layout.rows as usize)?;
        Ok(pick(rows).and_then(|rows| rows.pick(&step.hidden)).map_err(TorchError::from).and_then(|x| append(&x, out))?)
    }

    fn local(&mut self, layer: LayerId, assignment: &Assignment<'_>) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        let step = in_flight(&mut self.step, "local")?;
        step.order.expect_experts_of("local", layer)?;
        check_assignment(self.experts.set(), layer, assignment, step.layout.rows as usize)?;
        let added = self.experts.add(layer, &step.hidden, assignment, self.arch.mlp.beta, &mut step.x);
        self.or_drop_step(added)
    }

    fn accumulate(&mut self, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        let step = in_flight(&mut self.step, "accumulate")?;
        step.order.expect_experts("accumulate")?;
        check_rows("answered row", rows, step.layout.rows as usize)?;
        let mut sums = self.wire_rows("sums", sums, rows.len())?;
        let step = in_flight(&mut self.step, "accumulate")?;
        let added = scale_(&mut sums, self.arch.mlp.beta).and_then(|()| pick(rows)?.add(&mut step.x, &sums));
        self.or_drop_step(added)
    }

    fn combine(&mut self, layer: LayerId) -> Result<(), ExecutorError> {
        Ok(self.end_layer(layer)?)
    }

    fn end_step(&mut self, logits: &mut Vec<f32>) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        Ok(self.end(logits)?)
    }

    fn serve(
        &mut self,
        layer: LayerId,
        hidden: &[u8],
        assignment: &Assignment<'_>,
        sums: &mut BytesMut,
    ) -> Result<(), ExecutorError> {
        let _guard = no_grad_guard();
        check_assignment(self.experts.set(), layer, assignment, assignment.rows.len())?;
        let x = self.wire_rows("hidden", hidden, assignment.rows.len())?;
        let answer = x.f_zeros_like().and_then(|mut answer| {
            self.experts.add(layer, &x, assignment, 1.0, &mut answer)?;
            Ok(answer)
        });
        Ok(append(&answer.map_err(TorchError::from)?, sums)?)
    }
}

impl TorchExecutor {
    /// A sum that was added in part cannot be mended.
    fn or_drop_step(&mut self, added: Result<(), tch::TchError>) -> Result<(), ExecutorError> {
        added.map_err(|error| {
            self.step = None;
            TorchError::from(error).into()
        })
    }
}

/// Rows given by the port.
fn pick(rows: &[u32]) -> Result<Rows, tch::TchError> {
    Rows::new(&rows.iter().map(|row| i64::from(*row)).collect::<Vec<_>>())
}

/// Appends a tensor's elements as wire bytes; `out` is left alone if they cannot be had.
fn append(x: &Tensor, out: &mut BytesMut) -> Result<(), TorchError> {
    let start = out.len();
    out.resize(start + x.numel() * size_of::<f32>(), 0);
    x.f_copy_data_u8(&mut out[start..], x.numel()).inspect_err(|_| out.truncate(start))?;
    Ok(())
}
