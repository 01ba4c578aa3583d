//! Checkpoints that must open: the repository's own, and every layout and spelling of one made here.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::collections::HashMap;
use std::fs;

use m1_arch::{Architecture, AttentionKind, ExpertId, ExpertSet, LayerId};
use m1_weights::{Checkpoint, Dtype, ExpertPart, TensorName, plan_read};
use serde_json::{Value, json};
use support::{Folder, Tensor, repository, tensor};

const OWN: [&str; 3] = ["model/testdata/tiny-A", "model/testdata/tiny-B", "demo/m1-demo"];

/// The original name of a tensor, spelled here a second time.
fn original_name(name: TensorName) -> String {
    let of = |layer: LayerId, rest: &str| format!("model.layers.{layer}.{rest}.weight");
    match name {
        TensorName::Embedding => "model.embed_tokens.weight".into(),
        TensorName::LmHead => "lm_head.weight".into(),
        TensorName::FinalNorm => "model.norm.weight".into(),
        TensorName::InputNorm(layer) => of(layer, "input_layernorm"),
        TensorName::PostAttentionNorm(layer) => of(layer, "post_attention_layernorm"),
        TensorName::LightningQkv(layer) => of(layer, "self_attn.qkv_proj"),
        TensorName::LightningGate(layer) => of(layer, "self_attn.output_gate"),
        TensorName::LightningNorm(layer) => of(layer, "self_attn.norm"),
        TensorName::LightningOut(layer) => of(layer, "self_attn.out_proj"),
        TensorName::Query(layer) => of(layer, "self_attn.q_proj"),
        TensorName::Key(layer) => of(layer, "self_attn.k_proj"),
        TensorName::Value(layer) => of(layer, "self_attn.v_proj"),
        TensorName::SoftmaxOut(layer) => of(layer, "self_attn.o_proj"),
        TensorName::Router(layer) => of(layer, "block_sparse_moe.gate"),
        TensorName::Expert { layer, expert, part } => {
            let part = match part {
                ExpertPart::Gate => "w1",
                ExpertPart::Up => "w3",
                ExpertPart::Down => "w2",
            };
            of(layer, &format!("block_sparse_moe.experts.{expert}.{part}"))
        }
    }
}

/// Every tensor of an original-layout folder as the reference reader of safetensors gives it.
fn reference(dir: &std::path::Path) -> HashMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = HashMap::new();
    for file in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = fs::read(&file).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                all.insert(name, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()));
            }
        }
    }
    all
}

