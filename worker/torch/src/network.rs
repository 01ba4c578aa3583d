//! [`TorchNetwork`]: MiniMax-M1 computed call by call. What comes has been checked; the order of calls is the port's.
//!
//! Wire format and exported states are fp32 in the host's byte order, which is little-endian on every machine that libtorch is built for.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use m1_arch::{Architecture, ExpertSet, LayerId};
use m1_engine::{
    Batch, Brought, CacheSize, Capabilities, ExecutorError, HeadRows, Inline, LayerRouting, Network, Progress, Request, Results,
};
use m1_engine::{Sampler, SequenceState, SlotId, Tables, Use, choose_experts, cut};
use m1_weights::Checkpoint;
use tch::{Device, Kind, TchError, Tensor, no_grad_guard};

use crate::error::TorchError;
use crate::experts::{Expert, Experts};
use crate::layout::Layout;
use crate::load::Reader;
use crate::model::Model;
use crate::ops::{rms, scale_};
use crate::rows::Rows;

/// The executor port on libtorch.
pub type TorchExecutor = Inline<TorchNetwork>;

/// Of numbers that leave the device: on the wire, in exported states.
const WIRE: Kind = Kind::Float;

/// MiniMax-M1 on libtorch, in fp32.
pub struct TorchNetwork {
    arch: Architecture,
    digest: String,
    size: CacheSize,
    device: Device,
    model: Model,
    experts: Experts,
    sampler: Sampler,
    /// Logits on the host, of the router and of ids, kept for their allocation.
    router: Vec<f32>,
    logits: Vec<f32>,
    head_rows: HeadRows,
}

/// A step in flight. Tensors are `[rows, hidden]`.
#[derive(Debug)]
pub struct InFlight {
    layout: Layout,
    /// The residual stream between layers; at a layer's experts the accumulator, which starts as the residual.
    x: Tensor,
    /// Input of the experts of the layer in flight; of no use in between.
    hidden: Tensor,
}

impl TorchNetwork {
    /// Reads everything but experts, and these experts; pairs that the model lacks are left out. `progress` is told the sum of stored
    /// bytes read so far; in the end that is `plan_read(checkpoint, experts).bytes`.
    ///
    /// # Errors
    /// A tensor that cannot be read, a size of 0, libtorch fails.
    pub fn load(checkpoint: &Checkpoint, experts: &ExpertSet, size: CacheSize, progress: Progress<'_>) -> Result<Self, TorchError> {
        Self::load_on(Device::Cpu, checkpoint, experts, size, progress)
    }

    fn load_on(
        device: Device,
        checkpoint: &Checkpoint,
        experts: &ExpertSet,
        size: CacheSize,
        progress: Progress<'_>,
    ) -> Result<Self, TorchError> {
        let _guard = no_grad_guard();
        let (arch, size) = (checkpoint.architecture().clone(), size.check()?);
        let mut reader = Reader::new(checkpoint, device, progress);
        let model = Model::load(&arch, &mut reader, size)?;
        let mut held = Experts::none(&arch);
        Experts::bring(experts, &mut reader, &mut |brought| held.held.hold(brought))?;
        Ok(Self {
            digest: checkpoint.digest().to_owned(),
            size,
            device,
            model,
            experts: held,
            sampler: Sampler::default(),
            router: Vec::new(),
            logits: Vec::new(),
            head_rows: HeadRows::default(),
            arch,
        })
    }

    fn embed(&mut self, batch: &Batch, tables: &Tables) -> Result<InFlight, TorchError> {
        let layout = Layout::new(batch, tables, &self.model.inverse_frequencies)?;
        for span in layout.spans.iter().filter(|span| span.position == 0) {
            for layer in &mut self.model.layers {
                layer.mixer.clear(span.slot)?;
            }
        }
        let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
        // A copy always: what follows is written in place.
        let x = self.model.embedding.f_index_select(0, &Tensor::f_from_slice(&ids)?.f_to(self.device)?)?;
        Ok(InFlight { layout, hidden: x.shallow_clone(), x })
    }

