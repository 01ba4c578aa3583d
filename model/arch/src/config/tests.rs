//! One good file per spelling, then changes of one field each, with the field that the error must name.

use serde_json::{Value, json};

use super::{ConfigError, from_json, from_value};
use crate::{Architecture, AttentionKind};

const ALPHA: f64 = 3.5565588200778455;

fn original() -> Value {
    let types: Vec<u8> = (0..80).map(|i| u8::from(i % 8 == 7)).collect();
    json!({
        "architectures": ["MiniMaxM1ForCausalLM"], "model_type": "minimax_m1", "attention_dropout": 0.0,
        "attn_type_list": types, "bos_token_id": null, "eos_token_id": null, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 6144, "initializer_range": 0.02, "intermediate_size": 9216,
        "layernorm_full_attention_alpha": ALPHA, "layernorm_full_attention_beta": 1.0,
        "layernorm_linear_attention_alpha": ALPHA, "layernorm_linear_attention_beta": 1.0,
        "layernorm_mlp_alpha": ALPHA, "layernorm_mlp_beta": 1.0, "max_position_embeddings": 10240000,
        "num_attention_heads": 64, "num_experts_per_tok": 2, "num_hidden_layers": 80, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": false, "postnorm": true, "rms_norm_eps": 1e-05,
        "rope_theta": 10000000, "rotary_dim": 64, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
        "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid", "sliding_window": null,
        "tie_word_embeddings": false, "transformers_version": "4.45.2", "use_cache": true, "vocab_size": 200064
    })
}

fn native() -> Value {
    let kind = |i: usize| if i % 8 == 7 { "full_attention" } else { "linear_attention" };
    json!({
        "architectures": ["MiniMaxForCausalLM"], "model_type": "minimax", "block_size": 256,
        "full_attn_alpha_factor": ALPHA, "full_attn_beta_factor": 1.0, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 6144, "intermediate_size": 9216, "layer_types": (0..80).map(kind).collect::<Vec<_>>(),
        "linear_attn_alpha_factor": ALPHA, "linear_attn_beta_factor": 1.0, "max_position_embeddings": 10240000,
        "mlp_alpha_factor": ALPHA, "mlp_beta_factor": 1.0, "num_attention_heads": 64, "num_experts_per_tok": 2,
        "num_hidden_layers": 80, "num_key_value_heads": 8, "num_local_experts": 32, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000000.0, "rope_type": "default"}, "rotary_dim": 64,
        "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 200064
    })
}

/// `name` is a path of one or two steps; `None` takes the field away.
fn changed(mut config: Value, name: &str, value: Option<Value>) -> Value {
    let (object, name) = match name.split_once('.') {
        Some((outer, inner)) => (&mut config[outer], inner),
        None => (&mut config, name),
    };
    let object = object.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(name.to_owned(), value),
        None => object.remove(name),
    };
    config
}

fn refused(config: Value) -> ConfigError {
    from_value(&config).unwrap_err()
}

#[test]
fn every_spelling_gives_the_published_model() {
    let m1 = Architecture::minimax_m1();
    assert_eq!(from_value(&original()).unwrap(), m1);
    assert_eq!(from_value(&native()).unwrap(), m1);
    let text01 = changed(original(), "architectures", Some(json!(["MiniMaxText01ForCausalLM"])));
    assert_eq!(from_value(&text01).unwrap(), m1);
    assert_eq!(from_json(&original().to_string()).unwrap(), m1);
    assert_eq!(Architecture::from_value(&original()).unwrap(), m1);
}

#[test]
fn model_type_serves_where_architectures_is_absent() {
    for model_type in ["minimax_m1", "MiniMaxM1", "minimax_text_01"] {
        let config = changed(original(), "architectures", None);
        assert!(from_value(&changed(config, "model_type", Some(json!(model_type)))).is_ok(), "{model_type}");
    }
    assert!(from_value(&changed(native(), "architectures", None)).is_ok());
    let other = changed(changed(original(), "architectures", None), "model_type", Some(json!("minimax_m2")));
    assert_eq!(refused(other).field(), Some("model_type"));
    let neither = changed(changed(original(), "architectures", None), "model_type", None);
    assert_eq!(refused(neither).field(), Some("architectures"));
}

