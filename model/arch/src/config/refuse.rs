//! Fields that the architecture's code knows and MiniMax-M1 does not use. A file that sets one would give another network
//! here than where it was made, so it is refused.

use serde_json::Value;

use super::error::ConfigError;
use super::fields::{Fields, invalid, missing, not_supported};

pub(super) fn unsupported(fields: &Fields<'_>) -> Result<(), ConfigError> {
    match fields.get("hidden_act") {
        None => return Err(missing("hidden_act", "silu")),
        Some(act) if act.as_str() != Some("silu") => return Err(not_supported("hidden_act", act, "silu")),
        Some(_) => {}
    }
    if let Some(value) = fields.get("shared_intermediate_size") {
        match value.as_u64() {
            Some(0) => {}
            Some(_) => return Err(not_supported("shared_intermediate_size", value, "0 (no shared expert)")),
            None => return Err(invalid("shared_intermediate_size", value, "0 (no shared expert)")),
        }
    }
    for (name, why) in [
        ("tie_word_embeddings", "false (the head has weights of its own)"),
        ("attention_bias", "false (no linear layer has a bias)"),
    ] {
        if fields.flag(name)? == Some(true) {
            return Err(not_supported(name, true, why));
        }
    }
    for (name, why) in [
        ("sliding_window", "null (softmax layers attend to everything)"),
        ("rope_scaling", "null (frequencies are not scaled)"),
        ("quantization_config", "null (weights are bf16, fp16 or fp32)"),
    ] {
        if let Some(value) = fields.get(name) {
            return Err(not_supported(name, value, why));
        }
    }
    rope_type(fields)
}

fn rope_type(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let nested = fields.nested("rope_parameters")?;
    match nested.as_ref().and_then(|rope| rope.get("rope_type")) {
        Some(value) if value.as_str() != Some("default") => {
            Err(not_supported("rope_parameters.rope_type", value, Value::from("default").to_string()))
        }
        _ => Ok(()),
    }
}