    /// Attention, its residual, the norm before the experts and the router; the accumulator starts as the experts' residual, so that
    /// nothing is left to add when the layer ends.
    fn attend(&mut self, step: &mut InFlight, layer: LayerId, routing: &mut LayerRouting) -> Result<(), TorchError> {
        let (Some(weights), Some(kind)) = (self.model.layers.get_mut(layer.index()), self.arch.kind(layer)) else {
            let allowed = format!("less than {}", self.arch.layers.len());
            return Err(ExecutorError::InvalidArgument { what: "layer", given: layer.0.into(), allowed }.into());
        };
        let eps = self.arch.rms_norm_eps;
        let by = self.arch.residual(kind);
        let h = rms(&step.x, &weights.input_norm, eps)?;
        let mut heads = weights.mixer.heads(&h, &step.layout)?;
        scale_(&mut heads, by.beta)?;
        let mut x = if self.arch.postnorm { h } else { step.x.shallow_clone() };
        let _ = x.f_mul_scalar_(by.alpha)?.f_addmm_(&heads, weights.mixer.out())?;
        step.hidden = rms(&x, &weights.post_norm, eps)?;
        let logits = host(&step.hidden.f_mm(&weights.router)?, &mut self.router)?;
        choose_experts(logits, self.arch.experts, self.arch.top_k, routing);
        let residual = if self.arch.postnorm { &step.hidden } else { &x };
        step.x = residual.f_mul_scalar(self.arch.mlp.alpha)?;
        Ok(())
    }

    /// Final norm and head on the wanted rows only, then the draws.
    fn finish(&mut self, step: &InFlight, batch: &Batch, results: &mut Results) -> Result<(), TorchError> {
        let rows = self.head_rows.of(batch);
        if rows.is_empty() {
            return Ok(());
        }
        let x = Rows::new(rows.iter().copied(), self.device)?.pick(&step.x)?;
        let scores = rms(&x, &self.model.final_norm, self.arch.rms_norm_eps)?.f_mm(&self.model.head)?;
        let (logits, vocab) = (host(&scores, &mut self.logits)?, self.arch.vocab);
        let of_row = |row: u32| self.head_rows.logits(logits, vocab, row);
        batch.logit_rows.iter().for_each(|row| results.logits.extend_from_slice(of_row(*row)));
        let sampler = &mut self.sampler;
        results.drawn.extend(batch.draws.iter().map(|draw| sampler.draw(of_row(draw.row), draw)));
        Ok(())
    }

    fn answer(&mut self, layer: LayerId, requests: &[Request], uses: &[Use]) -> Result<Vec<Bytes>, TorchError> {
        let hidden: Vec<&[u8]> = requests.iter().map(|request| &*request.hidden).collect();
        let x = self.wire_rows(&hidden.concat())?;
        let mut answer = x.f_zeros_like()?;
        self.experts.add(layer, &x, uses, 1.0, &mut answer)?;
        let mut sums = BytesMut::new();
        append(&answer, &mut sums)?;
        Ok(cut(sums, requests, self.arch.hidden * WIRE.elt_size_in_bytes()))
    }

    /// `[rows, hidden]`, as many as the bytes hold.
    fn wire_rows(&self, bytes: &[u8]) -> Result<Tensor, TchError> {
        let width = self.arch.hidden;
        let rows = bytes.len() / (width * WIRE.elt_size_in_bytes());
        Tensor::f_from_data_size(bytes, &[rows as i64, width as i64], WIRE)?.f_to(self.device)
    }

    /// Rows given by the port.
    fn rows(&self, rows: &[u32]) -> Result<Rows, TchError> {
        Rows::new(rows.iter().copied(), self.device)
    }

