//! A worker whose files change while it serves: its sequences and its peers' hear of it, and the process goes when they have settled.

use std::fs::{self, File};

use super::*;

/// The demo model in a folder of its own.
pub(super) fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_cut_short_ends_what_runs_by_its_name_and_then_the_process() {
    let (dir, shard) = (copy(), "model-00001-of-00002.safetensors");
    let (pod, peer) = (Pod::start(dir.path(), "0", "60").await, Pod::start(&demo(), "1", "60").await);
    place(&[&pod, &peer]).await;
    let (mut own, theirs) = (pod.begin(30_000).await, peer.begin(30_000).await);
    File::options().write(true).open(dir.path().join(shard)).unwrap().set_len(0).unwrap();
    let finished = loop {
        let event = tokio::time::timeout(LONG, own.message()).await.expect("it goes on").unwrap().unwrap();
        if let Some(Event::Finished(finished)) = event.event {
            break finished;
        }
    };
    assert_eq!((finished.reason(), finished.error_reason.as_str()), (pb::FinishReason::FinishError, "WeightsChanged"));
    assert!(finished.error_message.contains(shard), "{}", finished.error_message);
    pod.until("/readyz", 503, "{\"reason\":\"WeightsChanged\"").await;
    assert!(pod.ask("/readyz").await.1.contains(shard));
    assert_eq!(pod.ask("/livez").await, (200, "ok".into()));
    let refused = pod.client().await.generate(request(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::Unavailable, "NotReady"));
    // The peer waited for `--expert-wait`, and says what it lacks.
    let (reason, _, word) = end(theirs).await;
    assert_eq!((reason, word.as_str()), (pb::FinishReason::FinishError, "ExpertUnavailable"));
    pod.ended().await;
    peer.signal().await;
    peer.ended().await;
}
