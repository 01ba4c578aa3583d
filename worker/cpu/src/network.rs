//! [`CpuNetwork`]: MiniMax-M1 computed call by call. What comes has been checked; the order of calls is the port's.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use m1_arch::{Architecture, ExpertSet, LayerId};
use m1_engine::{
    Batch, Brought, CacheSize, Capabilities, Drawn, ExecutorError, HeadRows, Inline, LayerRouting, Network, Progress, Request,
    Results,
};
use m1_engine::{Sampler, SequenceState, SlotId, Tables, Use, choose_experts, cut};
use m1_weights::Checkpoint;

use crate::compute::{Compute, residual, room};
use crate::error::CpuError;
use crate::experts::{Expert, Experts};
use crate::layout::Layout;
use crate::model::{Buffers, Mixer, Model};
use crate::softmax::Piece;
use crate::weights::Loader;

/// The executor port on this machine's CPU.
pub type CpuExecutor = Inline<CpuNetwork>;

/// MiniMax-M1 on this machine's CPU.
#[derive(Debug)]
pub struct CpuNetwork {
    arch: Architecture,
    digest: String,
    size: CacheSize,
    model: Model,
    experts: Experts,
    compute: Compute,
    /// Memory of steps that have ended.
    spare: Vec<Numbers>,
    scratch: Scratch,
}

/// A step in flight.
#[derive(Debug)]
pub struct InFlight {
    layout: Layout,
    numbers: Numbers,
    /// Softmax attention that is done in part.
    under_way: bool,
    /// How many of its pieces are done.
    done: usize,
}

/// Numbers of one step, `[rows, hidden]`.
#[derive(Debug, Default)]
struct Numbers {
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
    /// Queries of softmax attention, likewise, and what is to be done with them.
    query: Vec<f32>,
    pieces: Vec<Piece>,
}

/// Numbers of no meaning between two calls, kept for their allocation.
#[derive(Debug, Default)]
struct Scratch {
    /// Router logits, `[rows, experts]`.
    router: Vec<f32>,
    /// Peers' rows, and their sums.
    asked: Vec<f32>,
    answered: Vec<f32>,
    /// Rows whose logits are computed, and these logits.
    head_rows: HeadRows,
    logits: Vec<f32>,
    drawn: Vec<OnceLock<Drawn>>,
    buffers: Buffers,
}

