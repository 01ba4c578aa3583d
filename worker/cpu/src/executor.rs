//! [`CpuExecutor`]: the executor port. Every call first checks that it may come and that its arguments fit, and only then computes, so
//! that a refusal changes nothing.

mod port;

use m1_arch::{Architecture, ExpertSet, LayerId};
use m1_engine::{Batch, CacheSize, ExecutorError, LayerRouting, Slots, StepOrder, check_batch, choose_experts, in_flight};
use m1_weights::Checkpoint;

use crate::compute::{Compute, residual, room};
use crate::error::CpuError;
use crate::experts::Experts;
use crate::layout::Layout;
use crate::model::{Buffers, Model};
use crate::weights::Loader;

/// MiniMax-M1 on this machine's CPU.
#[derive(Debug)]
pub struct CpuExecutor {
    arch: Architecture,
    digest: String,
    model: Model,
    experts: Experts,
    slots: Slots,
    compute: Compute,
    step: Option<Step>,
    memory: Memory,
}

/// One step in flight.
#[derive(Debug)]
struct Step {
    layout: Layout,
    logit_rows: Vec<u32>,
    order: StepOrder,
}

/// Numbers of the step in flight, kept for their allocation; all `[rows, hidden]` unless it is said.
#[derive(Debug, Default)]
struct Memory {
    /// The residual stream.
    x: Vec<f32>,
    /// Input of the attention, and what is added back of it.
    h: Vec<f32>,
    /// Input of the experts of the layer in flight.
    hidden: Vec<f32>,
    /// Sums of the experts of the layer in flight.
    sums: Vec<f32>,
    /// What the heads give, `[rows, heads * head_dim]`.
    heads: Vec<f32>,
    /// Router logits, `[rows, experts]`.
    router: Vec<f32>,
    /// A peer's rows.
    asked: Vec<f32>,
    /// Their sums.
    answered: Vec<f32>,
    buffers: Buffers,
}

