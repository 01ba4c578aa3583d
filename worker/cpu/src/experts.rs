//! [`Experts`]: the experts held here, and the weighted sums that they give for rows: every expert runs once over all of its rows, so
//! that each weight is read once. `y = down(silu(gate x) * up x)`.

use m1_arch::{Architecture, ExpertId, ExpertSet, LayerId};
use m1_engine::{Brought, Held, Use};
use m1_kernels::product::{Product, products};
use m1_kernels::{Shared, silu_gate};
use m1_weights::{ExpertPart, TensorName, any_changed};

use crate::compute::{Compute, room};
use crate::error::CpuError;
use crate::weights::{Loader, Weight};

/// One expert's matrices.
#[derive(Debug)]
pub struct Expert {
    /// `[inner, hidden]`.
    gate: Weight,
    /// `[inner, hidden]`.
    up: Weight,
    /// `[hidden, inner]`.
    down: Weight,
}

impl Expert {
    fn check(&self) -> Result<(), CpuError> {
        [&self.gate, &self.up, &self.down].into_iter().try_for_each(Weight::check)
    }
}

/// Held experts of all layers.
#[derive(Debug)]
pub(crate) struct Experts {
    pub held: Held<Expert>,
    hidden: usize,
    inner: usize,
    buffers: Buffers,
}

/// Memory of a call, kept for its allocation.
#[derive(Debug, Default)]
struct Buffers {
    gathered: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    outputs: Vec<f32>,
}

impl Experts {
    /// None held.
    pub fn none(arch: &Architecture) -> Self {
        Self {
            held: Held::none(arch.layers.len(), arch.experts),
            hidden: arch.hidden,
            inner: arch.expert_hidden,
            buffers: Buffers::default(),
        }
    }

    /// Brings experts into memory, one after another; those that the model lacks are left out.
    pub fn bring(experts: &ExpertSet, loader: &mut Loader<'_>, take: &mut dyn FnMut(Brought<Expert>)) -> Result<(), CpuError> {
        let arch = loader.architecture();
        for (layer, expert) in ExpertSet::full(arch.layers.len(), arch.experts).intersection(experts).iter() {
            let part = |part| TensorName::Expert { layer, expert, part };
            let what = Expert {
                gate: loader.matrix(part(ExpertPart::Gate))?,
                up: loader.matrix(part(ExpertPart::Up))?,
                down: loader.matrix(part(ExpertPart::Down))?,
            };
            take(Brought { layer, expert, what });
        }
        Ok(())
    }

    /// Adds the weighted sums of held experts for rows of `x`, `[rows, hidden]`, to the same rows of `sums`; `uses` are sorted by expert.
    /// An error where a file of one of them has changed: then `sums` are worth nothing.
    pub fn add(
        &mut self,
        compute: &mut Compute,
        layer: LayerId,
        x: &[f32],
        uses: &[Use],
        sums: &mut [f32],
    ) -> Result<(), CpuError> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let done = self.add_with(&mut buffers, compute, layer, x, uses, sums);
        self.buffers = buffers;
        done?;
        if any_changed() {
            self.groups(layer, uses).try_for_each(|(expert, _)| expert.check())?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "`add`, with its memory")]
    fn add_with(
        &self,
        buffers: &mut Buffers,
        compute: &mut Compute,
        layer: LayerId,
        x: &[f32],
        uses: &[Use],
        sums: &mut [f32],
    ) -> Result<(), CpuError> {
        let Buffers { gathered, gate, up, outputs } = buffers;
        let (hidden, inner) = (self.hidden, self.inner);
        let gathered = room(gathered, uses.len() * hidden);
        let (gate, up) = (room(gate, uses.len() * inner), room(up, uses.len() * inner));
        let outputs = room(outputs, uses.len() * hidden);
        for (to, one) in gathered.chunks_exact_mut(hidden).zip(uses.iter()) {
            to.copy_from_slice(&x[one.row as usize * hidden..(one.row as usize + 1) * hidden]);
        }
        let (mut rows, mut gates, mut ups) = (&*gathered, &mut *gate, &mut *up);
        let mut jobs = Vec::new();
        for (expert, count) in self.groups(layer, uses) {
            let (x, rest) = rows.split_at(count * hidden);
            rows = rest;
            let (out_gate, out_up);
            (out_gate, gates) = std::mem::take(&mut gates).split_at_mut(count * inner);
            (out_up, ups) = std::mem::take(&mut ups).split_at_mut(count * inner);
            jobs.push(Product { x, weights: expert.gate.matrix()?, out: out_gate });
            jobs.push(Product { x, weights: expert.up.matrix()?, out: out_up });
        }
        products(compute.path, &mut compute.pool, &mut jobs);
        drop(jobs);
        compute.zip(gate, up, silu_gate);
        let (mut rows, mut outs) = (&*gate, &mut *outputs);
        let mut jobs = Vec::new();
        for (expert, count) in self.groups(layer, uses) {
            let (x, rest) = rows.split_at(count * inner);
            rows = rest;
            let out;
            (out, outs) = std::mem::take(&mut outs).split_at_mut(count * hidden);
            jobs.push(Product { x, weights: expert.down.matrix()?, out });
        }
        products(compute.path, &mut compute.pool, &mut jobs);
        drop(jobs);
        scatter(compute, uses, outputs, sums, hidden);
        Ok(())
    }

    /// Experts that are used and how often, in the order of `uses`.
    fn groups(&self, layer: LayerId, uses: &[Use]) -> impl Iterator<Item = (&Expert, usize)> {
        let groups = uses.chunk_by(|a, b| a.expert == b.expert);
        groups.filter_map(move |group| Some((self.held.get(layer, ExpertId(group[0].expert))?, group.len())))
    }
}

/// `sums[row] += weight * output` of every use. A product is rounded before it is added: `0 + a + b` is then the same sum as `0 + b + a`,
/// and as `0 + (a + b)` of a peer that holds both.
fn scatter(compute: &mut Compute, uses: &[Use], outputs: &[f32], sums: &mut [f32], hidden: usize) {
    let sums = Shared::new(sums);
    let grain = (8192 / uses.len().max(1)).clamp(16, hidden.max(16));
    compute.pool.share(hidden, grain, |columns| {
        for (one, output) in uses.iter().zip(outputs.chunks_exact(hidden)) {
            let row = one.row as usize * hidden;
            // SAFETY: these columns are this thread's.
            let sums = unsafe { sums.piece(row + columns.start..row + columns.end) };
            for (sum, output) in sums.iter_mut().zip(&output[columns.clone()]) {
                *sum += one.weight * *output;
            }
        }
    });
}
