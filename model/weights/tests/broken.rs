//! One good checkpoint, one change each, and the error that must name what is wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::fs;
use std::path::Path;

use m1_weights::{Checkpoint, WeightsError};
use serde_json::{Value, json};
use support::{EXPERT, FIRST, Folder, SECOND, tensor, write_index};

/// The error of a good folder after a change on disk. It must have this reason and say all of `words`.
fn after(change: impl FnOnce(&Path), reason: &str, words: &[&str]) {
    let dir = Folder::good().write();
    change(dir.path());
    expect(Checkpoint::open(dir.path()).unwrap_err(), reason, words);
}

/// The same for a change of what is written.
fn with(change: impl FnOnce(&mut Folder), reason: &str, words: &[&str]) {
    let mut folder = Folder::good();
    change(&mut folder);
    expect(folder.refused(), reason, words);
}

fn expect(error: WeightsError, reason: &str, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.reason(), reason, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(!error.is_transient(), "{text}");
}

fn change_index(dir: &Path, change: impl FnOnce(&mut Value)) {
    let mut index = Folder::good().index();
    change(&mut index);
    write_index(dir, &index);
}

fn cut(dir: &Path, file: &str, length: impl Fn(u64) -> u64) {
    let file = fs::File::options().write(true).open(dir.join(file)).unwrap();
    file.set_len(length(file.metadata().unwrap().len())).unwrap();
}

#[test]
fn a_folder_that_is_not_there() {
    let error = Checkpoint::open(Path::new("no-such-folder")).unwrap_err();
    expect(error, "CheckpointUnreadable", &["no-such-folder", "config.json"]);
}

#[test]
fn config() {
    after(|dir| fs::remove_file(dir.join("config.json")).unwrap(), "CheckpointUnreadable", &["config.json"]);
    after(|dir| fs::write(dir.join("config.json"), "{").unwrap(), "ConfigNotJson", &["config.json"]);
    with(|folder| folder.config["num_key_value_heads"] = json!(3), "ConfigFieldInvalid", &["config.json"]);
}

#[test]
fn index() {
    let name = "model.safetensors.index.json";
    after(|dir| fs::remove_file(dir.join(name)).unwrap(), "IndexMissing", &[name, "add the index"]);
    after(|dir| fs::write(dir.join(name), "{").unwrap(), "IndexInvalid", &[name, "fetch it again"]);
    after(|dir| fs::write(dir.join(name), "{}").unwrap(), "IndexInvalid", &["weight_map"]);
    after(|dir| write_index(dir, &json!({"weight_map": {"a": 1}})), "IndexInvalid", &[name]);
}

#[test]
fn an_index_never_leads_out_of_its_folder() {
    for file in ["/etc/passwd.safetensors", "../x.safetensors", "sub/x.safetensors", "..", "", "weights.bin"] {
        let change = |dir: &Path| change_index(dir, |index| index["weight_map"][EXPERT] = json!(file));
        after(change, "ShardNameInvalid", &[EXPERT, &format!("{file:?}"), "plain names"]);
    }
}

#[test]
fn shards() {
    after(|dir| fs::remove_file(dir.join(SECOND)).unwrap(), "ShardMissing", &[SECOND, "model.layers.1.", "fetch the shard"]);
    let moved = |dir: &Path| change_index(dir, |index| index["weight_map"][EXPERT] = json!(FIRST));
    after(moved, "IndexMismatch", &[FIRST, EXPERT]);
    let invented = |dir: &Path| change_index(dir, |index| index["weight_map"]["model.extra"] = json!(FIRST));
    after(invented, "IndexMismatch", &[FIRST, "model.extra"]);
    let folder = |dir: &Path| {
        fs::remove_file(dir.join(SECOND)).unwrap();
        fs::create_dir(dir.join(SECOND)).unwrap();
    };
    after(folder, "CheckpointUnreadable", &[SECOND]);
}

#[test]
fn files_that_are_cut_off() {
    after(|dir| cut(dir, SECOND, |length| length - 1), "ShardTruncated", &[SECOND, "cut off", "fetch it again"]);
    for length in [0, 7, 8, 100] {
        after(|dir| cut(dir, FIRST, |_| length), "ShardTruncated", &[FIRST, &format!("the file has {length}")]);
    }
    after(|dir| cut(dir, SECOND, |length| length + 1), "ShardHeaderInvalid", &[SECOND, "1 bytes follow"]);
}