#[test]
fn no_needed_field_has_a_default() {
    let by_spelling = [
        (
            original(),
            "attn_type_list layernorm_full_attention_alpha layernorm_full_attention_beta \
            layernorm_linear_attention_alpha layernorm_linear_attention_beta layernorm_mlp_alpha layernorm_mlp_beta \
            rope_theta rotary_dim postnorm head_dim",
        ),
        (
            native(),
            "layer_types full_attn_alpha_factor full_attn_beta_factor linear_attn_alpha_factor \
            linear_attn_beta_factor mlp_alpha_factor mlp_beta_factor rope_parameters.rope_theta",
        ),
    ];
    let both = "hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads \
        num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts rms_norm_eps vocab_size";
    for (config, own) in by_spelling {
        for name in own.split_whitespace().chain(both.split_whitespace()) {
            for value in [None, Some(Value::Null)] {
                let error = refused(changed(config.clone(), name, value));
                assert_eq!((error.reason(), error.field()), ("ConfigFieldMissing", Some(name)));
            }
        }
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let cases = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-6144)),
        ("hidden_size", json!("6144")),
        ("hidden_size", json!(6144.5)),
        ("hidden_size", json!(u64::MAX)),
        ("num_hidden_layers", json!(79)),
        ("num_hidden_layers", json!(1_000_000)),
        ("attn_type_list", json!("0101")),
        ("attn_type_list", json!([])),
        ("num_key_value_heads", json!(7)),
        ("num_key_value_heads", json!(128)),
        ("num_attention_heads", json!(60)),
        ("rotary_dim", json!(63)),
        ("rotary_dim", json!(0)),
        ("rotary_dim", json!(130)),
        ("rotary_dim", json!("64")),
        ("num_experts_per_tok", json!(33)),
        ("num_experts_per_tok", json!(0)),
        ("num_local_experts", json!(65_536)),
        ("vocab_size", json!(true)),
        ("rms_norm_eps", json!(0)),
        ("rope_theta", json!(-1)),
        ("rope_theta", json!("1e7")),
        ("layernorm_mlp_alpha", json!([3.5])),
        ("postnorm", json!("yes")),
        ("tie_word_embeddings", json!(0)),
        ("shared_intermediate_size", json!("none")),
        ("max_position_embeddings", json!(1u64 << 40)),
        ("architectures", json!([])),
        ("architectures", json!("MiniMaxM1ForCausalLM")),
        ("architectures", json!(["LlamaForCausalLM"])),
    ];
    for (name, value) in cases {
        let error = refused(changed(original(), name, Some(value.clone())));
        assert_eq!(error.reason(), "ConfigFieldInvalid", "{name} = {value}: {error}");
        let expected = match name {
            "num_hidden_layers" if value == 79 => "attn_type_list",
            "num_attention_heads" => "num_key_value_heads",
            name => name,
        };
        assert_eq!(error.field(), Some(expected), "{error}");
    }
}

#[test]
fn an_entry_of_a_list_is_named_with_its_index() {
    let mut config = original();
    config["attn_type_list"][7] = json!(2);
    assert_eq!(refused(config).field(), Some("attn_type_list[7]"));
    let mut config = native();
    config["layer_types"][3] = json!("sliding_attention");
    assert_eq!(refused(config).field(), Some("layer_types[3]"));
}

#[test]
fn what_the_network_does_not_have_is_not_supported() {
    for (name, value) in [
        ("shared_intermediate_size", json!(4096)),
        ("hidden_act", json!("gelu")),
        ("tie_word_embeddings", json!(true)),
        ("attention_bias", json!(true)),
        ("sliding_window", json!(4096)),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0})),
        ("quantization_config", json!({"quant_method": "fp8"})),
        ("rope_parameters.rope_type", json!("yarn")),
    ] {
        let error = refused(changed(native(), name, Some(value)));
        assert_eq!((error.reason(), error.field()), ("ConfigNotSupported", Some(name)));
        assert!(error.to_string().contains("not supported"), "{error}");
    }
}

#[test]
fn a_left_over_rotary_dim_is_obeyed_in_the_native_spelling() {
    let rotary = |config: Value| from_value(&config).unwrap().rotary_dim;
    assert_eq!(rotary(native()), 64);
    let bare = changed(native(), "rotary_dim", None);
    assert_eq!(rotary(bare.clone()), 128, "without one, that format rotates the whole head");
    assert_eq!(rotary(changed(bare.clone(), "rope_parameters.partial_rotary_factor", Some(json!(0.5)))), 64);
    assert_eq!(rotary(changed(bare.clone(), "partial_rotary_factor", Some(json!(0.25)))), 32);
    assert_eq!(rotary(changed(native(), "partial_rotary_factor", Some(json!(1.0)))), 64);
    let odd = refused(changed(bare, "partial_rotary_factor", Some(json!(0.1))));
    assert_eq!(odd.field(), Some("partial_rotary_factor"));
}

