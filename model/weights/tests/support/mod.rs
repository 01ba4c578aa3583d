//! A small checkpoint in memory, to be changed and written into a temporary folder.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use m1_arch::Architecture;
use m1_weights::{Checkpoint, WeightsError};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A checkpoint of the repository: `model/testdata/tiny-A`, `model/testdata/tiny-B` or `demo/m1-demo`.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[derive(Clone)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// Tensors by file; the index follows from it unless it is changed after [`Folder::write`].
pub struct Folder {
    pub config: Value,
    pub files: BTreeMap<String, BTreeMap<String, Tensor>>,
}

pub fn config() -> Value {
    json!({
        "architectures": ["MiniMaxM1ForCausalLM"], "attn_type_list": [0, 1], "head_dim": 4, "hidden_act": "silu", "hidden_size": 6,
        "intermediate_size": 5, "layernorm_full_attention_alpha": 2.0, "layernorm_full_attention_beta": 1.0,
        "layernorm_linear_attention_alpha": 2.0, "layernorm_linear_attention_beta": 1.0, "layernorm_mlp_alpha": 2.0,
        "layernorm_mlp_beta": 1.0, "max_position_embeddings": 1000, "num_attention_heads": 2, "num_experts_per_tok": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 1, "num_local_experts": 3, "postnorm": true, "rms_norm_eps": 1e-5,
        "rope_theta": 10000, "rotary_dim": 2, "vocab_size": 7
    })
}

pub const FIRST: &str = "model-00000-of-00002.safetensors";
pub const SECOND: &str = "model-00001-of-00002.safetensors";
pub const EXPERT: &str = "model.layers.1.block_sparse_moe.experts.2.w1.weight";

impl Folder {
    /// A good checkpoint: layer 0 and what belongs to no layer in the first file, layer 1 in the second.
    pub fn good() -> Self {
        let arch = Architecture::from_value(&config()).unwrap();
        let mut files: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (name, shape) in original_tensors(&arch) {
            let file = if name.starts_with("model.layers.1.") { SECOND } else { FIRST };
            files.entry(file.into()).or_default().insert(name.clone(), tensor(&name, shape));
        }
        Folder { config: config(), files }
    }

    pub fn tensor_mut(&mut self, name: &str) -> &mut Tensor {
        self.files.values_mut().find_map(|file| file.get_mut(name)).unwrap()
    }

    pub fn remove(&mut self, name: &str) -> Tensor {
        self.files.values_mut().find_map(|file| file.remove(name)).unwrap()
    }

    pub fn insert(&mut self, name: &str, tensor: Tensor) {
        self.files.get_mut(SECOND).unwrap().insert(name.into(), tensor);
    }

    /// Everything in one `model.safetensors`, which needs no index.
    pub fn into_single(self) -> Self {
        let all = self.files.into_values().flatten().collect();
        Folder { config: self.config, files: BTreeMap::from([("model.safetensors".into(), all)]) }
    }

    pub fn index(&self) -> Value {
        let names = |(file, tensors): (&String, &BTreeMap<String, Tensor>)| {
            tensors.keys().map(|name| (name.clone(), json!(file))).collect::<Vec<_>>()
        };
        let map: serde_json::Map<_, _> = self.files.iter().flat_map(names).collect();
        json!({"metadata": {"total_size": 0}, "weight_map": map})
    }

    /// Writes config, files and, unless there is only `model.safetensors`, the index.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        for (file, tensors) in &self.files {
            fs::write(dir.path().join(file), safetensors(tensors)).unwrap();
        }
        if !self.files.contains_key("model.safetensors") {
            write_index(dir.path(), &self.index());
        }
        dir
    }

    pub fn refused(&self) -> WeightsError {
        Checkpoint::open(self.write().path()).unwrap_err()
    }
}

pub fn write_index(dir: &Path, index: &Value) {
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A bf16 tensor whose bytes depend on its name, so that no two are alike.
pub fn tensor(name: &str, shape: Vec<usize>) -> Tensor {
    let length = shape.iter().product::<usize>() * 2;
    let seed = name.bytes().fold(17u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let data = (0..length as u32).map(|i| (seed.wrapping_add(i.wrapping_mul(2_654_435_761)) >> 13) as u8).collect();
    Tensor { dtype: "BF16".into(), shape, data }
}

fn original_tensors(arch: &Architecture) -> Vec<(String, Vec<usize>)> {
    let (h, i, n, kv, v) = (arch.hidden, arch.expert_hidden, arch.attention_dim(), arch.kv_dim(), arch.vocab);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![v, h]),
        ("lm_head.weight".to_owned(), vec![v, h]),
        ("model.norm.weight".to_owned(), vec![h]),
    ];
    for layer in 0..2 {
        let mut add = |name: &str, shape: Vec<usize>| all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        add("input_layernorm", vec![h]);
        add("post_attention_layernorm", vec![h]);
        if layer == 0 {
            add("self_attn.qkv_proj", vec![3 * n, h]);
            add("self_attn.output_gate", vec![n, h]);
            add("self_attn.norm", vec![n]);
            add("self_attn.out_proj", vec![h, n]);
        } else {
            add("self_attn.q_proj", vec![n, h]);
            add("self_attn.k_proj", vec![kv, h]);
            add("self_attn.v_proj", vec![kv, h]);
            add("self_attn.o_proj", vec![h, n]);
        }
        add("block_sparse_moe.gate", vec![arch.experts, h]);
        for expert in 0..arch.experts {
            add(&format!("block_sparse_moe.experts.{expert}.w1"), vec![i, h]);
            add(&format!("block_sparse_moe.experts.{expert}.w3"), vec![i, h]);
            add(&format!("block_sparse_moe.experts.{expert}.w2"), vec![h, i]);
        }
    }
    all
}

fn safetensors(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(&tensor.data);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}
