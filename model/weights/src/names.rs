//! [`TensorName`]: the tensors that a network has, whatever a file calls them; their shapes; and where a file may keep
//! them.

use m1_arch::{Architecture, AttentionKind, ExpertId, LayerId};

/// One of an expert's three matrices: `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExpertPart {
    /// `w1`, `[expert_hidden, hidden]`.
    Gate,
    /// `w3`, `[expert_hidden, hidden]`.
    Up,
    /// `w2`, `[hidden, expert_hidden]`.
    Down,
}

impl ExpertPart {
    /// All three.
    pub const ALL: [ExpertPart; 3] = [ExpertPart::Gate, ExpertPart::Up, ExpertPart::Down];

    fn file_name(self) -> &'static str {
        match self {
            ExpertPart::Gate => "w1",
            ExpertPart::Up => "w3",
            ExpertPart::Down => "w2",
        }
    }
}

/// A tensor of the network. Matrices are `[out, in]`; H = hidden, N = heads * head_dim, K = kv_heads * head_dim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorName {
    /// `[vocab, H]`.
    Embedding,
    /// `[vocab, H]`.
    LmHead,
    /// `[H]`.
    FinalNorm,
    /// `[H]`, before attention.
    InputNorm(LayerId),
    /// `[H]`, before the experts.
    PostAttentionNorm(LayerId),
    /// `[3N, H]`; rows are head-major: per head q, k, v.
    LightningQkv(LayerId),
    /// `[N, H]`.
    LightningGate(LayerId),
    /// `[N]`.
    LightningNorm(LayerId),
    /// `[H, N]`.
    LightningOut(LayerId),
    /// `[N, H]`, softmax layers.
    Query(LayerId),
    /// `[K, H]`, softmax layers.
    Key(LayerId),
    /// `[K, H]`, softmax layers.
    Value(LayerId),
    /// `[H, N]`, softmax layers.
    SoftmaxOut(LayerId),
    /// `[experts, H]`.
    Router(LayerId),
    /// One matrix of one expert.
    Expert {
        /// Its layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// Which of its matrices.
        part: ExpertPart,
    },
}

/// A place in a file where a tensor may be: a whole tensor of this name, or a slice of a fused one.
pub(crate) struct Place {
    /// Name in the file.
    pub name: String,
    /// Shape that the tensor of that name must have.
    pub shape: Vec<usize>,
    /// First row (of all dimensions but the last) of the slice; 0 where it is the whole tensor.
    pub first_row: usize,
}

impl TensorName {
    /// Every tensor of a network: embedding, then layer by layer, then final norm and head.
    pub fn all(arch: &Architecture) -> Vec<TensorName> {
        let mut names = vec![TensorName::Embedding];
        for (layer, kind) in arch.layer_ids().zip(&arch.layers) {
            names.push(TensorName::InputNorm(layer));
            names.extend(attention(*kind).map(|of| of(layer)));
            names.extend([TensorName::PostAttentionNorm(layer), TensorName::Router(layer)]);
            for expert in arch.expert_ids() {
                names.extend(ExpertPart::ALL.map(|part| TensorName::Expert { layer, expert, part }));
            }
        }
        names.extend([TensorName::FinalNorm, TensorName::LmHead]);
        names
    }

    /// Its layer, if it belongs to one.
    pub fn layer(self) -> Option<LayerId> {
        match self {
            TensorName::Embedding | TensorName::LmHead | TensorName::FinalNorm => None,
            TensorName::InputNorm(layer)
            | TensorName::PostAttentionNorm(layer)
            | TensorName::LightningQkv(layer)
            | TensorName::LightningGate(layer)
            | TensorName::LightningNorm(layer)
            | TensorName::LightningOut(layer)
            | TensorName::Query(layer)
            | TensorName::Key(layer)
            | TensorName::Value(layer)
            | TensorName::SoftmaxOut(layer)
            | TensorName::Router(layer)
            | TensorName::Expert { layer, .. } => Some(layer),
        }
    }

    /// The shape that a network of this architecture gives it.
    pub fn shape(self, arch: &Architecture) -> Vec<usize> {
        let (hidden, n, kv) = (arch.hidden, arch.attention_dim(), arch.kv_dim());
        match self {
            TensorName::Embedding | TensorName::LmHead => vec![arch.vocab, hidden],
            TensorName::FinalNorm | TensorName::InputNorm(_) | TensorName::PostAttentionNorm(_) => vec![hidden],
            TensorName::LightningQkv(_) => vec![3 * n, hidden],
            TensorName::LightningGate(_) | TensorName::Query(_) => vec![n, hidden],
            TensorName::LightningNorm(_) => vec![n],
            TensorName::LightningOut(_) | TensorName::SoftmaxOut(_) => vec![hidden, n],
            TensorName::Key(_) | TensorName::Value(_) => vec![kv, hidden],
            TensorName::Router(_) => vec![arch.experts, hidden],
            TensorName::Expert { part: ExpertPart::Down, .. } => vec![hidden, arch.expert_hidden],
            TensorName::Expert { .. } => vec![arch.expert_hidden, hidden],
        }
    }