impl CpuNetwork {
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
        progress: Progress<'_>,
    ) -> Result<Self, CpuError> {
        let (arch, size) = (checkpoint.architecture().clone(), size.check()?);
        let mut loader = Loader::new(checkpoint, progress);
        let model = Model::load(&arch, &mut loader, size)?;
        let mut held = Experts::none(&arch);
        Experts::bring(experts, &mut loader, &mut |brought| held.held.hold(brought))?;
        loader.look()?;
        Ok(Self {
            digest: checkpoint.digest().to_owned(),
            size,
            model,
            experts: held,
            compute: Compute::new(threads)?,
            spare: Vec::new(),
            scratch: Scratch::default(),
            arch,
        })
    }

    fn embed(&mut self, batch: &Batch, tables: &Tables) -> Result<InFlight, CpuError> {
        let layout = Layout::new(batch, tables, &self.model.inverse_frequencies)?;
        let embedding = self.model.embedding.matrix()?;
        for span in layout.spans.iter().filter(|span| span.position == 0) {
            self.model.layers.iter_mut().for_each(|layer| layer.mixer.clear(span.slot));
        }
        let mut numbers = self.spare.pop().unwrap_or_default();
        let hidden = self.arch.hidden;
        let x = room(&mut numbers.x, batch.ids.len() * hidden);
        for (id, x) in batch.ids.iter().zip(x.chunks_exact_mut(hidden)) {
            embedding.read_row(*id as usize, x);
        }
        Ok(InFlight { layout, numbers, under_way: false, done: 0 })
    }

    /// A turn of a layer's attention; true when it is whole.
    fn attend(&mut self, step: &mut InFlight, layer: LayerId, routing: &mut LayerRouting) -> Result<bool, CpuError> {
        let (Some(weights), Some(kind)) = (self.model.layers.get_mut(layer.index()), self.arch.kind(layer)) else {
            let allowed = format!("less than {}", self.arch.layers.len());
            return Err(ExecutorError::InvalidArgument { what: "layer", given: layer.0.into(), allowed }.into());
        };
        let (rows, width, compute) = (step.layout.rows, self.arch.hidden, &mut self.compute);
        let (eps, by) = (self.arch.rms_norm_eps as f32, self.arch.residual(kind));
        let Numbers { x, h, hidden, sums, heads, query, pieces } = &mut step.numbers;
        let (x, h) = (room(x, rows * width), room(h, rows * width));
        let heads = room(heads, rows * self.arch.attention_dim());
        let buffers = &mut self.scratch.buffers;
        if !step.under_way {
            compute.rms(x, &weights.input_norm, eps, h);
        }
        match &mut weights.mixer {
            Mixer::Lightning(lightning) => lightning.heads(compute, &mut buffers.lightning, h, &step.layout, heads)?,
            Mixer::Softmax(softmax) => {
                let query = room(query, heads.len());
                if !step.under_way {
                    softmax.prepare(compute, &mut buffers.softmax, h, &step.layout, (&mut *query, &mut *pieces))?;
                    (step.under_way, step.done) = (true, 0);
                }
                step.done += softmax.attend_some(compute, &step.layout, query, &pieces[step.done..], heads);
                if step.done < pieces.len() {
                    return Ok(false);
                }
                step.under_way = false;
            }
        }
        let (hidden, sums) = (room(hidden, rows * width), room(sums, rows * width));
        let router = room(&mut self.scratch.router, rows * self.arch.experts);
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
        Ok(true)
    }

    /// Final norm and head on the wanted rows only, then the draws, which threads share.
    fn finish(&mut self, step: &mut InFlight, batch: &Batch, results: &mut Results) -> Result<(), CpuError> {
        let (width, vocab) = (self.arch.hidden, self.arch.vocab);
        let Scratch { head_rows, logits, drawn, .. } = &mut self.scratch;
        let rows = head_rows.of(batch);
        let count = rows.len();
        let Numbers { x, h, hidden, .. } = &mut step.numbers;
        let (picked, normed) = (room(h, count * width), room(hidden, count * width));
        for (row, to) in rows.iter().zip(picked.chunks_exact_mut(width)) {
            to.copy_from_slice(&x[*row as usize * width..(*row as usize + 1) * width]);
        }
        let logits = room(logits, count * vocab);
        self.compute.rms(picked, &self.model.final_norm, self.arch.rms_norm_eps as f32, normed);
        self.compute.products([(&*normed, &self.model.head, &mut *logits)])?;
        let (logits, head_rows) = (&*logits, &*head_rows);
        let of_row = |row: u32| head_rows.logits(logits, vocab, row);
        batch.logit_rows.iter().for_each(|row| results.logits.extend_from_slice(of_row(*row)));
        drawn.clear();
        drawn.resize_with(batch.draws.len(), OnceLock::new);
        let places = &*drawn;
        self.compute.each(batch.draws.len(), |_, place| {
            let draw = &batch.draws[place];
            let _ = places[place].set(with_sampler(|sampler| sampler.draw(of_row(draw.row), draw)));
        });
        results.drawn.extend(drawn.drain(..).filter_map(OnceLock::into_inner));
        Ok(())
    }

    fn answer(&mut self, layer: LayerId, requests: &[Request], uses: &[Use]) -> Result<Vec<Bytes>, CpuError> {
        let width = self.arch.hidden;
        let rows: usize = requests.iter().map(|request| request.rows as usize).sum();
        let Scratch { asked, answered, .. } = &mut self.scratch;
        let (asked, answered) = (room(asked, rows * width), room(answered, rows * width));
        let given = requests.iter().flat_map(|request| numbers(&request.hidden));
        asked.iter_mut().zip(given).for_each(|(to, number)| *to = number);
        answered.fill(0.0);
        self.experts.add(&mut self.compute, layer, asked, uses, answered)?;
        let mut sums = BytesMut::with_capacity(size_of_val(answered));
        append(answered, &mut sums);
        Ok(cut(sums, requests, width * size_of::<f32>()))
    }
}

impl Network for CpuNetwork {
    type Weights = Arc<Checkpoint>;
    type Brought = Brought<Expert>;
    type InFlight = InFlight;

    fn architecture(&self) -> &Architecture {
        &self.arch
    }

    fn capabilities(&self) -> Capabilities {
        let device = format!("cpu, {}, {} threads", self.compute.path.as_str(), self.compute.pool.shares());
        Capabilities { device, size: self.size, wire_bytes: size_of::<f32>(), same_bits: true }
    }

    fn held(&self) -> &ExpertSet {
        self.experts.held.set()
    }

    fn begin(&mut self, batch: &Batch, tables: &Tables) -> Result<InFlight, ExecutorError> {
        Ok(self.embed(batch, tables)?)
    }

    fn attention(&mut self, step: &mut InFlight, layer: LayerId, routing: &mut LayerRouting) -> Result<bool, ExecutorError> {
        let whole = self.attend(step, layer, routing)?;
        self.model.check()?;
        Ok(whole)
    }

