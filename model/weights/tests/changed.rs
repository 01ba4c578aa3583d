//! Files that change under their maps: each is named, and the process goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use m1_arch::LayerId;
use m1_weights::{Checkpoint, MappedTensor, TensorName, WeightsError};
use memmap2::Mmap;
use support::{FIRST, Folder, SECOND};

/// Longer than a look at all files takes to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the clock of a file system stands still.
const TICK: Duration = Duration::from_millis(50);
/// Says to [`child`] what it shall die of.
const FAULT: &str = "M1_TEST_FAULT";

/// In the first file, and in the second.
const NAMES: [TensorName; 2] = [TensorName::Embedding, TensorName::Router(LayerId(1))];

fn cut(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn tensors(checkpoint: &Checkpoint) -> [MappedTensor; 2] {
    NAMES.map(|name| checkpoint.mapped(&name).unwrap())
}

fn touch(tensor: &MappedTensor) -> Result<(), WeightsError> {
    tensor.touch(&mut |_| {})
}

/// It is about the file `name` and says all of `words`.
fn expect(result: Result<(), WeightsError>, name: &str, words: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!((error.reason(), error.is_transient()), ("WeightsChanged", false), "{text}");
    for word in [&[name, "has changed while it was in use"], words].concat() {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn a_file_that_is_cut_short_is_named_and_reads_as_zeros() {
    let dir = Folder::good().write();
    let path = dir.path().join(SECOND);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [whole, other] = tensors(&checkpoint);
    touch(&other).unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    cut(&path, 0);
    expect(touch(&other), SECOND, &[&format!("it had {bytes} bytes when it was opened, it has 0 now")]);
    assert!(other.bytes().iter().all(|byte| *byte == 0));
    expect(other.file().check(), SECOND, &[]);
    touch(&whole).and_then(|()| whole.file().look()).unwrap();
    let view = checkpoint.tensor(&NAMES[1]).unwrap();
    assert!(view.data.iter().all(|byte| *byte == 0));
    expect(view.file.check(), SECOND, &[]);
    assert!(m1_weights::any_changed());
    fs::remove_file(&path).unwrap();
    expect(touch(&other), SECOND, &["another one or none is there now"]);
    // Whole again, and opened anew, it is as good as any.
    let again = Folder::good().write();
    fs::copy(again.path().join(SECOND), &path).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [_, other] = tensors(&checkpoint);
    touch(&other).unwrap();
    assert!(other.bytes().iter().any(|byte| *byte != 0));
}

#[test]
fn a_file_that_lost_less_than_a_page_is_found_by_a_look() {
    let dir = Folder::good().write();
    let path = dir.path().join(SECOND);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [_, tensor] = tensors(&checkpoint);
    let bytes = fs::metadata(&path).unwrap().len();
    cut(&path, bytes - 1);
    expect(tensor.file().look(), SECOND, &[&format!("it has {} now", bytes - 1)]);
    expect(touch(&tensor), SECOND, &[]);
}

#[test]
fn a_file_that_is_written_over_is_found_by_a_look() {
    let dir = Folder::good().write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [_, tensor] = tensors(&checkpoint);
    tensor.file().look().unwrap();
    std::thread::sleep(TICK);
    let mut bytes = fs::read(dir.path().join(SECOND)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(dir.path().join(SECOND), bytes).unwrap();
    expect(tensor.file().look(), SECOND, &["it was written to since"]);
    expect(tensor.file().check(), SECOND, &[]);
}

#[test]
fn somebody_looks_from_time_to_time() {
    let dir = Folder::good().write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [whole, other] = tensors(&checkpoint);
    std::thread::sleep(TICK);
    cut(&dir.path().join(SECOND), 1);
    let began = Instant::now();
    while other.file().check().is_ok() {
        assert!(began.elapsed() < PATIENCE, "nobody looks");
        std::thread::sleep(TICK);
    }
    whole.file().check().unwrap();
}

#[test]
fn a_file_that_another_one_was_renamed_over_stays_what_it_was() {
    let dir = Folder::good().write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [_, tensor] = tensors(&checkpoint);
    let before = tensor.bytes().to_vec();
    let path = dir.path().join(SECOND);
    fs::write(dir.path().join("new"), "something else").unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    touch(&tensor).and_then(|()| tensor.file().look()).unwrap();
    assert_eq!(tensor.bytes(), before);
    fs::remove_file(&path).unwrap();
    touch(&tensor).and_then(|()| tensor.file().look()).unwrap();
    assert_eq!(tensor.bytes(), before);
}

/// More maps than can be guarded at once, and some that fault meanwhile: none takes another one's place for its own.
#[test]
fn maps_come_and_go_beside_others_that_fault() {
    let good = Folder::good().write();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..1500 {
                    let checkpoint = Checkpoint::open(good.path()).unwrap();
                    for tensor in tensors(&checkpoint) {
                        touch(&tensor).unwrap();
                        assert!(tensor.bytes().iter().any(|byte| *byte != 0));
                    }
                }
            });
            scope.spawn(|| {
                for _ in 0..200 {
                    let dir = Folder::good().write();
                    let checkpoint = Checkpoint::open(dir.path()).unwrap();
                    [FIRST, SECOND].iter().for_each(|file| cut(&dir.path().join(file), 0));
                    for (tensor, file) in tensors(&checkpoint).iter().zip([FIRST, SECOND]) {
                        expect(touch(tensor), file, &["it has 0 now"]);
                    }
                }
            });
        }
    });
}

#[test]
fn a_fault_elsewhere_ends_the_process() {
    for fault in ["map", "sent"] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(FAULT, fault)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let ended = loop {
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            if began.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(TICK);
        };
        assert_eq!(ended.signal(), Some(libc::SIGBUS), "{fault}: {ended}");
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child() {
    let Ok(fault) = std::env::var(FAULT) else { return };
    let dir = Folder::good().write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join(SECOND);
    cut(&path, 0);
    expect(touch(&tensors(&checkpoint)[1]), SECOND, &[]);
    if fault == "sent" {
        // SAFETY: it only ends this process.
        unsafe { libc::raise(libc::SIGBUS) };
        return;
    }
    let file = File::open(dir.path().join(FIRST)).unwrap();
    // SAFETY: that the file changes is what this is about.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    cut(&dir.path().join(FIRST), 0);
    std::hint::black_box(map[0]);
}
