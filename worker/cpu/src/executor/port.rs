//! The port's calls. Wire format here is fp32, little-endian.

use bytes::BytesMut;
use m1_arch::LayerId;
use m1_engine::{Assignment, Batch, Executor, ExecutorError, LayerRouting, SlotId, check_assignment, check_rows, in_flight};

use super::CpuExecutor;
use crate::compute::room;

impl Executor for CpuExecutor {
    fn open_slot(&mut self) -> Result<SlotId, ExecutorError> {
        let slot = self.slots.open()?;
        for layer in &mut self.model.layers {
            layer.mixer.clear(slot.0 as usize);
        }
        Ok(slot)
    }

    fn close_slot(&mut self, slot: SlotId) {
        self.slots.close(slot);
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        Ok(self.start(batch)?)
    }

    fn attention(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), ExecutorError> {
        Ok(self.attend(layer, routing)?)
    }

    fn gather(&mut self, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError> {
        let step = in_flight(&mut self.step, "gather")?;
        step.order.expect_experts("gather")?;
        check_rows("gathered row", rows, step.layout.rows)?;
        let width = self.arch.hidden;
        for row in rows {
            append(&self.memory.hidden[*row as usize * width..(*row as usize + 1) * width], out);
        }
        Ok(())
    }

    fn local(&mut self, layer: LayerId, assignment: &Assignment<'_>) -> Result<(), ExecutorError> {
        let step = in_flight(&mut self.step, "local")?;
        step.order.expect_experts_of("local", layer)?;
        check_assignment(self.experts.set(), layer, assignment, step.layout.rows)?;
        let numbers = step.layout.rows * self.arch.hidden;
        let (hidden, sums) = (&self.memory.hidden[..numbers], &mut self.memory.sums[..numbers]);
        let added = self.experts.add(&mut self.compute, layer, hidden, assignment, sums);
        // A sum that was added in part cannot be mended.
        Ok(added.inspect_err(|_| self.step = None)?)
    }

    fn accumulate(&mut self, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError> {
        let step = in_flight(&mut self.step, "accumulate")?;
        step.order.expect_experts("accumulate")?;
        check_rows("answered row", rows, step.layout.rows)?;
        let width = self.arch.hidden;
        check_bytes("sums", sums, rows.len(), width)?;
        for (row, bytes) in rows.iter().zip(sums.chunks_exact(width * size_of::<f32>())) {
            let own = &mut self.memory.sums[*row as usize * width..(*row as usize + 1) * width];
            for (sum, number) in own.iter_mut().zip(numbers(bytes)) {
                *sum += number;
            }
        }
        Ok(())
    }

    fn combine(&mut self, layer: LayerId) -> Result<(), ExecutorError> {
        Ok(self.end_layer(layer)?)
    }

    fn end_step(&mut self, logits: &mut Vec<f32>) -> Result<(), ExecutorError> {
        Ok(self.end(logits)?)
    }

    fn serve(
        &mut self,
        layer: LayerId,
        hidden: &[u8],
        assignment: &Assignment<'_>,
        sums: &mut BytesMut,
    ) -> Result<(), ExecutorError> {
        let (rows, width) = (assignment.rows.len(), self.arch.hidden);
        check_assignment(self.experts.set(), layer, assignment, rows)?;
        check_bytes("hidden", hidden, rows, width)?;
        let (asked, answered) = (&mut self.memory.asked, &mut self.memory.answered);
        let (asked, answered) = (room(asked, rows * width), room(answered, rows * width));
        asked.iter_mut().zip(numbers(hidden)).for_each(|(to, number)| *to = number);
        answered.fill(0.0);
        self.experts.add(&mut self.compute, layer, asked, assignment, answered)?;
        append(answered, sums);
        Ok(())
    }
}

fn check_bytes(what: &'static str, bytes: &[u8], rows: usize, width: usize) -> Result<(), ExecutorError> {
    let wanted = rows * width * size_of::<f32>();
    if bytes.len() == wanted {
        return Ok(());
    }
    let allowed = format!("{wanted} bytes, {rows} rows x hidden x 4");
    Err(ExecutorError::InvalidArgument { what, given: bytes.len() as u64, allowed })
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn append(numbers: &[f32], out: &mut BytesMut) {
    out.reserve(size_of_val(numbers));
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}