#[test]
fn native_defaults_are_those_of_its_format() {
    let config = changed(changed(native(), "num_attention_heads", Some(json!(48))), "head_dim", None);
    assert_eq!(from_value(&config).unwrap().head_dim, 128);
    let uneven = changed(native(), "num_attention_heads", Some(json!(40)));
    assert_eq!(refused(changed(uneven, "head_dim", None)).field(), Some("head_dim"));
    assert!(!from_value(&changed(native(), "postnorm", Some(json!(false)))).unwrap().postnorm);
    let legacy = changed(changed(native(), "rope_parameters", None), "rope_theta", Some(json!(1e7)));
    assert_eq!(from_value(&legacy).unwrap().rope_theta, 1e7);
}

#[test]
fn two_spellings_of_a_field_must_agree() {
    let both = changed(native(), "layernorm_mlp_alpha", Some(json!(ALPHA)));
    assert!(from_value(&both).is_ok());
    let unlike = refused(changed(native(), "layernorm_mlp_alpha", Some(json!(2))));
    assert_eq!(unlike.field(), Some("layernorm_mlp_alpha"));
    assert!(unlike.to_string().contains("mlp_alpha_factor = 3.5565588200778455"), "{unlike}");
    assert_eq!(refused(changed(native(), "rope_theta", Some(json!(1e6)))).field(), Some("rope_theta"));
    assert!(from_value(&changed(native(), "rope_theta", Some(json!(10_000_000)))).is_ok());
    let layers = refused(changed(native(), "attn_type_list", Some(json!([0, 1]))));
    assert_eq!(layers.field(), Some("attn_type_list"));
    let same = changed(native(), "attn_type_list", Some(original()["attn_type_list"].clone()));
    assert!(from_value(&same).is_ok());
}

#[test]
fn postnorm_and_patterns_are_read_not_assumed() {
    let config = changed(original(), "num_hidden_layers", Some(json!(3)));
    let arch = from_value(&changed(config, "attn_type_list", Some(json!([1, 0, 0])))).unwrap();
    assert_eq!(arch.layers, [AttentionKind::Softmax, AttentionKind::Lightning, AttentionKind::Lightning]);
    assert!(!from_value(&changed(original(), "postnorm", Some(json!(false)))).unwrap().postnorm);
    assert!(from_value(&changed(original(), "shared_intermediate_size", None)).is_ok());
}

#[test]
fn messages_say_field_given_and_allowed() {
    let text = |name, value| refused(changed(original(), name, Some(value))).to_string();
    assert_eq!(
        text("num_key_value_heads", json!(7)),
        "config.json has num_key_value_heads = 7: allowed: divisors of num_attention_heads = 64"
    );
    assert_eq!(text("rotary_dim", json!(63)), "config.json has rotary_dim = 63: allowed: an even number from 2 to head_dim = 128");
    let long = text("hidden_size", json!("x".repeat(500)));
    assert!(long.len() < 200, "{long}");
}

#[test]
fn what_is_not_an_object_is_refused() {
    for text in ["", "{", "nonsense"] {
        let error = from_json(text).unwrap_err();
        assert_eq!((error.reason(), error.field()), ("ConfigNotJson", None));
    }
    assert_eq!(from_json("[1]").unwrap_err().reason(), "ConfigFieldInvalid");
    let deep = "[".repeat(100_000);
    assert_eq!(from_json(&deep).unwrap_err().reason(), "ConfigNotJson");
    assert_eq!(refused(changed(native(), "rope_parameters", Some(json!(7)))).field(), Some("rope_parameters"));
}

#[test]
fn the_largest_allowed_sizes_overflow_no_formula() {
    let mut config = original();
    for (name, value) in [
        ("hidden_size", 65_536u64),
        ("intermediate_size", 65_536),
        ("num_attention_heads", 1024),
        ("num_key_value_heads", 1024),
        ("head_dim", 1024),
        ("num_local_experts", 1024),
        ("num_hidden_layers", 1024),
        ("vocab_size", 1 << 24),
        ("max_position_embeddings", u64::from(u32::MAX)),
    ] {
        config[name] = json!(value);
    }
    config["attn_type_list"] = json!(vec![0; 1024]);
    let arch = from_value(&config).unwrap();
    assert!(arch.total_bytes(crate::Storage::Float32).0 < u64::MAX / 2);
    assert!(arch.flops_per_token(u64::MAX).is_finite());
    assert!(arch.state_bytes_per_sequence().0 < u64::MAX / 2);
}
