//! Lightning attention of one layer: states of all slots, projections, gate and norm. The mathematics of a head is in
//! `m1_kernels::lightning`.

use m1_arch::{Architecture, LIGHTNING_NORM_EPS, LayerId, slopes};
use m1_kernels::lightning::{BLOCK, Decays, Head, block, step};
use m1_kernels::{Path, Shared, sigmoid_gate, silu};
use m1_weights::TensorName;

use crate::compute::{Compute, room, with_scratch};
use crate::error::CpuError;
use crate::layout::{Layout, Span};
use crate::weights::{Loader, Weight};

/// One lightning layer.
#[derive(Debug)]
pub(crate) struct Lightning {
    heads: usize,
    dim: usize,
    /// `[3N, hidden]`: per head q, k, v.
    qkv: Weight,
    /// `[N, hidden]`.
    gate: Weight,
    /// `[N]`.
    norm: Vec<f32>,
    /// `[hidden, N]`.
    pub out: Weight,
    /// By head.
    decays: Vec<Decays>,
    /// `[slots, heads, dim, dim]`; a slot's memory is touched when it is used.
    state: Vec<f32>,
}

/// Memory of a step, kept for its allocation.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    qkv: Vec<f32>,
    gate: Vec<f32>,
    attended: Vec<f32>,
}

impl Lightning {
    /// Takes the layer's weights and reserves its states.
    pub fn load(arch: &Architecture, loader: &mut Loader<'_>, slots: usize, layer: LayerId) -> Result<Self, CpuError> {
        Ok(Self {
            heads: arch.heads,
            dim: arch.head_dim,
            qkv: loader.matrix(TensorName::LightningQkv(layer))?,
            gate: loader.matrix(TensorName::LightningGate(layer))?,
            norm: loader.vector(TensorName::LightningNorm(layer))?,
            out: loader.matrix(TensorName::LightningOut(layer))?,
            decays: slopes(arch, layer).into_iter().map(Decays::of).collect(),
            // Zeroed memory of the operating system: not touched yet.
            state: vec![0.0; slots * arch.heads * arch.head_dim * arch.head_dim],
        })
    }

    /// Where a slot's state lies.
    fn places(&self, slot: usize) -> std::ops::Range<usize> {
        let size = self.heads * self.dim * self.dim;
        slot * size..(slot + 1) * size
    }

    /// A slot's state, `[heads, dim, dim]`.
    pub fn state(&self, slot: usize) -> &[f32] {
        &self.state[self.places(slot)]
    }

    /// The same, to be written.
    pub fn state_mut(&mut self, slot: usize) -> &mut [f32] {
        let places = self.places(slot);
        &mut self.state[places]
    }

    /// Copies a slot's state to another.
    pub fn copy(&mut self, from: usize, to: usize) {
        let (from, to) = (self.places(from), self.places(to).start);
        self.state.copy_within(from, to);
    }

    /// Gated, normed output of all heads into `out`, `[rows, N]`; moves the states on.
    pub fn heads(
        &mut self,
        compute: &mut Compute,
        buffers: &mut Buffers,
        h: &[f32],
        layout: &Layout,
        out: &mut [f32],
    ) -> Result<(), CpuError> {
        let width = self.heads * self.dim;
        let qkv = room(&mut buffers.qkv, layout.rows * 3 * width);
        let gate = room(&mut buffers.gate, layout.rows * width);
        let attended = room(&mut buffers.attended, layout.rows * width);
        compute.products([(h, &self.qkv, &mut *qkv), (h, &self.gate, &mut *gate)])?;
        let (qkv, to, state) = (&*qkv, Shared::new(attended), Shared::new(&mut self.state));
        let (heads, dim) = (self.heads, self.dim);
        compute.each(layout.spans.len() * heads, |path, item| {
            let (span, head) = (&layout.spans[item / heads], item % heads);
            let size = dim * dim;
            let place = (span.slot * heads + head) * size;
            // SAFETY: no slot comes twice in a batch, so every (slot, head) is one item's.
            let state = unsafe { state.piece(place..place + size) };
            let head = OneHead { path, index: head, heads, dim, decays: &self.decays[head] };
            head.attend(span, qkv, state, &to);
        });
        compute.rms(attended, &self.norm, LIGHTNING_NORM_EPS as f32, out);
        compute.zip(out, gate, sigmoid_gate);
        Ok(())
    }
}

/// A head of one sequence.
struct OneHead<'a> {
    path: Path,
    index: usize,
    heads: usize,
    dim: usize,
    decays: &'a Decays,
}

impl OneHead<'_> {
    /// All tokens of a span, in pieces of a block or of one token; writes its rows of `to`, `[rows, N]`.
    fn attend(&self, span: &Span, qkv: &[f32], state: &mut [f32], to: &Shared<'_>) {
        let mut done = 0;
        while done < span.tokens {
            let position = span.position + done;
            // Whole blocks of the prompt only, from multiples of their size on: then cuts and company change no bit.
            let whole = position.is_multiple_of(BLOCK) && position + BLOCK <= span.prompt && done + BLOCK <= span.tokens;
            let tokens = if whole { BLOCK } else { 1 };
            self.piece(span.start + done, tokens, qkv, state, to);
            done += tokens;
        }
    }

    fn piece(&self, row: usize, tokens: usize, qkv: &[f32], state: &mut [f32], to: &Shared<'_>) {
        let (dim, width) = (self.dim, self.heads * self.dim);
        with_scratch(tokens * 4 * dim, |scratch| {
            let (packed, out) = scratch.split_at_mut(tokens * 3 * dim);
            for (token, packed) in packed.chunks_exact_mut(3 * dim).enumerate() {
                let from = (row + token) * 3 * width + self.index * 3 * dim;
                packed.copy_from_slice(&qkv[from..from + 3 * dim]);
            }
            silu(self.path, packed);
            let head = Head { qkv: packed, stride: 3 * dim, dim };
            match tokens {
                1 => step(self.path, head, self.decays, state, out),
                _ => block(self.path, (head, tokens), self.decays, state, (out, dim)),
            }
            for (token, out) in out.chunks_exact(dim).enumerate() {
                let place = (row + token) * width + self.index * dim;
                // SAFETY: this head's part of this row is nobody else's.
                unsafe { to.piece(place..place + dim) }.copy_from_slice(out);
            }
        });
    }
}