impl CpuExecutor {
    /// Takes everything but experts, and these experts; pairs that the model lacks are left out. `progress` is told the sum of stored
    /// bytes brought into memory so far; in the end that is `plan_read(checkpoint, experts).bytes`. `threads` compute, the calling one
    /// among them.
    ///
    /// # Errors
    /// A tensor that cannot be used, a size of 0, no threads.
    pub fn load(
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        size: CacheSize,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, CpuError> {
        let (arch, size) = (checkpoint.architecture().clone(), size.check()?);
        let mut loader = Loader::new(checkpoint, progress);
        let model = Model::load(&arch, &mut loader, size)?;
        let mut held = Experts::none(&arch);
        held.update(experts, &mut loader)?;
        Ok(Self {
            digest: checkpoint.digest().to_owned(),
            model,
            experts: held,
            slots: Slots::new(size),
            compute: Compute::new(threads)?,
            step: None,
            memory: Memory::default(),
            arch,
        })
    }

    /// Changes what is held to `experts`: what is not wanted any more goes first, then what is missing is taken from the same
    /// checkpoint. `progress` is told the sum of stored bytes brought in by this call. Sequences and a step in flight stay.
    ///
    /// # Errors
    /// Another checkpoint, or a tensor that cannot be used.
    pub fn update_experts(
        &mut self,
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), CpuError> {
        if checkpoint.digest() != self.digest {
            return Err(CpuError::OtherCheckpoint { given: checkpoint.digest().to_owned(), allowed: self.digest.clone() });
        }
        self.experts.update(experts, &mut Loader::new(checkpoint, progress))
    }

    /// The experts whose weights are here.
    pub fn held(&self) -> &ExpertSet {
        self.experts.set()
    }

    /// The network.
    pub fn architecture(&self) -> &Architecture {
        &self.arch
    }

    /// Which instructions its kernels use.
    pub fn path(&self) -> m1_kernels::Path {
        self.compute.path
    }

    /// Embeds the ids. A step that was not brought to its end is dropped.
    fn start(&mut self, batch: &Batch) -> Result<(), CpuError> {
        check_batch(batch, self.arch.vocab)?;
        let embedding = self.model.embedding.matrix()?;
        self.slots.admit(&batch.segments)?;
        self.step = None;
        let hidden = self.arch.hidden;
        let x = room(&mut self.memory.x, batch.ids.len() * hidden);
        for (id, x) in batch.ids.iter().zip(x.chunks_exact_mut(hidden)) {
            embedding.read_row(*id as usize, x);
        }
        self.step = Some(Step {
            layout: Layout::new(batch, &self.slots, &self.model.inverse_frequencies)?,
            logit_rows: batch.logit_rows.clone(),
            order: StepOrder::FIRST,
        });
        Ok(())
    }

    /// Attention, its residual, the norm before the experts and the router.
    fn attend(&mut self, layer: LayerId, routing: &mut LayerRouting) -> Result<(), CpuError> {
        in_flight(&mut self.step, "attention")?.order.expect_attention(layer)?;
        let (Some(weights), Some(kind)) = (self.model.layers.get_mut(layer.index()), self.arch.kind(layer)) else {
            let allowed = format!("less than {}", self.arch.layers.len());
            return Err(ExecutorError::InvalidArgument { what: "layer", given: layer.0.into(), allowed }.into());
        };
        let Some(mut step) = self.step.take() else { return Ok(()) };
        let (rows, width, compute) = (step.layout.rows, self.arch.hidden, &mut self.compute);
        let (eps, by) = (self.arch.rms_norm_eps as f32, self.arch.residual(kind));
        let Memory { x, h, hidden, sums, heads, router, buffers, .. } = &mut self.memory;
        let (x, h) = (room(x, rows * width), room(h, rows * width));
        let (hidden, sums) = (room(hidden, rows * width), room(sums, rows * width));
        let heads = room(heads, rows * self.arch.attention_dim());
        let router = room(router, rows * self.arch.experts);
        compute.rms(x, &weights.input_norm, eps, h);
        weights.mixer.heads(compute, buffers, h, &step.layout, heads)?;
        // What comes of the heads, where the experts' sums will be.
        compute.products([(&*heads, weights.mixer.out(), &mut *sums)])?;
        if self.arch.postnorm {
            x.copy_from_slice(h);
        }
        residual(compute, x, by.alpha as f32, sums, by.beta as f32);
        compute.rms(x, &weights.post_norm, eps, hidden);
        compute.products([(&*hidden, &weights.router, &mut *router)])?;
        choose_experts(router, self.arch.experts, self.arch.top_k, routing);
        sums.fill(0.0);
        step.order = StepOrder::Experts(layer);
        self.step = Some(step);
        Ok(())
    }

    /// The experts' sums become part of the residual stream.
    fn end_layer(&mut self, layer: LayerId) -> Result<(), CpuError> {
        let step = in_flight(&mut self.step, "combine")?;
        step.order.expect_experts_of("combine", layer)?;
        let numbers = step.layout.rows * self.arch.hidden;
        let Memory { x, hidden, sums, .. } = &mut self.memory;
        let x = &mut x[..numbers];
        if self.arch.postnorm {
            x.copy_from_slice(&hidden[..numbers]);
        }
        residual(&mut self.compute, x, self.arch.mlp.alpha as f32, &sums[..numbers], self.arch.mlp.beta as f32);
        step.order = StepOrder::Attention(LayerId(layer.0 + 1));
        Ok(())
    }

    /// Final norm and head, on the wanted rows only.
    fn end(&mut self, logits: &mut Vec<f32>) -> Result<(), CpuError> {
        in_flight(&mut self.step, "end_step")?.order.expect_end(self.arch.layers.len())?;
        let Some(step) = self.step.take() else { return Ok(()) };
        let (width, count) = (self.arch.hidden, step.logit_rows.len());
        let Memory { x, h, hidden, .. } = &mut self.memory;
        let (picked, normed) = (room(h, count * width), room(hidden, count * width));
        for (row, to) in step.logit_rows.iter().zip(picked.chunks_exact_mut(width)) {
            to.copy_from_slice(&x[*row as usize * width..(*row as usize + 1) * width]);
        }
        logits.clear();
        logits.resize(count * self.arch.vocab, 0.0);
        self.compute.rms(picked, &self.model.final_norm, self.arch.rms_norm_eps as f32, normed);
        self.compute.products([(&*normed, &self.model.head, logits.as_mut_slice())])
    }
}
