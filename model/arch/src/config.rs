//! `config.json` to [`Architecture`], in three spellings: `MiniMaxM1ForCausalLM` and `MiniMaxText01ForCausalLM` (the
//! original one) and `MiniMaxForCausalLM` (Hugging Face's own).
//!
//! Nothing is guessed. A missing field is an error, except where a format itself says what its absence means: in Hugging
//! Face's spelling `postnorm` is true, `head_dim` is `hidden_size / num_attention_heads` and all of it rotates. Where a
//! file has both spellings of a field, they must agree. Fields that play no part in inference are not looked at.

mod error;
mod fields;
mod refuse;
#[cfg(test)]
mod tests;

pub use error::ConfigError;

use serde_json::Value;

use crate::architecture::{Architecture, AttentionKind, Residual};
use fields::{Fields, invalid, missing};

/// Most layers, heads, channels of a head, and experts of a layer. Ids fit in u16 with `u16::MAX` to spare, and no
/// product of sizes passes 2^63; M1 has at most 128 of any.
const MOST_PARTS: usize = 1024;
/// Widest hidden and expert size, for the same reason; M1 has 9216.
const MOST_WIDTH: usize = 65_536;
/// Most rows of the vocabulary, for the same reason; M1 has 200064.
const MOST_VOCAB: usize = 1 << 24;
/// Most positions: a position is a u32 on the wire; M1 has 10240000.
const MOST_POSITIONS: usize = u32::MAX as usize;

/// Which names a file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// MiniMax's own.
    Original,
    /// Hugging Face's.
    Native,
}

impl Spelling {
    /// Both names of a field, the one that belongs to this spelling first.
    fn names(self, original: &'static str, native: &'static str) -> [&'static str; 2] {
        match self {
            Spelling::Original => [original, native],
            Spelling::Native => [native, original],
        }
    }
}

const CLASSES: [(&str, Spelling); 3] = [
    ("MiniMaxM1ForCausalLM", Spelling::Original),
    ("MiniMaxText01ForCausalLM", Spelling::Original),
    ("MiniMaxForCausalLM", Spelling::Native),
];
/// Model types, lower case and without underscores, for files without `architectures`.
const MODEL_TYPES: [(&str, Spelling); 3] =
    [("minimaxm1", Spelling::Original), ("minimaxtext01", Spelling::Original), ("minimax", Spelling::Native)];

pub(crate) fn from_json(text: &str) -> Result<Architecture, ConfigError> {
    from_value(&serde_json::from_str(text).map_err(|source| ConfigError::NotJson { source })?)
}

pub(crate) fn from_value(value: &Value) -> Result<Architecture, ConfigError> {
    let fields = &Fields::of(value)?;
    let spelling = spelling(fields)?;
    refuse::unsupported(fields)?;
    let hidden = fields.count(&["hidden_size"], MOST_WIDTH)?;
    let heads = fields.count(&["num_attention_heads"], MOST_PARTS)?;
    let head_dim = head_dim(fields, spelling, hidden, heads)?;
    let experts = fields.count(&["num_local_experts"], MOST_PARTS)?;
    let residual = |part| residual(fields, spelling, part);
    Ok(Architecture {
        layers: layers(fields, spelling)?,
        hidden,
        heads,
        kv_heads: kv_heads(fields, heads)?,
        head_dim,
        experts,
        top_k: top_k(fields, experts)?,
        expert_hidden: fields.count(&["intermediate_size"], MOST_WIDTH)?,
        vocab: fields.count(&["vocab_size"], MOST_VOCAB)?,
        rotary_dim: rotary_dim(fields, spelling, head_dim)?,
        rope_theta: rope_theta(fields, spelling)?,
        rms_norm_eps: fields.positive(&["rms_norm_eps"])?,
        lightning: residual(RESIDUALS[0])?,
        softmax: residual(RESIDUALS[1])?,
        mlp: residual(RESIDUALS[2])?,
        postnorm: postnorm(fields, spelling)?,
        max_positions: fields.count(&["max_position_embeddings"], MOST_POSITIONS)?,
    })
}

fn spelling(fields: &Fields<'_>) -> Result<Spelling, ConfigError> {
    let allowed = CLASSES.map(|(class, _)| class).join(", ");
    if let Some(value) = fields.get("architectures") {
        let class = value.as_array().and_then(|list| list.first()).and_then(Value::as_str);
        let known = CLASSES.iter().find(|(name, _)| Some(*name) == class);
        return known.map(|(_, spelling)| *spelling).ok_or_else(|| invalid("architectures", value, allowed));
    }
    let value = fields.get("model_type").ok_or_else(|| missing("architectures", allowed))?;
    let plain = value.as_str().unwrap_or_default().to_lowercase().replace('_', "");
    let known = MODEL_TYPES.iter().find(|(name, _)| *name == plain);
    known.map(|(_, spelling)| *spelling).ok_or_else(|| invalid("model_type", value, "minimax_m1, minimax_text_01, minimax"))
}

