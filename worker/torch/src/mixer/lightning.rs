//! Lightning attention: per head a state `S`, `[key channel, value channel]`, that decays by `exp(-s)` a token.
//!
//! ```text
//! recurrence   S_t = exp(-s) S_{t-1} + k_t^T v_t                  o_t = q_t S_t
//! block of m   o_j = exp(-s j) q_j S + sum_{i<=j} exp(-s (j-i)) (q_j . k_i) v_i
//!              S'  = exp(-s m) S + sum_i exp(-s (m-i)) k_i^T v_i
//! ```
//! Sequences that bring one token take the recurrence, all together; the others the block form, each from its own state.
//! Only decays below 1 are formed: `exp(+s i)` would overflow within a block.

use m1_arch::{Architecture, LIGHTNING_NORM_EPS, LayerId, slopes};
use m1_engine::CacheSize;
use m1_weights::TensorName;
use tch::{TchError, Tensor};

use crate::error::TorchError;
use crate::layout::{Layout, Span};
use crate::load::Reader;
use crate::ops::{options, rms};
use crate::rows::Rows;

/// Tokens of one block. Work per token is `4 d (block + d)` per head, so that small blocks cost less arithmetic and large
/// ones fewer calls; any size is exact.
const BLOCK: i64 = 64;

/// One lightning layer.
pub(crate) struct Lightning {
    heads: i64,
    dim: i64,
    /// `[hidden, 4N]`: per head q, k, v; then the gates of all heads.
    qkv_gate: Tensor,
    /// `[N]`.
    norm: Tensor,
    /// `[N, hidden]`.
    pub out: Tensor,
    /// `-s`, `[heads, 1, 1]`.
    slopes: Tensor,
    /// `exp(-s j)` for j = 0 to BLOCK, `[heads, BLOCK + 1, 1]`.
    decays: Tensor,
    /// The same from BLOCK down to 0.
    decays_down: Tensor,
    /// `j - i` where `i <= j`, else infinity; `[BLOCK, BLOCK]`.
    distance: Tensor,
    /// One decay step, `[1, heads, 1, 1]`.
    decay: Tensor,
    /// `[slots, heads, dim, dim]`; a slot's memory is touched when it is used.
    state: Tensor,
}

impl Lightning {
    /// Reads the layer's weights and reserves its states.
    pub fn load(arch: &Architecture, reader: &mut Reader<'_>, size: CacheSize, layer: LayerId) -> Result<Self, TorchError> {
        let (heads, dim) = (arch.heads as i64, arch.head_dim as i64);
        let options = reader.options();
        let slopes = reader.given(&slopes(arch, layer))?.f_neg()?.f_view([heads, 1, 1])?;
        let steps = Tensor::f_arange(BLOCK + 1, options)?.f_view([1, -1, 1])?;
        let decays = slopes.f_mul(&steps)?.f_exp_()?;
        let distance = steps.f_narrow(1, 0, BLOCK)?.f_view([-1, 1])?.f_sub(&steps.f_narrow(1, 0, BLOCK)?.f_view([1, -1])?)?;
        let above = Tensor::f_full([BLOCK, BLOCK], f64::INFINITY, options)?.f_triu(1)?;
        Ok(Lightning {
            heads,
            dim,
            qkv_gate: reader.stacked(&[TensorName::LightningQkv(layer), TensorName::LightningGate(layer)])?.f_tr()?,
            norm: reader.tensor(TensorName::LightningNorm(layer))?,
            out: reader.tensor(TensorName::LightningOut(layer))?.f_tr()?,
            decays_down: decays.f_flip([1])?,
            decay: decays.f_narrow(1, 1, 1)?.f_contiguous()?.f_view([1, heads, 1, 1])?,
            decays,
            slopes,
            distance: distance.f_add(&above)?,
            state: Tensor::f_empty([i64::from(size.slots), heads, dim, dim], options)?,
        })
    }

    /// Zeroes a slot's state.
    pub fn clear(&mut self, slot: i64) -> Result<(), TchError> {
        self.state(slot)?.f_zero_().map(drop)
    }