    /// Bytes of a sequence's states and of these blocks, over all layers.
    fn state_bytes(&self, slot: SlotId, blocks: &[u32]) -> Result<usize, TchError> {
        let mut bytes = 0;
        for layer in &self.model.layers {
            layer.mixer.each_part(slot.0.into(), blocks, &mut |part| {
                bytes += part.numel() * WIRE.elt_size_in_bytes();
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    fn take_out(&self, slot: SlotId, tables: &Tables) -> Result<SequenceState, TorchError> {
        let (tokens, blocks) = (tables.tokens(slot)?, tables.blocks(slot)?);
        let mut bytes = BytesMut::with_capacity(self.state_bytes(slot, blocks)?);
        for layer in &self.model.layers {
            layer.mixer.each_part(slot.0.into(), blocks, &mut |part| append(&part, &mut bytes))?;
        }
        Ok(SequenceState { tokens, bytes: bytes.freeze() })
    }

    fn put_in(&mut self, slot: SlotId, tables: &Tables, state: &SequenceState) -> Result<(), TorchError> {
        let blocks = tables.blocks(slot)?;
        let wanted = self.state_bytes(slot, blocks)?;
        state.check(wanted)?;
        let mut given = &*state.bytes;
        for layer in &self.model.layers {
            layer.mixer.each_part(slot.0.into(), blocks, &mut |mut part| {
                let (own, rest) = given.split_at(part.numel() * WIRE.elt_size_in_bytes());
                given = rest;
                part.f_copy_(&Tensor::f_from_data_size(own, &part.size(), WIRE)?).map(drop)
            })?;
        }
        Ok(())
    }
}

impl Network for TorchNetwork {
    type Weights = Arc<Checkpoint>;
    type Brought = Brought<Expert>;
    type InFlight = InFlight;

    fn architecture(&self) -> &Architecture {
        &self.arch
    }

    fn capabilities(&self) -> Capabilities {
        let device = format!("libtorch {:?}", self.device).to_lowercase();
        Capabilities { device, size: self.size, wire_bytes: WIRE.elt_size_in_bytes(), same_bits: false }
    }

    fn held(&self) -> &ExpertSet {
        self.experts.held.set()
    }

    fn begin(&mut self, batch: &Batch, tables: &Tables) -> Result<InFlight, ExecutorError> {
        without_grad(|| self.embed(batch, tables))
    }

    fn attention(&mut self, step: &mut InFlight, layer: LayerId, routing: &mut LayerRouting) -> Result<bool, ExecutorError> {
        without_grad(|| self.attend(step, layer, routing).map(|()| true))
    }

    fn gather(&mut self, step: &InFlight, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError> {
        without_grad(|| Ok(append(&self.rows(rows)?.pick(&step.hidden)?, out)?))
    }

    fn local(&mut self, step: &mut InFlight, layer: LayerId, uses: &[Use]) -> Result<(), ExecutorError> {
        without_grad(|| Ok(self.experts.add(layer, &step.hidden, uses, self.arch.mlp.beta, &mut step.x)?))
    }

    fn accumulate(&mut self, step: &mut InFlight, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError> {
        without_grad(|| {
            let mut sums = self.wire_rows(sums)?;
            scale_(&mut sums, self.arch.mlp.beta)?;
            Ok(self.rows(rows)?.add(&mut step.x, &sums)?)
        })
    }

    /// The accumulator has had the residual in it all along.
    fn combine(&mut self, _: &mut InFlight, _: LayerId) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn end(&mut self, step: &mut InFlight, batch: &Batch, results: &mut Results) -> Result<(), ExecutorError> {
        without_grad(|| self.finish(step, batch, results))
    }

    /// libtorch keeps memory itself.
    fn reuse(&mut self, _: InFlight) {}

    fn serve(&mut self, layer: LayerId, requests: &[Request], uses: &[Use]) -> Result<Vec<Bytes>, ExecutorError> {
        without_grad(|| self.answer(layer, requests, uses))
    }

    fn bring(
        &self,
        experts: ExpertSet,
    ) -> Box<dyn FnOnce(&Arc<Checkpoint>, Progress<'_>, &mut dyn FnMut(Brought<Expert>)) -> Result<(), ExecutorError> + Send> {
        let (digest, device) = (self.digest.clone(), self.device);
        Box::new(move |checkpoint, progress, take| {
            if checkpoint.digest() != digest {
                return Err(TorchError::OtherCheckpoint { given: checkpoint.digest().to_owned(), allowed: digest }.into());
            }
            without_grad(|| Experts::bring(&experts, &mut Reader::new(checkpoint, device, progress), take))
        })
    }

    fn hold(&mut self, brought: Brought<Expert>) {
        self.experts.held.hold(brought);
    }

    fn let_go(&mut self, experts: &ExpertSet) {
        self.experts.held.let_go(experts);
    }

    fn export(&mut self, slot: SlotId, tables: &Tables) -> Result<SequenceState, ExecutorError> {
        without_grad(|| self.take_out(slot, tables))
    }

    fn import(&mut self, slot: SlotId, tables: &Tables, state: &SequenceState) -> Result<(), ExecutorError> {
        without_grad(|| self.put_in(slot, tables, state))
    }

    fn fork(&mut self, from: SlotId, to: SlotId, copy: Option<(u32, u32)>) -> Result<(), ExecutorError> {
        without_grad(|| {
            for layer in &mut self.model.layers {
                layer.mixer.copy(from.0.into(), to.0.into(), copy)?;
            }
            Ok(())
        })
    }
}

/// Runs a call of the port; libtorch would otherwise keep what it needs for gradients.
fn without_grad<T>(call: impl FnOnce() -> Result<T, TorchError>) -> Result<T, ExecutorError> {
    let _guard = no_grad_guard();
    Ok(call()?)
}

/// A tensor's elements on the host, in `memory`.
fn host<'a>(x: &Tensor, memory: &'a mut Vec<f32>) -> Result<&'a [f32], TchError> {
    let count = x.numel();
    if memory.len() < count {
        memory.resize(count, 0.0);
    }
    x.f_copy_data(memory, count)?;
    Ok(&memory[..count])
}

/// Appends a tensor's elements as wire bytes; `out` is left alone if they cannot be had.
fn append(x: &Tensor, out: &mut BytesMut) -> Result<(), TchError> {
    let start = out.len();
    out.resize(start + x.numel() * WIRE.elt_size_in_bytes(), 0);
    x.f_copy_data_u8(&mut out[start..], x.numel()).inspect_err(|_| out.truncate(start))
}
