//! A shard that changes under an executor: what it concerns fails with its name, and the executor goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use m1_arch::{ExpertId, ExpertSet};
use m1_cpu::{CpuError, CpuExecutor, CpuNetwork};
use m1_engine::{Completion, ExecutorError, Inline, Request, RequestKey, SlotId};
use m1_executor_suite::{Outcome, Rig, SIZE, Turn, all_experts, testdata};
use m1_weights::{Checkpoint, ExpertPart, TensorName, plan_read};
use tempfile::TempDir;

const SHARDS: [&str; 2] = ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"];

/// Model B in a folder of its own.
fn model() -> (TempDir, Arc<Checkpoint>) {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(testdata("tiny-B")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, Arc::new(checkpoint))
}

fn load(checkpoint: &Checkpoint, experts: &ExpertSet) -> Result<Rig<CpuExecutor>, CpuError> {
    let network = CpuNetwork::load(checkpoint, experts, SIZE, 2, &mut |_| {})?;
    Ok(Rig::new(Inline::new(network), checkpoint.architecture()))
}

fn cut(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(0).unwrap();
}

fn write_over(path: &Path) {
    let later = SystemTime::now() + Duration::from_secs(9);
    File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
}

fn step(rig: &mut Rig<CpuExecutor>, slot: u32) -> Result<Outcome, ExecutorError> {
    rig.step(None, &[Turn { slot: SlotId(slot), position: 0, ids: vec![1, 2, 3], prompt: 3 }])
}

fn expect(error: &ExecutorError, shard: &str) {
    let text = error.to_string();
    assert!(error.reason() == "WeightsChanged" && text.contains(shard), "{}: {text}", error.reason());
}

