//! [`TorchExecutor`]: the executor port on libtorch. Every call first checks that it may come and that its arguments fit,
//! and only then computes, so that a refusal changes nothing. A step whose computing failed is gone; its sequences' states
//! have moved on, so their slots can only be closed.

mod port;

use m1_arch::{Architecture, ExpertSet, LayerId};
use m1_engine::{Batch, CacheSize, ExecutorError, LayerRouting, Slots, StepOrder, check_batch, choose_experts, in_flight};
use m1_weights::Checkpoint;
use tch::{Kind, Tensor, no_grad_guard};

use crate::error::TorchError;
use crate::experts::Experts;
use crate::layout::Layout;
use crate::load::Reader;
use crate::model::Model;
use crate::ops::{rms, scale_};
use crate::rows::Rows;
use crate::step::Step;

/// MiniMax-M1 on this machine's CPU, in fp32.
pub struct TorchExecutor {
    arch: Architecture,
    digest: String,
    model: Model,
    experts: Experts,
    slots: Slots,
    step: Option<Step>,
    /// Router logits on the host, kept for their allocation.
    logits: Vec<f32>,
}

impl TorchExecutor {
    /// Reads everything but experts, and these experts; pairs that the model lacks are left out. `progress` is told the sum
    /// of stored bytes read so far; in the end that is `plan_read(checkpoint, experts).bytes`.
    pub fn load(
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        size: CacheSize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, TorchError> {
        let _guard = no_grad_guard();
        let (arch, size) = (checkpoint.architecture().clone(), size.check()?);
        let mut reader = Reader::new(checkpoint, progress);
        let model = Model::load(&arch, &mut reader, size)?;
        let mut held = Experts::none(&arch);
        held.update(experts, &mut reader)?;
        Ok(TorchExecutor {
            digest: checkpoint.digest().to_owned(),
            model,
            experts: held,
            slots: Slots::new(size),
            step: None,
            logits: Vec::new(),
            arch,
        })
    }

    /// Changes what is held to `experts`: what is not wanted any more goes first, then what is missing is read from the
    /// same checkpoint. `progress` is told the sum of stored bytes read by this call. Sequences and a step in flight stay.
    pub fn update_experts(
        &mut self,
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), TorchError> {
        let _guard = no_grad_guard();
        if checkpoint.digest() != self.digest {
            return Err(TorchError::OtherCheckpoint { given: checkpoint.digest().to_owned(), allowed: self.digest.clone() });
        }
        self.experts.update(experts, &mut Reader::new(checkpoint, progress))
    }

    /// The experts whose weights are here.
    pub fn held(&self) -> &ExpertSet {
        self.experts.set()
    }

    /// The network.
    pub fn architecture(&self) -> &Architecture {
        &self.arch
    }

    /// Embeds the ids. A step that was not brought to its end is dropped.
    fn start(&mut self, batch: &Batch) -> Result<(), TorchError> {
        check_batch(batch, self.arch.vocab)?;
        self.slots.admit(&batch.segments)?;
        self.step = None;
        let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
        let x = self.model.embedding.f_index_select(0, &Tensor::f_from_slice(&ids)?)?;
        self.step = Some(Step {
            layout: Layout::new(batch, &self.slots, &self.model.inverse_frequencies)?,
            logit_rows: batch.logit_rows.iter().map(|row| i64::from(*row)).collect(),
            order: StepOrder::FIRST,
            hidden: x.f_view([-1, self.arch.hidden as i64])?,
            x,
        });
        Ok(())
    }

    /// Attention, its residual, the norm before the experts and the router; the accumulator starts as the experts'
    /// residual, so that [`Self::end_layer`] has nothing left to add.
    fn attend(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), TorchError> {
        in_flight(&mut self.step, "attention")?.order.expect_attention(layer)?;
        let (Some(weights), Some(kind)) = (self.model.layers.get_mut(layer.index()), self.arch.kind(layer)) else {
            let allowed = format!("less than {}", self.arch.layers.len());
            return Err(ExecutorError::InvalidArgument { what: "layer", given: layer.0.into(), allowed }.into());
        };
        let Some(mut step) = self.step.take() else { return Ok(()) };
        let eps = self.arch.rms_norm_eps;
        let residual = self.arch.residual(kind);
        let h = rms(&step.x, &weights.input_norm, eps)?;
        let mut heads = weights.mixer.heads(&h, &step.layout)?;
        scale_(&mut heads, residual.beta)?;
        let mut x = if self.arch.postnorm { h } else { step.x };
        let _ = x.f_mul_scalar_(residual.alpha)?.f_addmm_(&heads, weights.mixer.out())?;
        step.hidden = rms(&x, &weights.post_norm, eps)?;
        let logits = step.hidden.f_mm(&weights.router)?;
        self.logits.resize(logits.numel(), 0.0);
        logits.f_copy_data(&mut self.logits, logits.numel())?;
        choose_experts(&self.logits, self.arch.experts, self.arch.top_k, routing);
        let residual = if self.arch.postnorm { &step.hidden } else { &x };
        step.x = residual.f_mul_scalar(self.arch.mlp.alpha)?;
        step.order = StepOrder::Experts(layer);
        self.step = Some(step);
        Ok(())
    }

    /// The accumulator becomes the residual stream.
    fn end_layer(&mut self, layer: LayerId) -> Result<(), TorchError> {
        let step = in_flight(&mut self.step, "combine")?;
        step.order.expect_experts_of("combine", layer)?;
        step.order = StepOrder::Attention(LayerId(layer.0 + 1));
        Ok(())
    }

    /// Final norm and head, on the wanted rows only.
    fn end(&mut self, logits: &mut Vec<f32>) -> Result<(), TorchError> {
        in_flight(&mut self.step, "end_step")?.order.expect_end(self.arch.layers.len())?;
        let Some(step) = self.step.take() else { return Ok(()) };
        logits.clear();
        if step.logit_rows.is_empty() {
            return Ok(());
        }
        let x = Rows::new(&step.logit_rows)?.pick(&step.x)?;
        let scores = rms(&x, &self.model.final_norm, self.arch.rms_norm_eps)?.f_mm(&self.model.head)?;
        logits.resize(scores.numel(), 0.0);
        Ok(scores.f_copy_data(logits, scores.numel())?)
    }

    /// `[rows, hidden]` from wire bytes.
    fn wire_rows(&self, what: &'static str, bytes: &[u8], rows: usize) -> Result<Tensor, TorchError> {
        let wanted = rows * self.arch.hidden * size_of::<f32>();
        if bytes.len() != wanted {
            let allowed = format!("{wanted} bytes, {rows} rows x hidden x 4");
            return Err(ExecutorError::InvalidArgument { what, given: bytes.len() as u64, allowed }.into());
        }
        Ok(Tensor::f_from_data_size(bytes, &[rows as i64, self.arch.hidden as i64], Kind::Float)?)
    }
}