#[test]
fn the_repositorys_checkpoints_read_as_the_reference_reader_reads_them() {
    for path in OWN {
        let checkpoint = Checkpoint::open(&repository(path)).unwrap();
        let reference = reference(&repository(path));
        let names = TensorName::all(checkpoint.architecture());
        assert_eq!(names.len(), reference.len(), "{path}");
        for name in names {
            let view = checkpoint.tensor(&name).unwrap();
            let (dtype, shape, data) = &reference[&original_name(name)];
            assert_eq!((view.dtype.as_str(), &view.shape), (dtype.as_str(), shape), "{path} {name:?}");
            assert!(view.data == data, "{path} {name:?}");
            assert_eq!(view.data.len(), shape.iter().product::<usize>() * view.dtype.size());
        }
        let index = fs::read_to_string(repository(path).join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(json!(checkpoint.total_bytes()), index["metadata"]["total_size"], "{path}");
    }
}

#[test]
fn the_repositorys_checkpoints_are_the_networks_they_claim() {
    let [a, b, demo] = OWN.map(|path| Checkpoint::open(&repository(path)).unwrap());
    let shape = |arch: &Architecture| (arch.layers.len(), arch.hidden, arch.experts, arch.expert_hidden, arch.vocab);
    assert_eq!(shape(a.architecture()), (8, 128, 8, 32, 320));
    assert_eq!(shape(b.architecture()), (4, 96, 32, 24, 320));
    assert_eq!(shape(demo.architecture()), (8, 128, 32, 64, 2112));
    assert_eq!(a.architecture().count(AttentionKind::Softmax), 2);
    assert_eq!(a.tensor(&TensorName::Router(LayerId(0))).unwrap().dtype, Dtype::BF16);
    assert_eq!(demo.tensor(&TensorName::Router(LayerId(0))).unwrap().dtype, Dtype::F32);
    assert_eq!(demo.dir(), repository(OWN[2]));
}

#[test]
fn a_name_that_the_network_lacks_is_an_error() {
    let a = Checkpoint::open(&repository(OWN[0])).unwrap();
    for name in [
        TensorName::Query(LayerId(0)),
        TensorName::LightningQkv(LayerId(3)),
        TensorName::InputNorm(LayerId(8)),
        TensorName::Expert { layer: LayerId(0), expert: ExpertId(8), part: ExpertPart::Gate },
    ] {
        let error = a.tensor(&name).unwrap_err();
        assert_eq!(error.reason(), "TensorUnknown");
        assert!(!error.is_transient());
    }
}

#[test]
fn a_worker_reads_the_rest_and_its_own_experts() {
    let b = Checkpoint::open(&repository(OWN[1])).unwrap();
    let plan = |range| plan_read(&b, &ExpertSet::from_range(4, 32, range));
    let (all, none, low, high) = (plan(0..32), plan(0..0), plan(0..16), plan(16..32));
    assert_eq!(all.bytes, b.total_bytes());
    assert_eq!(all.tensors.len(), TensorName::all(b.architecture()).len());
    assert_eq!(low.bytes + high.bytes, all.bytes + none.bytes);
    assert_eq!(all.bytes - none.bytes, 4 * 32 * 3 * 96 * 24 * 2);
    assert!(none.tensors.iter().all(|name| !matches!(name, TensorName::Expert { .. })));
    assert!(low.tensors.iter().all(|name| !matches!(name, TensorName::Expert { expert, .. } if expert.0 >= 16)));
    let addresses: Vec<_> = all.tensors.iter().map(|name| b.tensor(name).unwrap().data.as_ptr() as usize).collect();
    let backward = addresses.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(backward <= 1, "a disk is read forward: only the step to the next shard may go back");
}

fn same_weights(one: &Checkpoint, other: &Checkpoint) {
    for name in TensorName::all(one.architecture()) {
        let (a, b) = (one.tensor(&name).unwrap(), other.tensor(&name).unwrap());
        assert!(a.data == b.data && a.shape == b.shape && a.dtype == b.dtype, "{name:?}");
    }
    assert_eq!(one.total_bytes(), other.total_bytes());
}

#[test]
fn one_file_without_an_index_is_a_checkpoint() {
    let (two, one) = (Folder::good().write(), Folder::good().into_single().write());
    same_weights(&Checkpoint::open(two.path()).unwrap(), &Checkpoint::open(one.path()).unwrap());
}

#[test]
fn names_of_files_mean_nothing() {
    let mut folder = Folder::good();
    let first = folder.files.remove(support::FIRST).unwrap();
    folder.files.insert("zz-model-00413-of-00007.safetensors".into(), first);
    let (good, renamed) = (Folder::good().write(), folder.write());
    fs::write(renamed.path().join("model-00009-of-00002.safetensors"), "not of this checkpoint").unwrap();
    same_weights(&Checkpoint::open(good.path()).unwrap(), &Checkpoint::open(renamed.path()).unwrap());
}

#[test]
fn what_a_shard_holds_beside_the_index_does_not_count() {
    let folder = Folder::good();
    let index = folder.index();
    let mut more = Folder::good();
    more.insert("model.layers.9.other.weight", tensor("other", vec![4]));
    let dir = more.write();
    support::write_index(dir.path(), &index);
    same_weights(&Checkpoint::open(folder.write().path()).unwrap(), &Checkpoint::open(dir.path()).unwrap());
}

/// Hugging Face's names on disk, with its buffers.
fn native() -> Folder {
    let mut folder = Folder::good();
    for tensors in folder.files.values_mut() {
        let renamed = |(name, tensor): (String, Tensor)| (name.replace("block_sparse_moe", "mlp"), tensor);
        *tensors = std::mem::take(tensors).into_iter().map(renamed).collect();
    }
    for buffer in ["slope_rate", "query_decay", "key_decay", "diagonal_decay"] {
        folder.insert(&format!("model.layers.0.self_attn.{buffer}"), tensor(buffer, vec![2, 1, 1]));
    }
    folder
}

#[test]
fn native_names_and_buffers_are_read() {
    let (original, native) = (Folder::good().write(), native().write());
    same_weights(&Checkpoint::open(original.path()).unwrap(), &Checkpoint::open(native.path()).unwrap());
}

#[test]
fn fused_experts_are_cut_apart() {
    let mut folder = native();
    for layer in 0..2 {
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..3 {
            let name = |part| format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight");
            gate_up.extend(folder.remove(&name("w1")).data);
            gate_up.extend(folder.remove(&name("w3")).data);
            down.extend(folder.remove(&name("w2")).data);
        }
        let fused = |shape, data| Tensor { dtype: "BF16".into(), shape, data };
        folder.insert(&format!("model.layers.{layer}.mlp.experts.gate_up_proj"), fused(vec![3, 10, 6], gate_up));
        folder.insert(&format!("model.layers.{layer}.mlp.experts.down_proj"), fused(vec![3, 6, 5], down));
    }
    let (original, fused) = (Folder::good().write(), folder.write());
    same_weights(&Checkpoint::open(original.path()).unwrap(), &Checkpoint::open(fused.path()).unwrap());
}

#[test]
fn each_tensor_keeps_its_own_dtype() {
    let mut folder = Folder::good();
    let router = folder.tensor_mut("model.layers.0.block_sparse_moe.gate.weight");
    (router.dtype, router.data) = ("F32".into(), vec![1; 3 * 6 * 4]);
    folder.tensor_mut("model.norm.weight").dtype = "F16".into();
    let checkpoint = Checkpoint::open(folder.write().path()).unwrap();
    assert_eq!(checkpoint.tensor(&TensorName::Router(LayerId(0))).unwrap().dtype, Dtype::F32);
    assert_eq!(checkpoint.tensor(&TensorName::FinalNorm).unwrap().dtype, Dtype::F16);
    let bf16 = checkpoint.architecture().total_parameters() * 2;
    assert_eq!(checkpoint.total_bytes(), bf16 + 3 * 6 * 2);
}

#[test]
fn the_digest_tells_checkpoints_apart() {
    let digest = |folder: &Folder| Checkpoint::open(folder.write().path()).unwrap().digest().to_owned();
    let good = digest(&Folder::good());
    assert_eq!(good.len(), 64);
    assert_eq!(good, digest(&Folder::good()), "it does not depend on the folder");
    let mut other = Folder::good();
    other.config["rope_theta"] = json!(20000);
    assert_ne!(good, digest(&other));
    let mut other = Folder::good();
    other.tensor_mut("model.norm.weight").dtype = "F16".into();
    assert_ne!(good, digest(&other));
    assert_ne!(good, digest(&Folder::good().into_single()));
}

#[cfg(unix)]
#[test]
fn shards_may_be_links_as_in_a_download_cache() {
    let (cache, dir) = (Folder::good().write(), tempfile::tempdir().unwrap());
    for entry in fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap()) {
        std::os::unix::fs::symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    same_weights(&Checkpoint::open(cache.path()).unwrap(), &Checkpoint::open(dir.path()).unwrap());
}

#[test]
fn samples_tell_values_apart_in_every_tensor() {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(repository("model/testdata/tiny-A")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let open = || Checkpoint::open(copy.path()).unwrap();
    let (names, digest, whole) = (TensorName::all(open().architecture()), open().digest().to_owned(), open().sample().unwrap());
    assert_eq!(whole, Checkpoint::open(&repository("model/testdata/tiny-A")).unwrap().sample().unwrap(), "wherever it lies");
    for (nth, name) in names.into_iter().enumerate() {
        let checkpoint = open();
        let view = checkpoint.tensor(&name).unwrap();
        // The first, the last, or one of all where the tensor is sampled whole.
        let at = if nth % 2 == 0 { 0 } else { view.data.len() - 1 };
        let start = view.data.as_ptr() as usize - view.file.as_ptr() as usize;
        let (path, was) = (view.file.path().to_owned(), view.data[at]);
        let put = |byte: u8| {
            use std::os::unix::fs::FileExt;
            fs::File::options().write(true).open(&path).unwrap().write_all_at(&[byte], (start + at) as u64).unwrap();
        };
        put(was ^ 1);
        let changed = open();
        assert_ne!(changed.sample().unwrap(), whole, "{name:?}");
        assert_eq!(changed.digest(), digest, "{name:?}: its shape is the same");
        put(was);
    }
    assert_eq!(open().sample().unwrap(), whole);
}