fn file_of(checkpoint: &Checkpoint, name: &TensorName) -> String {
    let tensor = checkpoint.mapped(name).unwrap();
    tensor.file().path().file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn steps_fail_with_the_shards_name_and_nothing_else_does() {
    let wanted = {
        let (_dir, checkpoint) = model();
        step(&mut load(&checkpoint, &all_experts(checkpoint.architecture())).unwrap(), 0).unwrap().logits
    };
    for shard in SHARDS {
        let ((dir, checkpoint), (_other_dir, other)) = (model(), model());
        let all = all_experts(checkpoint.architecture());
        let (mut rig, mut beside) = (load(&checkpoint, &all).unwrap(), load(&other, &all).unwrap());
        assert_eq!(step(&mut rig, 0).unwrap().logits, wanted);
        cut(&dir.path().join(shard));
        for _ in 0..2 {
            expect(&step(&mut rig, 1).unwrap_err(), shard);
            // It answers, and what never comes to a weight is refused as ever.
            assert_eq!(step(&mut rig, SIZE.slots - 1).unwrap_err().reason(), "WeightsChanged");
            let mut batch = rig.pack(&[Turn { slot: SlotId(2), position: 0, ids: vec![1], prompt: 1 }]);
            batch.ids[0] = 320;
            assert_eq!(rig.run(None, batch).unwrap_err().reason(), "InvalidArgument");
            assert_eq!(step(&mut beside, 0).unwrap().logits, wanted, "another executor of other files");
        }
    }
}

#[test]
fn a_peers_rows_fail_where_their_expert_lies_in_the_shard() {
    let (dir, checkpoint) = model();
    let arch = checkpoint.architecture().clone();
    let mut rig = load(&checkpoint, &all_experts(&arch)).unwrap();
    cut(&dir.path().join(SHARDS[1]));
    let hidden: Bytes = (0..arch.hidden).flat_map(|i| (i as f32 / 7.0).to_le_bytes()).collect();
    let mut served = [0, 0];
    for layer in arch.layer_ids() {
        for expert in [ExpertId(0), ExpertId(1)] {
            let key = RequestKey(u64::from(expert.0));
            let request = Request { key, hidden: hidden.clone(), rows: 1, experts: vec![expert.0], weights: vec![1.0] };
            let gone = file_of(&checkpoint, &TensorName::Expert { layer, expert, part: ExpertPart::Gate }) == SHARDS[1];
            served[usize::from(gone)] += 1;
            match rig.serve(layer, vec![request]).remove(0) {
                Ok(sums) => assert!(!gone && sums.iter().any(|byte| *byte != 0), "{layer:?} {expert:?}"),
                Err(error) => {
                    assert!(gone, "{layer:?} {expert:?}");
                    expect(&error, SHARDS[1]);
                }
            }
        }
    }
    assert!(served.iter().all(|count| *count > 0), "{served:?}: both shards have experts");
}

#[test]
fn a_shard_that_is_cut_before_it_is_read_fails_the_load() {
    for shard in SHARDS {
        let (dir, checkpoint) = model();
        let arch = checkpoint.architecture().clone();
        let none = ExpertSet::empty(arch.layers.len(), arch.experts);
        let mut rig = load(&checkpoint, &none).unwrap();
        cut(&dir.path().join(shard));
        let error = load(&checkpoint, &all_experts(&arch)).map(drop).unwrap_err();
        assert!(error.reason() == "WeightsChanged" && error.to_string().contains(shard), "{error}");
        expect(&rig.load(checkpoint, &all_experts(&arch)).unwrap_err(), shard);
    }
}

#[test]
fn a_shard_that_is_written_over_fails_loads_at_once_and_steps_soon() {
    let (dir, checkpoint) = model();
    let arch = checkpoint.architecture();
    let (none, all) = (ExpertSet::empty(arch.layers.len(), arch.experts), all_experts(arch));
    let (mut rig, mut half) = (load(&checkpoint, &all).unwrap(), load(&checkpoint, &none).unwrap());
    write_over(&dir.path().join(SHARDS[0]));
    expect(&half.load(checkpoint.clone(), &all).unwrap_err(), SHARDS[0]);
    // That look was enough for whoever else uses it.
    expect(&step(&mut rig, 0).unwrap_err(), SHARDS[0]);
    // Every look before the last finds nothing.
    let (dir, checkpoint) = model();
    let total = plan_read(&checkpoint, &all).bytes;
    let mut progress = |read| {
        if read == total {
            write_over(&dir.path().join(SHARDS[1]));
        }
    };
    let error = CpuNetwork::load(&checkpoint, &all, SIZE, 2, &mut progress).map(drop).unwrap_err();
    assert!(error.reason() == "WeightsChanged" && error.to_string().contains(SHARDS[1]), "{error}");
    let (dir, checkpoint) = model();
    let mut rig = load(&checkpoint, &all).unwrap();
    write_over(&dir.path().join(SHARDS[1]));
    let began = Instant::now();
    let error = loop {
        if let Err(error) = step(&mut rig, 0) {
            break error;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "nobody looks");
    };
    expect(&error, SHARDS[1]);
}

/// What is asked of a peer, and what comes of a step in the end, is asked about after it was computed.
#[test]
fn nothing_that_was_computed_with_zeros_gets_out() {
    let (_dir, whole) = model();
    let arch = whole.architecture().clone();
    let none = ExpertSet::empty(arch.layers.len(), arch.experts);
    let last = arch.layers.len() - 1;
    let head = file_of(&whole, &TensorName::LmHead);
    let mut peer = load(&whole, &all_experts(&arch)).unwrap();
    for (at, shards) in [(None, &SHARDS[..]), (Some(last), &[head.as_str()])] {
        let (dir, checkpoint) = model();
        let mut rig = load(&checkpoint, &none).unwrap();
        let batch = rig.pack(&[Turn { slot: SlotId(0), position: 0, ids: vec![1, 2, 3], prompt: 3 }]);
        let cut_all = || shards.iter().for_each(|shard| cut(&dir.path().join(shard)));
        if at.is_none() {
            cut_all();
        }
        let step = rig.begin(batch);
        let error = loop {
            match rig.completion() {
                Completion::Routed { layer, routing, .. } => {
                    assert!(at.is_some(), "its peers would be asked for nonsense");
                    if Some(layer.index()) == at {
                        cut_all();
                    }
                    rig.experts(step, layer, routing, Some(&mut peer)).unwrap();
                }
                Completion::Failed { error, .. } => break error,
                other => panic!("{other:?}"),
            }
        };
        expect(&error, if at.is_some() { &head } else { "model-0000" });
    }
}

#[test]
fn what_was_copied_at_the_load_needs_no_file_any_more() {
    let (dir, _) = model();
    for shard in SHARDS {
        let path = dir.path().join(shard);
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let halves = String::from_utf8(bytes[8..header].to_vec()).unwrap().replace("\"BF16\"", "\"F16\" ");
        bytes[8..header].copy_from_slice(halves.as_bytes());
        fs::write(&path, bytes).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let all = all_experts(checkpoint.architecture());
    let mut rig = load(&checkpoint, &all).unwrap();
    let logits = step(&mut rig, 0).unwrap().logits;
    SHARDS.iter().for_each(|shard| write_over(&dir.path().join(shard)));
    let error = load(&checkpoint, &all).map(drop).unwrap_err();
    assert_eq!(error.reason(), "WeightsChanged", "{error}");
    SHARDS.iter().for_each(|shard| cut(&dir.path().join(shard)));
    assert_eq!(step(&mut rig, 0).unwrap().logits, logits);
}