    fn gather(&mut self, step: &InFlight, rows: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError> {
        let width = self.arch.hidden;
        for row in rows {
            append(&step.numbers.hidden[*row as usize * width..(*row as usize + 1) * width], out);
        }
        Ok(())
    }

    fn local(&mut self, step: &mut InFlight, layer: LayerId, uses: &[Use]) -> Result<(), ExecutorError> {
        let count = step.layout.rows * self.arch.hidden;
        let (hidden, sums) = (&step.numbers.hidden[..count], &mut step.numbers.sums[..count]);
        Ok(self.experts.add(&mut self.compute, layer, hidden, uses, sums)?)
    }

    fn accumulate(&mut self, step: &mut InFlight, rows: &[u32], sums: &[u8]) -> Result<(), ExecutorError> {
        let width = self.arch.hidden;
        for (row, bytes) in rows.iter().zip(sums.chunks_exact(width * size_of::<f32>())) {
            let own = &mut step.numbers.sums[*row as usize * width..(*row as usize + 1) * width];
            for (sum, number) in own.iter_mut().zip(numbers(bytes)) {
                *sum += number;
            }
        }
        Ok(())
    }

    fn combine(&mut self, step: &mut InFlight, _: LayerId) -> Result<(), ExecutorError> {
        let count = step.layout.rows * self.arch.hidden;
        let Numbers { x, hidden, sums, .. } = &mut step.numbers;
        let x = &mut x[..count];
        if self.arch.postnorm {
            x.copy_from_slice(&hidden[..count]);
        }
        residual(&mut self.compute, x, self.arch.mlp.alpha as f32, &sums[..count], self.arch.mlp.beta as f32);
        Ok(())
    }

    fn end(&mut self, step: &mut InFlight, batch: &Batch, results: &mut Results) -> Result<(), ExecutorError> {
        self.finish(step, batch, results)?;
        Ok(self.model.check()?)
    }

    fn reuse(&mut self, step: InFlight) {
        self.spare.push(step.numbers);
    }

    fn serve(&mut self, layer: LayerId, requests: &[Request], uses: &[Use]) -> Result<Vec<Bytes>, ExecutorError> {
        Ok(self.answer(layer, requests, uses)?)
    }

    fn bring(
        &self,
        experts: ExpertSet,
    ) -> Box<dyn FnOnce(&Arc<Checkpoint>, Progress<'_>, &mut dyn FnMut(Brought<Expert>)) -> Result<(), ExecutorError> + Send> {
        let digest = self.digest.clone();
        Box::new(move |checkpoint, progress, take| {
            if checkpoint.digest() != digest {
                return Err(CpuError::OtherCheckpoint { given: checkpoint.digest().to_owned(), allowed: digest }.into());
            }
            let mut loader = Loader::new(checkpoint, progress);
            Experts::bring(&experts, &mut loader, take)?;
            Ok(loader.look()?)
        })
    }

    fn hold(&mut self, brought: Brought<Expert>) {
        self.experts.held.hold(brought);
    }

    fn let_go(&mut self, experts: &ExpertSet) {
        self.experts.held.let_go(experts);
    }

    fn export(&mut self, slot: SlotId, tables: &Tables) -> Result<SequenceState, ExecutorError> {
        let (tokens, blocks) = (tables.tokens(slot)?, tables.blocks(slot)?);
        let mut bytes = BytesMut::new();
        for layer in &self.model.layers {
            layer.mixer.parts(slot.0 as usize, blocks).for_each(|part| append(part, &mut bytes));
        }
        Ok(SequenceState { tokens, bytes: bytes.freeze() })
    }

    fn import(&mut self, slot: SlotId, tables: &Tables, state: &SequenceState) -> Result<(), ExecutorError> {
        let blocks = tables.blocks(slot)?;
        let parts = |model: &Model| -> usize {
            model.layers.iter().flat_map(|layer| layer.mixer.parts(slot.0 as usize, blocks)).map(size_of_val).sum()
        };
        let wanted = parts(&self.model);
        state.check(wanted)?;
        let mut given = numbers(&state.bytes);
        for layer in &mut self.model.layers {
            layer.mixer.each_part_mut(slot.0 as usize, blocks, &mut |part| {
                part.iter_mut().zip(given.by_ref()).for_each(|(to, number)| *to = number);
            });
        }
        Ok(())
    }

    fn fork(&mut self, from: SlotId, to: SlotId, copy: Option<(u32, u32)>) -> Result<(), ExecutorError> {
        for layer in &mut self.model.layers {
            layer.mixer.copy(from.0 as usize, to.0 as usize, copy);
        }
        Ok(())
    }
}

/// The sampler of a thread.
fn with_sampler<T>(call: impl FnOnce(&mut Sampler) -> T) -> T {
    thread_local! {
        static SAMPLER: RefCell<Sampler> = RefCell::new(Sampler::default());
    }
    SAMPLER.with_borrow_mut(call)
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn append(numbers: &[f32], out: &mut BytesMut) {
    out.reserve(size_of_val(numbers));
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}