    /// Where it may be, the original name first.
    pub(crate) fn places(self, arch: &Architecture) -> Vec<Place> {
        let whole = |name: String| Place { name, shape: self.shape(arch), first_row: 0 };
        match self {
            TensorName::Embedding => vec![whole("model.embed_tokens.weight".into())],
            TensorName::LmHead => vec![whole("lm_head.weight".into())],
            TensorName::FinalNorm => vec![whole("model.norm.weight".into())],
            TensorName::Router(layer) => MOE.iter().map(|moe| whole(format!("model.layers.{layer}.{moe}.gate.weight"))).collect(),
            TensorName::Expert { layer, expert, part } => {
                let file = part.file_name();
                let apart = MOE.iter().map(|moe| whole(format!("model.layers.{layer}.{moe}.experts.{expert}.{file}.weight")));
                apart.chain([fused(arch, layer, expert, part)]).collect()
            }
            TensorName::InputNorm(layer) => vec![whole(format!("model.layers.{layer}.input_layernorm.weight"))],
            TensorName::PostAttentionNorm(layer) => {
                vec![whole(format!("model.layers.{layer}.post_attention_layernorm.weight"))]
            }
            TensorName::LightningQkv(layer) => vec![whole(attention_name(layer, "qkv_proj"))],
            TensorName::LightningGate(layer) => vec![whole(attention_name(layer, "output_gate"))],
            TensorName::LightningNorm(layer) => vec![whole(attention_name(layer, "norm"))],
            TensorName::LightningOut(layer) => vec![whole(attention_name(layer, "out_proj"))],
            TensorName::Query(layer) => vec![whole(attention_name(layer, "q_proj"))],
            TensorName::Key(layer) => vec![whole(attention_name(layer, "k_proj"))],
            TensorName::Value(layer) => vec![whole(attention_name(layer, "v_proj"))],
            TensorName::SoftmaxOut(layer) => vec![whole(attention_name(layer, "o_proj"))],
        }
    }
}

/// Names of the block of experts, original and Hugging Face's.
const MOE: [&str; 2] = ["block_sparse_moe", "mlp"];

/// Last part of the names of buffers that Hugging Face stores and every engine computes anew.
const BUFFERS: [&str; 5] = ["slope_rate", "query_decay", "key_decay", "diagonal_decay", "inv_freq"];

/// Whether a file's tensor is such a buffer.
pub(crate) fn is_buffer(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| BUFFERS.contains(&last))
}

fn attention_name(layer: LayerId, part: &str) -> String {
    format!("model.layers.{layer}.self_attn.{part}.weight")
}

fn attention(kind: AttentionKind) -> [fn(LayerId) -> TensorName; 4] {
    match kind {
        AttentionKind::Lightning => {
            [TensorName::LightningQkv, TensorName::LightningGate, TensorName::LightningNorm, TensorName::LightningOut]
        }
        AttentionKind::Softmax => [TensorName::Query, TensorName::Key, TensorName::Value, TensorName::SoftmaxOut],
    }
}

/// Hugging Face's fused experts: `gate_up_proj` is `[experts, 2 * expert_hidden, hidden]`, gate rows first; `down_proj` is
/// `[experts, hidden, expert_hidden]`.
fn fused(arch: &Architecture, layer: LayerId, expert: ExpertId, part: ExpertPart) -> Place {
    let (experts, hidden, inner) = (arch.experts, arch.hidden, arch.expert_hidden);
    let (file, shape, first_row) = match part {
        ExpertPart::Gate => ("gate_up_proj", vec![experts, 2 * inner, hidden], expert.index() * 2 * inner),
        ExpertPart::Up => ("gate_up_proj", vec![experts, 2 * inner, hidden], expert.index() * 2 * inner + inner),
        ExpertPart::Down => ("down_proj", vec![experts, hidden, inner], expert.index() * hidden),
    };
    Place { name: format!("model.layers.{layer}.mlp.experts.{file}"), shape, first_row }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimax_m1_has_8243_tensors_and_all_its_parameters() {
        let m1 = Architecture::minimax_m1();
        let names = TensorName::all(&m1);
        assert_eq!(names.len(), 8243);
        let elements: usize = names.iter().map(|name| name.shape(&m1).iter().product::<usize>()).sum();
        assert_eq!(elements as u64, m1.total_parameters());
    }

    #[test]
    fn fused_slices_tile_the_fused_tensor() {
        let m1 = Architecture::minimax_m1();
        let mut at = 0;
        for expert in m1.expert_ids() {
            for part in [ExpertPart::Gate, ExpertPart::Up] {
                assert_eq!(fused(&m1, LayerId(0), expert, part).first_row, at);
                at += m1.expert_hidden;
            }
        }
        assert_eq!(at, fused(&m1, LayerId(0), ExpertId(0), ExpertPart::Gate).shape[..2].iter().product::<usize>());
    }

    #[test]
    fn only_known_buffers_are_left_out() {
        assert!(is_buffer("model.layers.0.self_attn.slope_rate"));
        assert!(is_buffer("model.layers.0.self_attn.diagonal_decay"));
        assert!(!is_buffer("model.layers.0.self_attn.q_proj.bias"));
        assert!(!is_buffer("slope_rate.weight"));
    }
}
