//! [`Architecture`]: the checked shape of one network. Reading it from a file is `config.rs`.

use serde::Serialize;

use crate::config::{self, ConfigError};
use crate::units::{ExpertId, LayerId};

/// Epsilon of the norm after lightning attention. It is the default of MiniMax's own norm class and stands in no
/// config; `rms_norm_eps` (1e-5) belongs to every other norm.
pub const LIGHTNING_NORM_EPS: f64 = 1e-6;

/// The two kinds of attention that M1 mixes, seven to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum AttentionKind {
    /// Linear attention with a decaying state of fixed size per sequence.
    Lightning,
    /// Softmax attention with grouped KV heads and a cache that grows with the context.
    Softmax,
}

impl AttentionKind {
    /// One lower-case word, for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            AttentionKind::Lightning => "lightning",
            AttentionKind::Softmax => "softmax",
        }
    }
}

/// Weights of a residual: `alpha * h + beta * f(h)`, where `h` is the normalised input when `postnorm` is true.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Residual {
    /// Weight of the residual itself.
    pub alpha: f64,
    /// Weight of the block's output.
    pub beta: f64,
}

/// The shape of one network. Sizes are numbers of elements.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    /// Kind of attention of every layer, in order.
    pub layers: Vec<AttentionKind>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads; `heads * head_dim` may differ from `hidden`.
    pub heads: usize,
    /// Key and value heads of softmax layers; divides `heads`.
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Experts of one layer.
    pub experts: usize,
    /// Experts that a token uses in one layer.
    pub top_k: usize,
    /// Inner width of one expert.
    pub expert_hidden: usize,
    /// Rows of the embedding and of the head; the tokenizer may name fewer.
    pub vocab: usize,
    /// Leading channels of a head that RoPE rotates; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Epsilon of every RMSNorm but the one after lightning attention.
    pub rms_norm_eps: f64,
    /// Residual weights around lightning attention.
    pub lightning: Residual,
    /// Residual weights around softmax attention.
    pub softmax: Residual,
    /// Residual weights around the experts.
    pub mlp: Residual,
    /// True: the residual that is added back is the normalised input.
    pub postnorm: bool,
    /// `max_position_embeddings`; not the trained length.
    pub max_positions: usize,
}

impl Architecture {
    /// Reads the text of a `config.json`. Errors name the field, what was given and what is allowed.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        config::from_json(text)
    }

    /// Reads a `config.json` that is parsed already, such as the one inside a custom resource.
    pub fn from_value(value: &serde_json::Value) -> Result<Self, ConfigError> {
        config::from_value(value)
    }

    /// MiniMax-M1 as published (40k and 80k alike): 456 B parameters, 80 layers, 32 experts.
    pub fn minimax_m1() -> Self {
        // DeepNorm's (2 * 80)^(1/4), as the published config spells it.
        let residual = Residual { alpha: 3.5565588200778455, beta: 1.0 };
        Architecture {
            layers: (0..80).map(|i| if i % 8 == 7 { AttentionKind::Softmax } else { AttentionKind::Lightning }).collect(),
            hidden: 6144,
            heads: 64,
            kv_heads: 8,
            head_dim: 128,
            experts: 32,
            top_k: 2,
            expert_hidden: 9216,
            vocab: 200_064,
            rotary_dim: 64,
            rope_theta: 1e7,
            rms_norm_eps: 1e-5,
            lightning: residual,
            softmax: residual,
            mlp: residual,
            postnorm: true,
            max_positions: 10_240_000,
        }
    }

    /// Everything that decides how large its weights are and how they can be cut, in words: two of these that differ are two models.
    pub fn shape(&self) -> String {
        format!(
            "{} layers ({} softmax), hidden {}, {} heads of {}, {} kv heads, {} experts of {}, {} per token, vocabulary {}",
            self.layers.len(),
            self.count(AttentionKind::Softmax),
            self.hidden,
            self.heads,
            self.head_dim,
            self.kv_heads,
            self.experts,
            self.expert_hidden,
            self.top_k,
            self.vocab
        )
    }

    /// Every layer's id, in order.
    pub fn layer_ids(&self) -> impl DoubleEndedIterator<Item = LayerId> + ExactSizeIterator + use<> {
        (0..self.layers.len() as u16).map(LayerId)
    }

    /// Every expert's id of one layer, in order.
    pub fn expert_ids(&self) -> impl DoubleEndedIterator<Item = ExpertId> + ExactSizeIterator + use<> {
        (0..self.experts as u16).map(ExpertId)
    }

    /// Kind of attention of one layer; `None` beyond the last.
    pub fn kind(&self, layer: LayerId) -> Option<AttentionKind> {
        self.layers.get(layer.index()).copied()
    }

    /// Residual weights around the attention of one kind.
    pub fn residual(&self, kind: AttentionKind) -> Residual {
        match kind {
            AttentionKind::Lightning => self.lightning,
            AttentionKind::Softmax => self.softmax,
        }
    }

    /// Number of layers of one kind.
    pub fn count(&self, kind: AttentionKind) -> usize {
        self.layers.iter().filter(|k| **k == kind).count()
    }

    /// Width of all query heads together, `heads * head_dim`.
    pub fn attention_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all KV heads together, `kv_heads * head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The same network with softmax attention in every layer: what lightning attention is compared with.
    pub fn softmax_twin(&self) -> Self {
        Architecture { layers: vec![AttentionKind::Softmax; self.layers.len()], ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimax_m1_has_seventy_lightning_layers() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(m1.count(AttentionKind::Lightning), 70);
        assert_eq!(m1.count(AttentionKind::Softmax), 10);
        assert_eq!(m1.kind(LayerId(79)), Some(AttentionKind::Softmax));
        assert_eq!(m1.kind(LayerId(80)), None);
        assert_eq!((m1.attention_dim(), m1.kv_dim()), (8192, 1024));
        assert_eq!(m1.softmax_twin().count(AttentionKind::Lightning), 0);
        assert!((m1.mlp.alpha - 160f64.powf(0.25)).abs() < 1e-15);
    }
}