#[test]
fn files_of_another_kind() {
    let html = |dir: &Path| fs::write(dir.join(FIRST), "<html><body>404 Not Found</body></html>").unwrap();
    after(html, "ShardHeaderInvalid", &[FIRST, "header would be"]);
    let pointer = |dir: &Path| fs::write(dir.join(FIRST), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    after(pointer, "ShardHeaderInvalid", &[FIRST]);
    let garbled = |dir: &Path| {
        let mut bytes = fs::read(dir.join(FIRST)).unwrap();
        bytes[8] = b'[';
        fs::write(dir.join(FIRST), bytes).unwrap();
    };
    after(garbled, "ShardHeaderInvalid", &[FIRST, "header is not valid"]);
}

#[test]
fn tensors_that_overlap() {
    let overlap = |dir: &Path| {
        let bytes = fs::read(dir.join(SECOND)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header[EXPERT]["data_offsets"] = json!([0, 60]);
        let header = header.to_string();
        let data = &bytes[8 + length..];
        fs::write(dir.join(SECOND), [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
    };
    after(overlap, "TensorRangeInvalid", &[SECOND, "0..60", "overlap"]);
}

#[test]
fn shapes() {
    let swap = |folder: &mut Folder| folder.tensor_mut(EXPERT).shape.reverse();
    with(swap, "TensorShapeMismatch", &[EXPERT, SECOND, "[6, 5]", "[5, 6]"]);
    let other = |folder: &mut Folder| folder.config["vocab_size"] = json!(8);
    with(other, "TensorShapeMismatch", &["model.embed_tokens.weight", FIRST, "[7, 6]", "[8, 6]"]);
    let flat = |folder: &mut Folder| folder.tensor_mut("model.norm.weight").shape = vec![6, 1];
    with(flat, "TensorShapeMismatch", &["model.norm.weight"]);
}

#[test]
fn dtypes() {
    for dtype in ["I16", "U16", "F99"] {
        let change = |folder: &mut Folder| folder.tensor_mut(EXPERT).dtype = dtype.into();
        with(change, "TensorDtypeUnsupported", &[EXPERT, SECOND, dtype, "BF16, F16, F32"]);
    }
    // As many bytes, other numbers.
    with(|folder| folder.tensor_mut(EXPERT).dtype = "F16".into(), "TensorDtypeMixed", &[EXPERT, SECOND, "F16", "allowed is BF16"]);
    let quantised = |folder: &mut Folder| {
        let tensor = folder.tensor_mut(EXPERT);
        (tensor.dtype, tensor.data) = ("F8_E4M3".into(), vec![0; 30]);
    };
    with(quantised, "TensorDtypeUnsupported", &[EXPERT, "F8_E4M3", "unquantised"]);
    with(|folder| folder.tensor_mut(EXPERT).dtype = "F32".into(), "TensorRangeInvalid", &[EXPERT, "do not hold [5, 6] of F32"]);
}

#[test]
fn every_tensor_is_needed() {
    let names: Vec<String> = Folder::good().files.into_values().flat_map(|file| file.into_keys()).collect();
    assert_eq!(names.len(), 3 + 2 * (2 + 4 + 1 + 9));
    for name in names {
        let error = with_error(|folder| drop(folder.remove(&name)));
        expect(error, "TensorMissing", &[&name, "fetch the checkpoint again"]);
    }
}

fn with_error(change: impl FnOnce(&mut Folder)) -> WeightsError {
    let mut folder = Folder::good();
    change(&mut folder);
    folder.refused()
}

#[test]
fn what_the_network_has_no_place_for() {
    for name in [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.block_sparse_moe.experts.3.w1.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.coefficient.weight",
    ] {
        with(|folder| folder.insert(name, tensor(name, vec![6])), "TensorUnexpected", &[name, SECOND]);
    }
    let fewer = |folder: &mut Folder| {
        folder.config["num_hidden_layers"] = json!(1);
        folder.config["attn_type_list"] = json!([0]);
    };
    with(fewer, "TensorUnexpected", &["model.layers.1."]);
}

#[test]
fn kinds_of_attention_must_fit_the_weights() {
    let swap = |folder: &mut Folder| folder.config["attn_type_list"] = json!([1, 0]);
    with(swap, "TensorMissing", &["model.layers.0.self_attn.q_proj.weight"]);
}

#[test]
fn a_single_file_is_checked_alike() {
    let mut folder = Folder::good();
    folder.remove(EXPERT);
    expect(folder.into_single().refused(), "TensorMissing", &[EXPERT]);
    let dir = Folder::good().into_single().write();
    cut(dir.path(), "model.safetensors", |length| length - 2);
    expect(Checkpoint::open(dir.path()).unwrap_err(), "ShardTruncated", &["model.safetensors"]);
}