    /// A slot's state, `[heads, dim, dim]`: a view.
    pub fn state(&self, slot: i64) -> Result<Tensor, TchError> {
        self.state.f_select(0, slot)
    }

    /// Copies a slot's state to another.
    pub fn copy(&mut self, from: i64, to: i64) -> Result<(), TchError> {
        self.state(to)?.f_copy_(&self.state(from)?).map(drop)
    }

    /// Gated, normed output of all heads, `[rows, N]`.
    pub fn heads(&mut self, h: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
        let width = self.heads * self.dim;
        let projected = h.f_mm(&self.qkv_gate)?;
        let qkv = projected.f_narrow(1, 0, 3 * width)?.f_silu()?.f_contiguous()?;
        let gate = projected.f_narrow(1, 3 * width, width)?.f_sigmoid_()?;
        let o = if layout.is_decode() { self.recur(&qkv, layout)? } else { self.mixed(&qkv, layout)? };
        rms(&o, &self.norm, LIGHTNING_NORM_EPS)?.f_mul_(&gate)
    }

    fn mixed(&mut self, qkv: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
        let mut o = Tensor::f_empty([layout.rows, self.heads * self.dim], options(qkv))?;
        if layout.singles > 0 {
            let singles = self.recur(&layout.single_rows.pick(qkv)?, layout)?;
            layout.single_rows.put(&mut o, &singles)?;
        }
        let mut weights = self.slopes.f_mul(&self.distance)?;
        let weights = weights.f_exp_()?;
        for span in layout.spans.iter().filter(|span| span.tokens > 1) {
            self.blocks(qkv, span, &weights, &o)?;
        }
        Ok(o)
    }

    /// One token of each single: `qkv` is `[singles, 3N]`, contiguous.
    fn recur(&mut self, qkv: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
        let (dim, all) = (self.dim, layout.singles * self.heads);
        let qkv = qkv.f_view([all, 3 * dim])?;
        let part = |index: i64| qkv.f_narrow(1, index * dim, dim);
        let state = layout.single_slots.pick(&self.state)?.f_mul_(&self.decay)?;
        let state = state.f_view([all, dim, dim])?.f_baddbmm_(&part(1)?.f_unsqueeze(2)?, &part(2)?.f_unsqueeze(1)?)?;
        let o = part(0)?.f_unsqueeze(1)?.f_bmm(&state)?;
        if let Rows::List(_) = layout.single_slots {
            layout.single_slots.put(&mut self.state, &state.f_view([-1, self.heads, dim, dim])?)?;
        }
        o.f_view([layout.singles, -1])
    }

    /// All tokens of one sequence, block by block; writes its rows of `o`.
    fn blocks(&mut self, qkv: &Tensor, span: &Span, weights: &Tensor, o: &Tensor) -> Result<(), TchError> {
        let dim = self.dim;
        let by_head = |rows: &Tensor, start: i64, len: i64| -> Result<Tensor, TchError> {
            rows.f_narrow(0, span.start + start, len)?.f_view([len, self.heads, -1])?.f_transpose(0, 1)
        };
        let mut state = self.state(span.slot)?;
        for start in (0..span.tokens).step_by(BLOCK as usize) {
            let m = BLOCK.min(span.tokens - start);
            let block = by_head(qkv, start, m)?;
            let (q, k, v) = (block.f_narrow(2, 0, dim)?, block.f_narrow(2, dim, dim)?, block.f_narrow(2, 2 * dim, dim)?);
            let mut entered = q.f_bmm(&state)?.f_mul_(&self.decays.f_narrow(1, 1, m)?)?;
            let within = q.f_bmm(&k.f_transpose(1, 2)?)?.f_mul_(&weights.f_narrow(1, 0, m)?.f_narrow(2, 0, m)?)?;
            by_head(o, start, m)?.f_copy_(&entered.f_baddbmm_(&within, &v)?)?;
            let left = k.f_mul(&self.decays_down.f_narrow(1, BLOCK + 1 - m, m)?)?;
            let _ = state.f_mul_(&self.decays.f_narrow(1, m, 1)?)?;
            let _ = state.f_baddbmm_(&left.f_transpose(1, 2)?, &v)?;
        }
        Ok(())
    }
}