fn layers(fields: &Fields<'_>, spelling: Spelling) -> Result<Vec<AttentionKind>, ConfigError> {
    let count = fields.count(&["num_hidden_layers"], MOST_PARTS)?;
    let original = fields.list("attn_type_list", "0 (lightning) or 1 (softmax)", |item| match item.as_u64() {
        Some(0) => Some(AttentionKind::Lightning),
        Some(1) => Some(AttentionKind::Softmax),
        _ => None,
    })?;
    let native = fields.list("layer_types", "linear_attention or full_attention", |item| match item.as_str() {
        Some("linear_attention") => Some(AttentionKind::Lightning),
        Some("full_attention") => Some(AttentionKind::Softmax),
        _ => None,
    })?;
    let one_per_layer = format!("one entry per layer, num_hidden_layers = {count} of them");
    let (name, kinds) = match (original, native) {
        (Some(original), Some(native)) if original != native => {
            return Err(invalid("attn_type_list", "other layers than layer_types", "the same in both, or one alone"));
        }
        (Some(kinds), _) => ("attn_type_list", kinds),
        (None, Some(kinds)) => ("layer_types", kinds),
        (None, None) => return Err(missing(spelling.names("attn_type_list", "layer_types")[0], one_per_layer)),
    };
    if kinds.len() != count {
        return Err(invalid(name, format!("{} entries", kinds.len()), one_per_layer));
    }
    Ok(kinds)
}

fn kv_heads(fields: &Fields<'_>, heads: usize) -> Result<usize, ConfigError> {
    let name = "num_key_value_heads";
    let given = fields.count(&[name], MOST_PARTS)?;
    if !heads.is_multiple_of(given) {
        return Err(invalid(name, given, format!("divisors of num_attention_heads = {heads}")));
    }
    Ok(given)
}

fn head_dim(fields: &Fields<'_>, spelling: Spelling, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
    if spelling == Spelling::Native && fields.get("head_dim").is_none() && hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    fields.count(&["head_dim"], MOST_PARTS)
}

fn top_k(fields: &Fields<'_>, experts: usize) -> Result<usize, ConfigError> {
    let name = "num_experts_per_tok";
    let given = fields.count(&[name], MOST_PARTS)?;
    if given > experts {
        return Err(invalid(name, given, format!("1 to num_local_experts = {experts}")));
    }
    Ok(given)
}

/// A `rotary_dim` that Hugging Face's converter left over is obeyed: that library itself ignores it, M1 does not.
fn rotary_dim(fields: &Fields<'_>, spelling: Spelling, head_dim: usize) -> Result<usize, ConfigError> {
    let allowed = format!("an even number from 2 to head_dim = {head_dim}");
    let fits = |dim: usize| dim >= 2 && dim <= head_dim && dim.is_multiple_of(2);
    if let Some(value) = fields.get("rotary_dim") {
        let dim = value.as_u64().and_then(|dim| usize::try_from(dim).ok()).filter(|dim| fits(*dim));
        return dim.ok_or_else(|| invalid("rotary_dim", value, allowed));
    }
    if spelling == Spelling::Original {
        return Err(missing("rotary_dim", allowed));
    }
    let nested = fields.nested("rope_parameters")?;
    let name = "partial_rotary_factor";
    let factor = nested.as_ref().and_then(|rope| rope.get(name)).or_else(|| fields.get(name));
    let Some(value) = factor else {
        return if fits(head_dim) { Ok(head_dim) } else { Err(missing("rotary_dim", allowed)) };
    };
    let dim = value.as_f64().map(|factor| factor * head_dim as f64).filter(|dim| dim.fract() == 0.0 && *dim >= 0.0);
    let dim = dim.map(|dim| dim as usize).filter(|dim| fits(*dim));
    dim.ok_or_else(|| invalid(name, value, format!("a factor of head_dim = {head_dim} that gives an even number")))
}

fn rope_theta(fields: &Fields<'_>, spelling: Spelling) -> Result<f64, ConfigError> {
    let nested = fields.nested("rope_parameters")?;
    let inner = nested.as_ref().map(|rope| rope.optional_positive("rope_theta")).transpose()?.flatten();
    let outer = fields.optional_positive("rope_theta")?;
    match (outer, inner) {
        (Some(outer), Some(inner)) if outer != inner => {
            let allowed = format!("the same as rope_parameters.rope_theta = {inner}, or one of the two alone");
            Err(invalid("rope_theta", outer, allowed))
        }
        (Some(theta), _) | (None, Some(theta)) => Ok(theta),
        (None, None) => {
            Err(missing(spelling.names("rope_theta", "rope_parameters.rope_theta")[0], "a number above 0 (MiniMax-M1: 10000000)"))
        }
    }
}

/// Names of alpha and beta, original and native, of one part of a layer.
type ResidualNames = [(&'static str, &'static str); 2];

/// Lightning attention, softmax attention, experts.
const RESIDUALS: [ResidualNames; 3] = [
    [
        ("layernorm_linear_attention_alpha", "linear_attn_alpha_factor"),
        ("layernorm_linear_attention_beta", "linear_attn_beta_factor"),
    ],
    [("layernorm_full_attention_alpha", "full_attn_alpha_factor"), ("layernorm_full_attention_beta", "full_attn_beta_factor")],
    [("layernorm_mlp_alpha", "mlp_alpha_factor"), ("layernorm_mlp_beta", "mlp_beta_factor")],
];

fn residual(fields: &Fields<'_>, spelling: Spelling, names: ResidualNames) -> Result<Residual, ConfigError> {
    let [alpha, beta] = names.map(|(original, native)| fields.positive(&spelling.names(original, native)));
    Ok(Residual { alpha: alpha?, beta: beta? })
}

fn postnorm(fields: &Fields<'_>, spelling: Spelling) -> Result<bool, ConfigError> {
    match (fields.flag("postnorm")?, spelling) {
        (Some(given), _) => Ok(given),
        (None, Spelling::Native) => Ok(true),
        (None, Spelling::Original) => Err(missing("postnorm", "true or false (MiniMax-M1: true)")),
    }
}
